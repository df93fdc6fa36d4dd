"""What a PNG says of its maker, and captions."""

import numpy as np
from PIL import Image

from densegrpo_jax.runtime.images import grid, made_by, save


def test_the_maker_of_a_sheet_is_known_whatever_its_size(tmp_path, monkeypatch):
    """A sheet of many images is drawn again into the same file."""
    sheet = save(tmp_path / 'sheet.png', np.zeros((8, 8, 3), np.uint8), 'a command')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)  # Pillow refuses more than twice that
    assert made_by(sheet) == 'a command'
    (tmp_path / 'other.png').write_bytes(b'GIF89a')
    assert made_by(tmp_path / 'other.png') == made_by(tmp_path / 'nowhere.png') == ''


def test_letters_of_other_alphabets_have_their_shapes():
    """Not one box for all of them."""
    image = np.zeros((1, 32, 32, 3), np.uint8)
    drawn = {grid(image, columns=1, captions=[letter]).tobytes() for letter in 'ÜßΔЖ→'}
    assert len(drawn) == 5
