"""Processes of a run that were started otherwise are refused, before they wait for each other."""

import shutil

from densegrpo_jax.config import identity
from densegrpo_jax.data.prompts import Prompt, PromptSet
from densegrpo_jax.evaluation.evaluate import evaluate
from densegrpo_jax.evaluation.panel import Policy
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling import alike
from densegrpo_jax.sampling.session import check
from tests import miniature
from tests.fake_hosts import on_hosts
from tests.training.small_run import make_config, one_device

NEEDS = ('train', 'test', 'schedule', 'start')


def started(*configs, also=({}, {}, {})):
    """What `check` does in processes with these configurations: None or an error."""

    def on_host(hosts):
        config, stop = configs[hosts.index], StopRequest(Communicator(hosts))
        check(config, one_device(), stop, needs=NEEDS, also=also[hosts.index])

    return on_hosts(on_host, len(configs))


def test_places_may_differ(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / 'copy')
    elsewhere = {'text_cache': str(tmp_path), 'reward_workers': 3}
    assert started(make_config(folder), make_config(copy, **elsewhere)) == [None, None]


def test_what_differs_is_named_in_all_processes(folder, tmp_path):
    (tmp_path / 'prompts.txt').write_text('A sign\nA mug\n')
    theirs = {'optim.learning_rate': 0.5, 'data.eval': str(tmp_path / 'prompts.txt')}
    alike_, _, other = found = started(
        make_config(folder), make_config(folder), make_config(folder, **theirs)
    )
    assert [type(error) for error in found] == [ValueError] * 3
    assert str(alike_) == str(other)
    assert 'process 2 of the run was started otherwise than process 0' in str(other)
    assert 'data.eval: ' in str(other) and 'optim.learning_rate: 0.5, there ' in str(other)
    assert str(other).count('prompts of data.eval') == 1


def test_a_checkpoint_that_each_has_found_for_itself_is_compared(folder):
    """A run that goes on saves and removes checkpoints."""
    both, found = [make_config(folder)] * 2, ({'--checkpoint': 100}, {'--checkpoint': 120})
    assert started(*both, also=found[:1] * 2) == [None, None]
    for error in started(*both, also=found):
        assert '(--checkpoint: 120, there 100)' in str(error)


def test_an_evaluation_compares_the_prompts_of_its_panel(folder, tmp_path, monkeypatch):
    """Every process reads their file; the key is the same."""
    sets = PromptSet((Prompt('a'),)), PromptSet((Prompt('b'),))
    panel = {'eval.panel_prompts': 'panel', 'eval.panel': {'jpeg': {}}}
    configs = [make_config(folder, **panel) for _ in sets]
    of = lambda config: next(own for c, own in zip(configs, sets) if c is config)
    monkeypatch.setattr('densegrpo_jax.evaluation.evaluate.load_panel_prompts', of)

    def on_host(hosts):
        stop = StopRequest(Communicator(hosts))
        evaluate(configs[hosts.index], [Policy('base')], tmp_path, mesh=one_device(), stop=stop)

    for error in on_hosts(on_host):
        assert '(prompts of eval.panel_prompts: ' in str(error)


def test_files_and_code_count_by_their_content(folder, tmp_path, monkeypatch):
    other = miniature.random_flux(tmp_path / 'other', seed=5)
    for error in started(make_config(folder), make_config(other)):
        assert f'({identity.BASE}: ' in str(error)
    digests = iter('ab')
    monkeypatch.setattr(alike, 'package_digest', lambda: next(digests))
    for error in started(make_config(folder), make_config(folder)):
        assert '(code of densegrpo_jax: ' in str(error)


def test_where_a_reward_is_computed_may_differ(folder):
    config = make_config(folder)
    config.reward = {'far': {'kind': 'remote', 'urls': ('http://a:1',), 'weight': 2.0}}
    keys = identity.common(config)
    assert keys['reward.far.weight'] == 2.0 and keys['eval.groups'] == 1
    assert not keys.keys() & {'reward.far.urls', 'model.path', 'text_cache', 'reward_workers'}
