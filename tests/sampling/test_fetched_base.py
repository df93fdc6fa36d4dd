"""A base that is not on this machine: its weights are fetched last, from a Hub on the loopback."""

import json

import pytest

from densegrpo_jax.evaluation.diversity import embedding_folder
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling import session
from densegrpo_jax.sampling.session import check
from densegrpo_jax.training.run import run
from tests.hub import hub
from tests.training.small_run import make_config, one_device


@pytest.fixture(scope='module')
def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.fixture
def server(files, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with hub(monkeypatch, tmp_path, token='') as made:
        made.add('models', 'ada/flux', files)
        yield made


def fetched(server):
    """The files that were asked for."""
    return {path.rpartition('/')[2] for path in server.asked if '/resolve/' in path}


@pytest.mark.parametrize(
    'change, message',
    [
        ({'lora.targets': ('attn.to_qkv_mlp_proj',)}, 'lora.targets match no layer'),
        ({'lora.init_from': 'no_adapters'}, 'no_adapters'),
        ({'model.transformer_file': 'none.safetensors'}, 'none.safetensors.* does not exist'),
        ({'noise.psi_path': 'none.json'}, 'none.json'),
        ({'eval.best': 'none'}, "eval.best='none' is not a score"),
        ({'reward': {'ocr': {'weight': 1.0}}, 'data.eval': 'unquoted.txt'}, 'A sign without'),
        ({'rollout.prompts': 200, 'optim.microbatch': 800}, 'rollout.prompts=200, but data.train'),
        ({'guard.on': True, 'eval.embedding': 'none'}, "eval.embedding='none' is not a folder"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_before_weights_are_fetched(
    change, message, server, tmp_path
):
    (tmp_path / 'unquoted.txt').write_text('A sign without a word\n' * 8)
    config = make_config('ada/flux')
    config.reward = change.pop('reward', config.reward)
    config.update_from_flattened_dict(change)
    with pytest.raises((ValueError, OSError), match=message):
        run(config, tmp_path / 'run', one_device(), StopRequest())
    assert not any(name.endswith('.safetensors') for name in fetched(server))


def test_models_of_other_kinds_are_refused_before_their_weights_are_fetched(server):
    weights = {'transformer/model.safetensors': b'', 'model.safetensors': b''}
    index = {'model_index.json': json.dumps({'_class_name': 'Flux2Pipeline'}).encode()}
    server.add('models', 'ada/flux2', weights | index)
    with pytest.raises(ValueError, match="_class_name is 'Flux2Pipeline', expected one of"):
        check(make_config('ada/flux2'), one_device())
    server.add('models', 'ada/siglip', weights | {'config.json': b'{"model_type": "siglip"}'})
    with pytest.raises(ValueError, match='siglip'):
        embedding_folder('ada/siglip')
    assert fetched(server) == {'model_index.json', 'config.json'}


def test_the_weights_are_fetched_beside_what_was_opened(server, files):
    checked = check(make_config('ada/flux'), one_device(), needs=('train', 'test', 'schedule'))
    held = {str(p.relative_to(checked.folder)) for p in checked.folder.rglob('*') if p.is_file()}
    assert held == files.keys()


def test_a_repository_that_changes_meanwhile_is_named(server):
    checked = session.check_parts(make_config('ada/flux'), one_device())
    server.add('models', 'ada/flux', {'model_index.json': b'{}'})
    with pytest.raises(ValueError, match="'ada/flux' was changed .* meanwhile.*start again"):
        session.check_weights(checked)
