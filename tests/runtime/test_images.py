"""Contact sheets, and what a PNG says of its maker."""

import numpy as np
from PIL import Image, ImageFont

from densegrpo_jax.runtime import images as pictures
from densegrpo_jax.runtime.images import made_by, save


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
    drawn = {pictures.grid(image, columns=1, captions=[letter]).tobytes() for letter in 'ÜßΔЖ→'}
    assert len(drawn) == 5


def test_captions_are_wrapped_to_the_pictures_width():
    font, text = (
        ImageFont.load_default(11),
        '0.75 A wooden board with the word "unbelievablyextraordinarilylongword" on it',
    )
    lines = pictures.wrap(text, 190, font)
    assert 1 < len(lines) <= pictures.MAX_LINES and all(
        font.getlength(line) <= 190 for line in lines
    )
    assert ''.join(lines).replace(' ', '') == text.replace(' ', '')
    cut = pictures.wrap(text * 4, 150, font)
    assert (
        len(cut) == pictures.MAX_LINES and cut[-1].endswith('…') and font.getlength(cut[-1]) <= 150
    )
    assert pictures.wrap('', 150, font) == ['']


def test_a_comparison_has_a_column_per_policy():
    images = np.zeros((2, 3, 20, 60, 3), np.uint8)
    images[1, 2] = [255, 0, 0]
    sheet = pictures.comparison(
        images,
        titles=['base', 'a', 'b'],
        captions=[['1', '2', '3']] * 2,
        rows=['first', 'second'],
        scale=2,
    )
    red = (sheet == [255, 0, 0]).all(-1)
    assert red.sum() == 40 * 120 and sheet.shape[1] == 3 * 124 + 4
    ys, xs = np.nonzero(red)
    assert xs.min() == 4 + 2 * 124 and ys.max() < sheet.shape[0] - 10
