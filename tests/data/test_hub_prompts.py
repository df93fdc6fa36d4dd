"""Prompts from data sets of a Hub on the loopback interface."""

import errno
import io
import re

import pytest

from densegrpo_jax.data import hub as hub_prompts
from densegrpo_jax.data.prompt_files import prompts_from
from densegrpo_jax.pipelines.weights.hub import find_folder
from tests.hub import CONVERTED, hub

pyarrow = pytest.importorskip('pyarrow')


def parquet(**columns):
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub(monkeypatch, tmp_path, token='') as made:
        yield made


def texts(name, use='train'):
    return [prompt.text for prompt in prompts_from(name, use, quoted_target=False)]


def test_splits_columns_and_parts(server):
    part = lambda *names: parquet(prompt=list(names), style=['oil'] * len(names))
    files = {
        'data/train-00000-of-00002.parquet': part('a', 'b'),
        'data/train-00001-of-00002.parquet': part('c'),
        'data/test-00000-of-00001.parquet': part('d'),
        'README.md': b'',
    }
    server.add('datasets', 'ada/prompts', files)
    found = prompts_from('hf:ada/prompts', 'train', quoted_target=False)
    assert [p.text for p in found] == ['a', 'b', 'c']
    assert found[0].metadata == {'style': 'oil'}
    assert texts('hf:ada/prompts', 'eval') == texts('hf:ada/prompts@test') == ['d']
    assert texts('hf:ada/prompts:style@test') == ['oil']
    with pytest.raises(ValueError, match="no split 'validation'; its splits: test, train. .*@test"):
        texts('hf:ada/prompts@validation')
    with pytest.raises(
        ValueError, match="hf:ada/prompts@test: there is no column 'text'; its columns: 'prompt', '"
    ):
        texts('hf:ada/prompts:text@test')
    del server.repositories['datasets/ada/prompts'].branches['main'][
        'data/train-00001-of-00002.parquet'
    ]
    with pytest.raises(ValueError, match="of the 2 parts of 'train' only"):
        texts('hf:ada/prompts')


def test_what_the_hub_converted_serves(server):
    server.add('datasets', 'ada/lines', {'prompts.jsonl': b'{}'})
    with pytest.raises(ValueError, match='has no Parquet files'):
        texts('hf:ada/lines')
    files = {
        'default/train/0000.parquet': parquet(prompt=['a']),
        'other/train/0000.parquet': parquet(prompt=['b']),
        'small/tiny/0000.parquet': parquet(prompt=['c']),
        'large/tiny/0000.parquet': parquet(prompt=['d']),
    }
    server.add('datasets', 'ada/lines', files, branch=CONVERTED)
    assert texts('hf:ada/lines') == ['a']
    with pytest.raises(ValueError, match="'tiny' is in several folders: large/tiny, small/tiny"):
        texts('hf:ada/lines@tiny')


def test_a_data_set_is_fetched_once_and_serves_without_network(server, monkeypatch, caplog):
    server.add('datasets', 'ada/prompts', {'train.parquet': parquet(prompt=['a'])})
    fetched = lambda: [path for path in server.asked if re.match('GET .*/resolve/', path)]
    assert texts('hf:ada/prompts') == texts('hf:ada/prompts') == ['a'] and len(fetched()) == 1
    server.broken = ('/api/',)
    assert texts('hf:ada/prompts') == ['a'] and 'as of its commit' in caplog.text
    server.broken = ()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert texts('hf:ada/prompts') == ['a']
    with pytest.raises(FileNotFoundError, match="'ada/other' is not on this machine.*offline mode"):
        texts('hf:ada/other')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    server.add('datasets', 'ada/prompts', {'train.parquet': parquet(prompt=['b'])})
    assert texts('hf:ada/prompts') == ['b']


def test_a_disk_is_not_called_a_network(server, monkeypatch, caplog):
    import huggingface_hub

    server.add('datasets', 'ada/prompts', {'train.parquet': parquet(prompt=['a'])})

    def fails(number):
        def fail(*_, **__):
            raise OSError(number, 'no luck', 'here' if number == errno.EROFS else None)

        return fail

    for number in (errno.ENOSPC, errno.EROFS, errno.EACCES):
        for use, name in (
            (lambda: texts('hf:ada/prompts'), 'hf_hub_download'),
            (lambda: find_folder('ada/m', option='o', holds='h', example='e', files=['*']),
             'snapshot_download'),
        ):  # fmt: skip
            with (
                monkeypatch.context() as patch,
                pytest.raises(OSError, match='no luck, while .ada'),
            ):
                patch.setattr(huggingface_hub, name, fails(number))
                use()
    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError, match='with network'):
        patch.setattr(huggingface_hub, 'hf_hub_download', fails(errno.ENETUNREACH))
        texts('hf:ada/prompts')
    for module, name in ((hub_prompts, 'replace_file'), (huggingface_hub, 'cached_assets_path')):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fails(errno.EROFS))
            caplog.clear()
            assert texts('hf:ada/prompts') == ['a']
            assert 'the listing of ada/prompts cannot be kept' in caplog.text


def test_a_damaged_listing_of_an_earlier_use_is_named(server):
    import huggingface_hub

    server.add('datasets', 'ada/prompts', {'train.parquet': parquet(prompt=['a'])})
    texts('hf:ada/prompts')
    server.broken = ('/api/',)
    folder = huggingface_hub.cached_assets_path('densegrpo_jax', namespace='prompts')
    (record,) = folder.glob('*prompts.json')
    for content in ('{}', '{"revision": "a", "files": 5}', '[]'):
        record.write_text(content)
        with pytest.raises(ValueError, match='ada--prompts.json holds'):
            texts('hf:ada/prompts')


def test_absent_data_sets_and_other_names(server):
    with pytest.raises(FileNotFoundError, match="'ada/none' does not exist .*`hf auth login`"):
        texts('hf:ada/none')
    for name in ('hf:ada', 'hf:ada/b/c', 'hf:', 'hf:ada/b@', 'hf:ada/b:'):
        with pytest.raises(ValueError, match='names no data set of the Hub; expected'):
            texts(name)


def test_a_private_data_set_needs_the_token(server, monkeypatch):
    server.add('datasets', 'ada/own', {'train.parquet': parquet(prompt=['a'])}, private=True)
    with pytest.raises(FileNotFoundError, match='is private'):
        texts('hf:ada/own')
    monkeypatch.setenv('HF_TOKEN', 'hf_read')
    assert texts('hf:ada/own') == ['a']


@pytest.mark.parametrize(
    'refusal, message',
    [
        ((403, 'Please enable access to public gated repositories'), ': the Hub answered 403: '),
        ((403, 'Please enable access to public gated repositories', 'GatedRepo'), 'terms|licence'),
        ((451, 'Unavailable for legal reasons'), ': the Hub answered 451: '),
        (None, ': the Hub answered 401: '),  # an expired token
    ],
)
def test_the_hub_is_quoted_if_it_refuses(refusal, message, server, monkeypatch):
    server.add('datasets', 'ada/prompts', {'train.parquet': parquet(prompt=['a'])})
    server.add('models', 'ada/m', {'config.json': b'{}'})
    server.refusal = refusal
    if refusal is None:
        monkeypatch.setenv('HF_TOKEN', 'hf_expired')
    said = refusal[1] if refusal else 'Invalid credentials in Authorization header'
    for use in (
        lambda: texts('hf:ada/prompts'),
        lambda: find_folder('ada/m', option='o', holds='h', example='e', files=['*']),
    ):
        with pytest.raises(FileNotFoundError, match=message) as told:
            use()
        assert said in str(told.value) and 'no network' not in str(told.value)
        assert ('renew the token' in str(told.value)) == (refusal is None or refusal[0] == 403)


def test_an_expired_token_is_named_although_an_earlier_listing_serves(server, monkeypatch, caplog):
    server.add('datasets', 'ada/prompts', {'train.parquet': parquet(prompt=['a'])})
    assert texts('hf:ada/prompts') == ['a']
    monkeypatch.setenv('HF_TOKEN', 'hf_expired')
    assert texts('hf:ada/prompts') == ['a']
    assert 'answered 401: Invalid credentials' in caplog.text and 'as of its commit' in caplog.text


@pytest.mark.parametrize(
    'file, split',
    [
        ('data/train-00000-of-00001.parquet', 'train'),
        ('default/test/0000.parquet', 'test'),
        ('validation.parquet', 'validation'),
    ],
)
def test_the_split_of_a_file(file, split):
    assert hub_prompts._split(file) == split and hub_prompts.of_split([file], split, 'n') == [file]


def test_splits_of_similar_names_stay_apart():
    files = [f'data/{split}-00000-of-00001.parquet' for split in ('test', 'test_unique')]
    files += [f'default/{split}/0000.parquet' for split in ('valid', 'valid-2', 'partial-train')]
    for file, split in zip(files, ('test', 'test_unique', 'valid', 'valid-2', 'partial-train')):
        assert hub_prompts.of_split(files, split, 'hf:a/b') == [file]
    with pytest.raises(ValueError, match="there is no split 'train'.*partial-train"):
        hub_prompts.of_split(files, 'train', 'hf:a/b')  # the Hub did not convert it whole
    assert hub_prompts.of_split(['small/train/of_2024.parquet'], 'train', 'n')
