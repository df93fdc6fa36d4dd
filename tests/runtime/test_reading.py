"""Text, JSON and tables as people and other tools write them."""

import json
import math

import pytest

from densegrpo_jax.runtime.reading import json_lines, parse_json, read_json, read_table, read_text

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
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / 'a.csv', ['seed'], ['nfe'])
