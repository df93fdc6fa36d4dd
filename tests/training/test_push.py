"""Exports on a Hub of the loopback interface: what is asked before, what is sent and refused."""

import pytest

from densegrpo_jax.runtime.files import RECORD
from densegrpo_jax.runtime.outputs import claim
from densegrpo_jax.sampling.push import check_push, push
from tests.hub import hub

FILES = {
    'README.md': '---\nbase_model: ada/base\n---\n# A card\n',
    'config.json': '{}',
    'pytorch_lora_weights.safetensors': 'weights',
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub(monkeypatch, tmp_path / 'cache') as made:
        yield made


@pytest.fixture
def folder(tmp_path):
    """An export, with a stranger's file in its folder."""
    out = tmp_path / 'out'
    claim(out, [*FILES, 'vae'])
    for name, text in {**FILES, 'vae/config.json': '{}', 'own.txt': 'mine'}.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    return out


@pytest.mark.parametrize('public', [False, True])
def test_one_commit_brings_the_files_of_the_export_and_no_others(server, folder, public):
    target = check_push('ada/flux', public)
    assert not server.repositories  # nothing is made before the export is complete
    address = push(target, folder, [*FILES, 'vae', 'absent.png'], 'four updates')
    assert address == f'{server.url}/ada/flux'
    made = server.repositories['models/ada/flux']
    sent = {name: content.decode() for name, content in made.branches['main'].items()}
    assert made.private is not public and made.commits == 1
    assert set(sent) == {*FILES, 'vae/config.json', RECORD}
    assert {name: sent[name] for name in FILES} == FILES


def test_a_second_push_updates_the_repository_that_the_first_made(server, folder):
    push(check_push('lab/flux', False), folder, FILES, 'first')
    (folder / 'config.json').write_text('{"seed": 1}')
    target = check_push('lab/flux', False)
    assert target.there
    push(target, folder, FILES, 'second')
    made = server.repositories['models/lab/flux']
    assert made.commits == 2 and made.branches['main']['config.json'] == b'{"seed": 1}'
    with pytest.raises(ValueError, match='with --public, but that repository is private'):
        check_push('lab/flux', True)
    made.private = False
    with pytest.raises(ValueError, match='without --public, but that repository is public'):
        check_push('lab/flux', False)


@pytest.mark.parametrize('name', ['flux', 'a/b/c', '/flux', 'ada/', 'ada/a b', 'ada/..', 'a/b--c'])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match='expected OWNER/NAME'):
        check_push(name, False)


def test_a_repository_of_somebody_else_stays(server):
    server.add('models', 'ada/flux', {'README.md': b'other'}, private=True)
    with pytest.raises(ValueError, match='a repository of that name, which this command did not'):
        check_push('ada/flux', False)
    with pytest.raises(ValueError, match="does not belong to 'bob'; OWNER may be ada or lab"):
        check_push('bob/flux', False)


@pytest.mark.parametrize(
    'token, message',
    [
        (None, 'this machine has no token of the Hub; run `hf auth login`, or set HF_TOKEN'),
        ('hf_wrong', 'the Hub does not know this token; run `hf auth login` again, or correct'),
        ('hf_read', 'the token of ada may only read'),
    ],
)
def test_tokens_that_will_not_do(server, monkeypatch, token, message):
    if token:
        monkeypatch.setenv('HF_TOKEN', token)
    else:
        monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(ValueError, match=message) as error:
        check_push('ada/flux', False)
    assert 'hf_' not in str(error.value)


def test_what_fails_after_the_export_says_how_to_go_on(server, folder, monkeypatch):
    target = check_push('ada/flux', False)
    later = f'the export is complete in {folder}: `hf upload ada/flux {folder}` sends it'
    server.broken = ('/commit/',)
    with pytest.raises(ValueError, match='the Hub answered with status 500: ') as error:
        push(target, folder, FILES, 'first')
    assert later in str(error.value)
    server.broken = ()
    with pytest.raises(ValueError, match='there is a repository of that name; choose another'):
        push(target, folder, FILES, 'first')
    server.tokens['hf_write'] = ('ada', 'read')
    with pytest.raises(ValueError, match='the token may not write there'):
        push(target._replace(name='ada/other'), folder, FILES, 'first')


def test_no_network_and_offline_mode_are_said(server, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError, match='HF_HUB_OFFLINE is set; unset it'):
        check_push('ada/flux', False)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(ValueError, match='the Hub cannot be reached .*ConnectError'):
        check_push('ada/flux', False)
