"""Prompts from CSV and Parquet files."""

import json

import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.data.geneval import geneval_prompts
from densegrpo_jax.data.prompt_files import prompts_from
from densegrpo_jax.data.prompts import MAX_CHARACTERS, Prompt
from densegrpo_jax.sampling.conditioning import load_panel_prompts, load_prompts

ROWS = [
    {'tag': 'colors', 'include': [{'class': 'cup', 'count': 1, 'color': 'red'}], 'prompt': 'a cup'},
    {
        'tag': 'position',
        'include': [
            {'class': 'dog', 'count': 1},
            {'class': 'cat', 'count': 1, 'position': ['left of', 0]},
        ],
        'exclude': [{'class': 'cat', 'count': 2}],
        'prompt': 'a cat left of a dog',
    },
]


def read(path, quoted_target=False):
    return prompts_from(str(path), quoted_target=quoted_target)


def write(tmp_path, content, name='p.csv'):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def parquet():
    """Writes columns into a Parquet file."""
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    def make(path, rows=None, **columns):
        table = pyarrow.Table.from_pylist(rows) if rows else pyarrow.table(columns)
        parquet.write_table(table, path)
        return path

    return make


def test_csv_keeps_the_other_columns_as_metadata(tmp_path):
    text = '\ufeffprompt,artist,year\r\n"A sign, ""OPEN""\nat night",Ada,1990\r\n\r\na cat,,\r\n'
    found = read(write(tmp_path, text.encode('utf-16-le'), 'P.CSV'))
    assert list(found) == [
        Prompt('A sign, "OPEN"\nat night', {'artist': 'Ada', 'year': '1990'}),
        Prompt('a cat'),
    ]


def test_a_target_is_its_own_column_or_the_quoted_text(tmp_path):
    path = write(tmp_path, 'caption,target\nA wall,Hi\nA cup with "Tea",\n')
    found = prompts_from(f'{path}:caption', quoted_target=True)
    assert [prompt.target for prompt in found] == ['Hi', 'Tea']
    with pytest.raises(ValueError, match=r"p\.csv:2: expected a target .* found 'a cat'"):
        read(write(tmp_path, 'prompt\na cat\n'), quoted_target=True)


@pytest.mark.parametrize(
    'content, message',
    [
        (
            'text,tag\na cat,x\n',
            r"no column 'prompt'; its columns: 'text', 'tag'. Name one .*:text",
        ),
        ('', r"no column 'prompt'; its columns: none"),
        ('prompt\n\n', "the column 'prompt' holds no prompt"),
        ('prompt,a\n,1\n', "the column 'prompt' holds no prompt"),
        ('prompt,a\na cat\n', r'p\.csv:2: 1 values, but the first line names 2 columns'),
        ('prompt,a\na cat,1\nb,2,3\n', r'p\.csv:3: 3 values'),
        ('prompt,prompt\na,b\n', "two columns are called 'prompt'"),
        ('prompt\n"a "cat"\n', r'p\.csv:2: not CSV'),
        (f'prompt\n{"x" * (MAX_CHARACTERS + 1)}\n', r'p\.csv:2: a prompt of'),
        (f'prompt\n{"x" * 200_000}\n', r'p\.csv:2: not CSV: field larger than'),
        (b'prompt\n\xff\xff\xff\n', 'line 2: byte 0xff is not UTF-8'),
        ('prompt,tag,include\na mug,colors,"[{""class"": ""mug""}]"\n', "class is 'mug'"),
        ('prompt,tag,include\na mug,colors,cup\n', r'p\.csv:2: include is not valid JSON'),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, content))


def test_missing_files_and_other_kinds(tmp_path):
    for name in ('nowhere.csv', 'nowhere.parquet:text'):
        with pytest.raises(FileNotFoundError, match='nowhere'):
            read(tmp_path / name)
    assert read(write(tmp_path, 'a cat\n', 'csv'))[0].text == 'a cat'


def test_rows_without_a_prompt_are_left_out_aloud(tmp_path, caplog):
    found = read(write(tmp_path, 'prompt,n\na,1\n ,2\nb,3\n'))
    assert [prompt.metadata['n'] for prompt in found] == ['1', '3']
    assert '1 of 3 rows have no prompt and are left out' in caplog.text


def geneval_rows(tmp_path):
    lines = ''.join(json.dumps(row) + '\n' for row in ROWS)
    return list(geneval_prompts(write(tmp_path, lines, 'rows.jsonl')))


def test_geneval_rows_in_csv_are_those_of_jsonl(tmp_path):
    cell = lambda value: '"' + json.dumps(value).replace('"', '""') + '"'
    lines = [
        f'{i},{row["tag"]},{row["prompt"]},{cell(row["include"])},'
        + (cell(row['exclude']) if 'exclude' in row else '')
        for i, row in enumerate(ROWS)
    ]
    path = write(tmp_path, '\n'.join(['id,tag,prompt,include,exclude', *lines]))
    assert list(read(path)) == geneval_rows(tmp_path)


def test_geneval_rows_in_parquet_are_those_of_jsonl(tmp_path, parquet):
    rows = json.loads(json.dumps(ROWS))
    rows[0]['exclude'] = None  # every row has every column
    rows[1]['include'][1]['position'][1] = '0'  # a list has one type
    found = read(parquet(tmp_path / 'rows.parquet', rows))
    assert list(found) == geneval_rows(tmp_path)


def test_parquet_keeps_plain_columns_only(tmp_path, parquet):
    columns = dict(
        text=['a cat', 'a dog'],
        image=[b'\x89PNG', b'\x89PNG'],
        shown=[{'bytes': b'1'}, {'bytes': b'2'}],
        n=[1, None],
        x=[0.5, 1.5],
        tags=[['a', 'b'], None],
        good=[True, False],
    )
    path = parquet(tmp_path / 'p.parquet', **columns)
    assert list(prompts_from(f'{path}:text', quoted_target=False)) == [
        Prompt('a cat', {'n': 1, 'x': 0.5, 'tags': ['a', 'b'], 'good': True}),
        Prompt('a dog', {'x': 1.5, 'good': False}),
    ]
    with pytest.raises(ValueError, match="no column 'prompt'; its columns: 'text', 'image'"):
        read(path)
    with pytest.raises(ValueError, match='row 1: n holds 1; expected the text'):
        prompts_from(f'{path}:n', quoted_target=False)


def test_other_files_are_not_parquet(tmp_path, parquet):
    with pytest.raises(ValueError, match=r'p\.parquet: not a Parquet file'):
        read(write(tmp_path, 'prompt\na cat\n', 'p.parquet'))
    path = parquet(tmp_path / 'long.parquet', prompt=[f'a cat number {i}' for i in range(5000)])
    content = bytearray(path.read_bytes())
    content[4:3000] = bytes(2996)
    with pytest.raises(ValueError, match=r'long\.parquet: damaged after row'):
        read(write(tmp_path, bytes(content), 'long.parquet'))


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.partition('.')[0] == 'pyarrow']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'densegrpo_jax\[parquet\]'"):
        read(write(tmp_path, 'x', 'p.parquet'))


def test_a_configuration_names_such_a_file(tmp_path):
    config = default_config()
    write(tmp_path, 'words,n\n"A sign that says ""OPEN""",1\n"A cup with ""Tea""",2\n')
    config.data.train = config.data.eval = f'{tmp_path / "p.csv"}:words'
    config.data.eval_prompts = 1
    assert [p.target for p in load_prompts(config, 'train')] == ['OPEN', 'Tea']
    config.reward = {'reading': {'kind': 'ocr'}}  # by the kind of a reward, not by its key
    assert [p.target for p in load_prompts(config, 'train')] == ['OPEN', 'Tea']
    config.reward = {'ocr': {'kind': 'my:ChineseOcr'}}
    assert [p.target for p in load_prompts(config, 'train')] == [None, None]
    config.eval.update(panel_prompts=config.data.eval, panel={'reading': {'kind': 'ocr'}})
    assert [p.target for p in load_panel_prompts(config)] == ['OPEN', 'Tea']
    config.reward = {'ocr': {}}
    assert [p.metadata for p in load_prompts(config, 'eval')] == [{'n': '1', 'target': 'OPEN'}]


@pytest.mark.parametrize(
    'columns, message',
    [
        ({'prompt': [b'a']}, "the column 'prompt' holds values of Arrow type binary"),
        ({'prompt': ['a\0']}, 'row 1: the prompt .* holds a NUL character'),
    ],
)
def test_prompts_of_parquet_must_be_text(tmp_path, parquet, columns, message):
    path = tmp_path / 'p.parquet'
    parquet(path, **columns)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_text_of_parquet_that_is_not_utf8_is_named(tmp_path):
    arrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet as files

    path, text = tmp_path / 'p.parquet', arrow.array([b'A \xff'], arrow.binary())
    files.write_table(arrow.table({'prompt': text.view(arrow.string())}), path)
    with pytest.raises(ValueError, match='p.parquet: damaged after row 0: .*utf-8'):
        read(path)


def test_two_columns_of_one_name_are_refused_in_parquet_too(tmp_path):
    arrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet as files

    path, one = tmp_path / 'p.parquet', arrow.array(['a'])
    files.write_table(arrow.Table.from_arrays([one, one], names=['prompt', 'prompt']), path)
    with pytest.raises(ValueError, match="two columns are called 'prompt'"):
        read(path)
