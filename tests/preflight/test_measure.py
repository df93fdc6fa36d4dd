"""What is measured, on a flow of one dimension whose every answer is known."""

import dataclasses
from concurrent.futures import Future

import numpy as np
import pytest

from densegrpo_jax.core.ode_rollout import ode_rollout
from densegrpo_jax.preflight.measure import completed, measure, velocities
from densegrpo_jax.preflight.signal import decided, signals
from densegrpo_jax.runtime.communicator import Communicator
from densegrpo_jax.runtime.stop import Preempted, StopRequest
from densegrpo_jax.search.loop import Scored, Walk
from tests.fake_hosts import on_hosts
from tests.preflight.planted import credits_of
from tests.search.gaussian import gaussian_flow, prompt_keys, velocity


def linear(x):
    return 3 * x


def pictured(x0):
    reward = np.asarray(x0)[..., 0]
    return Scored(reward, images=np.zeros((*reward.shape, 2, 2, 3), np.uint8))


def law(flow):
    """(slopes, standard deviations) of the steps, which are affine plus noise."""
    from densegrpo_jax.core.sde_step import sde_step

    s, s_next = flow.sigmas[:-1], flow.sigmas[1:]

    def step(x):
        x = np.full((flow.steps, 1), x, np.float32)
        v = np.asarray(velocity(x, s[:, None]))
        return sde_step(v, x, s, s_next, flow.levels, noise=0 * x, kernel=flow.kernel)

    zero, one = step(0.0), step(1.0)
    return np.float64(one.mean - zero.mean)[:, 0], np.float64(zero.std).ravel()


def test_what_each_step_decides_is_the_closed_form():
    """r = 3 x_T: transition k decides 9 std_k^2 times the squared slopes of all later steps."""
    flow = gaussian_flow(5, r=linear, kernel='cps', eta=0.6)
    found = measure(flow, prompt_keys(100), 8, (0, 1)).rewards.whole()
    slope, std = law(flow)
    later = np.append(np.cumprod(slope[::-1])[::-1], 1)
    parts = np.array([1.0 * later[0] ** 2, *(std**2 * later[1:] ** 2)])
    shares = parts / parts.sum()
    of = decided(found)
    assert of.total == pytest.approx(9 * parts.sum(), rel=0.1)
    assert of.prompt.value < 0.02
    for one, share in zip((of.noise, *of.steps), shares):
        assert one.low - 0.02 <= share <= one.high + 0.02
    # completions of a Gaussian flow are affine in the state: dense credit is nearly the effect
    signal = signals(found, credits_of(found), flow.stochastic, 'sparse').signal
    assert signal['dense'].low <= 1 <= signal['dense'].high + 0.02
    assert signal['sparse'].high < signal['dense'].low


@pytest.mark.parametrize('n', [0, 1, 2, 3])
def test_completions_are_those_of_training(n):
    flow = gaussian_flow(6)
    p = Walk(flow, prompt_keys(2)).start(3)
    for k in range(6):
        x0, extra = completed(flow, p, n)
        t = min(n or 6 - k, 6 - k)
        rows = np.asarray(p.x).reshape(-1, 1)
        want = ode_rollout(lambda x, s: velocity(x, s[:, None]), rows, flow.sigmas, k, t)
        np.testing.assert_allclose(np.asarray(x0).reshape(-1, 1), want, atol=1e-6)
        assert extra == t - 1
        p, _ = Walk(flow, prompt_keys(2)).advance(p, 0)


def test_velocities_are_those_that_were_counted():
    """Also that no row is evaluated twice."""
    flow = gaussian_flow(5, counted=True)
    found = measure(flow, prompt_keys(2), 3, (0, 2, 1))
    expected = velocities(flow.stochastic, (0, 2, 1))
    assert found.spent.nfe == len(flow.velocity.rows) == 2 * 3 * expected
    # samples, once more, twins but of the last transition, which adds no noise, and three kinds of
    # completions, of which two are one where two steps are left, and all are one before the end
    images = 2 * 3 * (1 + 1 + 4 + 3 * 3 + 2 + 1)
    assert found.spent.images == images
    # with one first noise the completions of state 0 are scored once per prompt, and not counted
    alike = measure(gaussian_flow(5), prompt_keys(2), 3, (0, 2, 1), shared_noise=True).spent
    assert alike.images == images - 3 * 2 * 3


def test_completions_of_equally_many_steps_are_one():
    tables = measure(gaussian_flow(5), prompt_keys(2), 3, (0, 2, 1)).rewards.completions
    np.testing.assert_array_equal(tables[2][3:], tables[0][3:])
    np.testing.assert_array_equal(tables[1][4], tables[0][4])
    assert (tables[2][:3] != tables[0][:3]).any(axis=(1, 2)).all()
    assert (tables[1][:4] != tables[0][:4]).any(axis=(1, 2)).all()


def test_every_state_has_a_picture_of_its_full_completion():
    flow = dataclasses.replace(gaussian_flow(4), score=pictured)
    assert measure(flow, prompt_keys(2), 3, (1, 0)).path.shape[:2] == (2, 5)


def test_a_transition_without_noise_decides_nothing():
    flow = gaussian_flow(5, r=linear)
    assert not flow.stochastic[-1]
    found = measure(flow, prompt_keys(4), 4, (0,)).rewards
    np.testing.assert_array_equal(found.twins[-1], found.again)
    np.testing.assert_array_equal(found.again, found.terminal)
    assert decided(found).steps[-1].value == 0


def test_a_stop_of_one_process_ends_the_wait_of_the_other():
    """An evaluation that one process does not begin never ends: it runs on the devices of all."""
    flow = dataclasses.replace(gaussian_flow(1), velocity=lambda x, k: Future())

    def work(hosts):
        stop = StopRequest(Communicator(hosts))
        if hosts.primary:
            stop.signal_name = 'SIGTERM'
            stop.check()
        measure(flow, prompt_keys(2), 3, (0,), stop.wait)

    assert [type(end) for end in on_hosts(work)] == [Preempted, Preempted]


def test_an_image_without_a_score_is_nan():
    flow = gaussian_flow(4, r=lambda x: np.where(x > 1, -np.inf, x))
    found = measure(flow, prompt_keys(8), 8, (0,)).rewards
    assert np.isnan(found.terminal).any() and np.isfinite(found.terminal).any()
    assert not np.isinf(np.concatenate([found.twins.ravel(), found.completions[0].ravel()])).any()


def test_one_noise_for_all_samples_of_a_prompt():
    flow = gaussian_flow(4, r=linear, eta=0.3)
    found = measure(flow, prompt_keys(40), 6, (0,), shared_noise=True).rewards.whole()
    apart = decided(measure(flow, prompt_keys(40), 6, (0,)).rewards.whole())
    together = decided(found)
    assert together.noise.low < 0 < together.noise.high < apart.noise.value
    np.testing.assert_array_equal(np.ptp(found.completions[0][0], axis=1), 0)
