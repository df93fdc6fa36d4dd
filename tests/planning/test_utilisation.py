"""The time of an iteration at the devices' peak."""

import dataclasses

import jax
import pytest

from densegrpo_jax.networks import attention
from densegrpo_jax.planning import utilisation
from densegrpo_jax.planning.chips import CHIPS
from densegrpo_jax.planning.flops import count_flops
from densegrpo_jax.planning.work import Work
from densegrpo_jax.sampling.process_reward import ProcessReward
from densegrpo_jax.sampling.session import check
from tests.meshes import data_mesh
from tests.training.small_run import make_config


@pytest.fixture
def checked(tmp_path):
    config = make_config('builtin:tiny', **{'optim.microbatch': 8, 'rollout.prompts_per_batch': 4})
    return check(config, data_mesh(2))


def test_it_is_the_networks_operations_over_those_of_all_devices(checked, monkeypatch):
    monkeypatch.setattr(utilisation, 'chip_of', lambda kind: ('h100', CHIPS['h100']))
    config, pipeline = checked.config, checked.pipeline
    shapes = pipeline.abstract_params(['transformer', 'vae'])
    size = config.model.height, config.model.width
    latent = lambda rows: jax.ShapeDtypeStruct((rows, *pipeline.latent_shape(*size)), 'float32')

    def velocity(base, text, x):
        return pipeline.velocity_fn(base, None, text, config.model.guidance, *size)(
            x, jax.numpy.full(len(x), 0.5)
        )

    network = count_flops(
        velocity, shapes['transformer'], pipeline.conditioning_shapes(1), latent(1)
    )
    decoding = count_flops(lambda p, z: pipeline.decode(p, z, *size), shapes, latent(1))
    # 16 samples: 3 steps, completions of 2 and 1, 3 completed states and the image itself; 2
    # trained transitions, forward and back
    samples, steps = 16, 3
    images = steps + 1
    least = samples * ((3 + 2 + 1) * network + (images - 1) * decoding + 2 * 2 * network)
    most = samples * ((3 + 2 + 1) * network + images * decoding + 2 * 2 * network)
    seconds = utilisation.seconds_at_peak(checked)
    # the adapters' own products add a little
    assert least <= seconds * 2 * CHIPS['h100'].flops <= 1.1 * most


def test_the_reward_inside_the_rollouts_is_not_made_again(checked, monkeypatch):
    monkeypatch.setattr(utilisation, 'chip_of', lambda kind: ('h100', CHIPS['h100']))
    given = []
    monkeypatch.setattr(utilisation, 'phases', lambda *args: given.append(args) or {})
    reward = checked.reward
    vars(checked)['process_reward'] = ProcessReward(checked.mesh, reward)
    utilisation.seconds_at_peak(checked)
    assert given[0][-1] is reward


def test_devices_without_a_known_peak_have_none(checked, monkeypatch):
    assert utilisation.seconds_at_peak(checked) is None  # a CPU
    monkeypatch.setattr(utilisation, 'phases', lambda *args: 1 / 0)
    assert utilisation.seconds_at_peak(checked) is None


def test_what_cannot_be_counted_is_a_warning(checked, monkeypatch, caplog):
    monkeypatch.setattr(utilisation, 'chip_of', lambda kind: ('h100', CHIPS['h100']))
    monkeypatch.setattr(utilisation, 'phases', lambda *args: 1 / 0)
    assert utilisation.seconds_at_peak(checked) is None
    assert 'utilisation is not measured (ZeroDivisionError' in caplog.text


def test_operations_are_those_of_the_mathematics_whatever_kernel_computes_them(checked):
    """A fused kernel shows none of its products, or those of one block."""
    pipeline, shapes = checked.pipeline, checked.pipeline.abstract_params(['transformer', 'vae'])
    fused = pipeline.transformer.clone(attend=attention.cudnn)
    modules = {**pipeline.modules, 'transformer': fused}
    found = [
        Work(checked.config, each, shapes, None).velocity(2)
        for each in (pipeline, dataclasses.replace(pipeline, modules=modules))
    ]
    assert found[0] == found[1] > 0
