"""Text, JSON and tables as people and other tools write them."""

import json
import math

import pytest

from densegrpo_jax.runtime.reading import (
    MOST_NESTED,
    finite,
    json_lines,
    parse_json,
    read_json,
    read_table,
    read_text,
    shaped,
)

TEXT = 'A sign that says "CAFÉ"\nsecond line\n'


@pytest.mark.parametrize(
    'encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32', 'utf-16-le-mark', 'utf-16-be-mark']
)
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_text_of_every_editor_is_the_same_text(tmp_path, encoding, end):
    mark = '\ufeff' if encoding.endswith('-mark') else ''
    data = (mark + TEXT.replace('\n', end)).encode(encoding.removesuffix('-mark'))
    (tmp_path / 'prompts.txt').write_bytes(data)
    assert read_text(tmp_path / 'prompts.txt') == TEXT


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        ('first\nCAFÉ'.encode('latin-1'), r'prompt file .*a.txt, line 2: byte 0xc9 is not UTF-8'),
        ('first\nline'.encode('utf-16-le'), 'line 1: a NUL character; .*UTF-16 without its mark'),
        (b'one\ntwo\0', 'line 2: a NUL character'),
        (b'\xff\xfea', 'is not UTF-16; save the file as UTF-8'),
    ],
)
def test_other_bytes_are_refused_with_their_line(tmp_path, data, message):
    (tmp_path / 'a.txt').write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / 'a.txt', 'prompt file')


def test_what_cannot_be_read_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match='prompt file .*none.txt does not exist'):
        read_text(tmp_path / 'none.txt', 'prompt file')
    with pytest.raises(FileNotFoundError, match='config.json does not exist; expected a folder'):
        read_json(tmp_path / 'config.json', 'a folder of ours')
    with pytest.raises(FileNotFoundError, match='is a folder, where a file is needed'):
        read_text(tmp_path)
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    with pytest.raises(FileNotFoundError, match='loop is a link to .*, which does not exist'):
        read_json(tmp_path / 'loop')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'line 1, column 1: Expecting value'),
        ('{"a": 1,\n "b": }', 'line 2, column 7'),
        ('[' * 100_000, 'nested too deeply|not valid JSON'),
        ('{"a":' * 600 + '1' + '}' * 600, 'x.json is not usable JSON: brackets nested too deeply'),
        ('{"a": 1' + '0' * 5000 + '}', 'x.json is not usable JSON: .*4300 digits'),
        ('[1]', r'x.json holds \[1\]; expected an object'),
        ('null', 'holds None; expected an object'),
        ('"' + 'a' * 1000 + '"', r'holds .{37}\.\.\.; expected'),
    ],
)
def test_json_of_another_form(tmp_path, text, message):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / 'x.json')


def test_json_of_a_declared_form(tmp_path):
    assert parse_json('[1, 2]', 'there', list) == [1, 2]
    assert parse_json('3', 'there', (int, float)) == 3
    with pytest.raises(ValueError, match='there holds {}; expected a list or text'):
        parse_json('{}', 'there', (list, str))
    rows = [{'prompt': 'line\u2028separator'}, {'prompt': 'b'}]
    lines = '\n\n'.join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / 'rows.jsonl').write_text(lines, encoding='utf-8-sig')
    assert list(json_lines(tmp_path / 'rows.jsonl')) == [(1, rows[0]), (3, rows[1])]
    (tmp_path / 'rows.jsonl').write_text('{}\n[]\n')
    with pytest.raises(ValueError, match=r'rows.jsonl:2 holds \[\]; expected an object'):
        list(json_lines(tmp_path / 'rows.jsonl'))


def test_a_table_has_the_columns_that_were_asked_for(tmp_path):
    path = tmp_path / 'runs.csv'
    path.write_text('seed,evals,command\n0,1.5,"a, b\nc"\n1,,d\n')
    rename = lambda row: {{'evals': 'nfe'}.get(k, k): v for k, v in row.items()}
    first, second = read_table(path, ['seed', 'command'], ['nfe'], rename)
    assert first == {'seed': '0', 'nfe': 1.5, 'command': 'a, b\nc'}
    assert second['command'] == 'd' and math.isnan(second['nfe'])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'has no column seed, nfe, but no header'),
        ('name,nfe\nx,1\n', 'has no column seed, but name, nfe: it is not a table that this comm'),
        ('seed,nfe\n0\n', 'line 2 does not have 2 cells'),
        ('seed,nfe\n0,1\n0,1,2\n', 'line 3 does not have 2 cells'),
        ('seed,nfe\n0,many\n', "line 2: nfe='many' is not a number"),
        ('seed,nfe\n0,1\n' + 'x' * 200_000 + ',1\n', 'line 2: not CSV: field larger than'),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / 'a.csv', ['seed'], ['nfe'])


def test_brackets_may_be_nested_as_deep_as_any_file_has_them():
    assert parse_json('[' * MOST_NESTED + ']' * MOST_NESTED, 'there', list)
    with pytest.raises(ValueError, match='nested too deeply'):
        parse_json('[' * (MOST_NESTED + 1) + ']' * (MOST_NESTED + 1), 'there', list)


def test_all_columns_of_a_table_may_be_numbers(tmp_path):
    (tmp_path / 'a.csv').write_text('prompt,a,b\nx,1,\n')
    (row,) = read_table(tmp_path / 'a.csv', ['prompt'], None)
    assert row['prompt'] == 'x' and row['a'] == 1.0 and math.isnan(row['b'])


@pytest.mark.parametrize('value', [math.nan, math.inf, 10**400, -(10**400), True, None, '1', [1]])
def test_what_is_no_finite_number(value):
    assert not finite(value)


def test_a_number_is_finite_if_a_float_can_hold_it():
    assert finite(10**300) and finite(-1.5) and finite(0)


FORM = {'a': int, 'b': [float], 'of': {'x': str, ...: float | None}, 'maybe': str | None}


def test_a_value_of_its_form_loses_what_the_form_lacks():
    value = {'a': 1, 'b': [1, 2.5], 'of': {'x': 'y', 'z': None, 'w': 3}, 'other': 5}
    kept = {name: part for name, part in value.items() if name != 'other'} | {'maybe': None}
    assert shaped(value, FORM, 'it') == kept


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'a': True}, 'it: a is True; expected a number'),
        ({'a': 1.5}, 'it: a is 1.5; expected a number'),
        ({'a': 10**400}, 'it: a is 10*[.]{3}; expected a number'),
        ({'b': None}, 'it: b is None; expected a list'),
        ({'b': [1, math.nan]}, r'it: b\[1\] is nan; expected a number'),
        ({'of': {'z': 1}}, 'it: of: x is None; expected text'),
        ({'of': {'x': 'y', 'z': 'w'}}, "it: of: z is 'w'; expected a number or null"),
        ({'of': []}, r'it: of is \[\]; expected an object'),
        ({'maybe': 1}, 'it: maybe is 1; expected text or null'),
    ],
)
def test_a_value_of_another_form_names_the_part(change, message):
    good = {'a': 1, 'b': [], 'of': {'x': 'y'}}
    assert shaped(good, FORM, 'it')
    with pytest.raises(ValueError, match=message):
        shaped({**good, **change}, FORM, 'it')
