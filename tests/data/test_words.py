import collections

import numpy as np
import pytest

from densegrpo_jax.data import words


def test_lists_are_disjoint_and_of_the_stated_shape():
    train, held_out = words.train_words(), words.held_out_words()
    assert len(train) == len(set(train)) == 2500
    assert len(held_out) == len(set(held_out)) == 320
    assert not set(train) & set(held_out)
    assert collections.Counter(map(len, held_out)) == {3: 106, 4: 107, 5: 107}
    assert set(map(len, train)) == {3, 4, 5}


def test_random_word_never_yields_a_held_out_word(monkeypatch):
    # With an alphabet of four letters and half of all its words held out, an unfiltered draw would
    # soon hit one.
    every = [a + b + c for a in 'ABCD' for b in 'ABCD' for c in 'ABCD']
    held_out = frozenset(every[::2])
    monkeypatch.setattr(words, 'ALPHABET', 'ABCD')
    monkeypatch.setattr(words, '_held_out_set', lambda: held_out)
    rng = np.random.default_rng(0)
    drawn = [words.random_word(rng) for _ in range(3000)]
    assert {w for w in drawn if len(w) == 3} == set(every[1::2])


def test_random_word_covers_letters_and_lengths():
    rng = np.random.default_rng(0)
    drawn = [words.random_word(rng) for _ in range(3000)]
    letters = collections.Counter(''.join(drawn))
    assert set(letters) == set(words.ALPHABET)
    assert max(letters.values()) < 1.4 * min(letters.values())
    assert set(map(len, drawn)) == {3, 4, 5}
    assert not set(drawn) & set(words.held_out_words())


def test_train_word_mixes_words_and_strings():
    rng = np.random.default_rng(1)
    known = set(words.train_words())
    assert all(words.train_word(rng, random_share=0.0) in known for _ in range(200))
    share = np.mean([words.train_word(rng) in known for _ in range(2000)])
    assert 0.45 < share < 0.6


def test_a_bad_line_of_a_word_list_is_named(tmp_path):
    path = tmp_path / 'list.txt'
    path.write_text('GOOD\nlower\n')
    with pytest.raises(ValueError, match=r"list.txt:2: 'lower'"):
        words._read_words(path)
