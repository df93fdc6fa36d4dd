"""A file of results, one JSON object a line, that a stopped process continues."""

import pytest

from densegrpo_jax.runtime.journal import Journal


def test_what_was_appended_is_read_again(tmp_path):
    path = tmp_path / 'rows.jsonl'
    Journal(path).append({'a': (1, 2), 'b': 'é\u2028'})
    Journal(path).append({'a': 3})
    assert Journal(path).rows == [{'a': [1, 2], 'b': 'é\u2028'}, {'a': 3}]
    assert Journal(path, restart=True).rows == [] and not path.exists()


def test_an_incomplete_last_line_is_dropped(tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_text('{"a": 1}\n{"a": ')
    journal = Journal(path)
    journal.append({'a': 2})
    assert Journal(path).rows == journal.rows == [{'a': 1}, {'a': 2}]


@pytest.mark.parametrize('line', [b'{"a": ', b'[1]', b'\xff'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r'rows\.jsonl:2 is damaged .*--restart'):
        Journal(path)


def test_numbers_that_json_lacks_are_refused(tmp_path):
    path = tmp_path / 'rows.jsonl'
    with pytest.raises(ValueError):
        Journal(path).append({'a': float('nan')})
    assert not path.exists()


def test_a_line_of_another_form_is_named_with_the_way_out(tmp_path):
    path = tmp_path / 'lines.jsonl'
    path.write_text('{"a": 1}\n{"b": 2, "c": 3}\n{"c": 3}\n')
    with pytest.raises(ValueError, match='lines.jsonl:3 is damaged .it holds c.; call a friend'):
        Journal(path, forms=(('a',), ('b', 'c')), remedy='call a friend')


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ('{"p": 1, "s": null}', 's is None'),
        ('{"p": "x", "s": {}}', 'p is .x.'),
        ('{"p": 1}', 'ds p'),
    ],
)
def test_a_line_has_values_of_its_form(tmp_path, line, said):
    path = tmp_path / 'lines.jsonl'
    path.write_text('{"p": 1, "s": {"x": null, "y": 2}}\n' + line + '\n')
    with pytest.raises(ValueError, match=f'lines.jsonl:2 is damaged .*{said}'):
        Journal(path, forms=({'p': int, 's': {...: float | None}},))
