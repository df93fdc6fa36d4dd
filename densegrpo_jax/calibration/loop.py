"""Exploration-space calibration of a configuration, after Algorithm 1 of DenseGRPO (Sec. 4.2): the
loop around `core/calibration.py`.

Every iteration samples N trajectories of the base policy with the current psi, computes the gains
of the total reward, counts their signs at every trained transition and moves psi. Everything that
an iteration depends on is in the file that the previous one wrote, so a stopped calibration ends
with the same bits as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import pathlib

import numpy as np
from absl import logging
from jax.sharding import Mesh

from densegrpo_jax.calibration.figure import draw
from densegrpo_jax.config import identity
from densegrpo_jax.config.method import kernel_of
from densegrpo_jax.config.moving_keys import UNMOVED
from densegrpo_jax.config.plan_keys import AS_TRAJECTORY
from densegrpo_jax.config.reads import WARN
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.core.calibration import calibrate_step, count_gains, has_settled
from densegrpo_jax.core.dense_reward import state_rewards
from densegrpo_jax.data.prompts import Prompt, PromptSet
from densegrpo_jax.data.sampler import prompts_for_step
from densegrpo_jax.rewards.composite import TOTAL
from densegrpo_jax.rewards.scorer import Scorer
from densegrpo_jax.runtime.mesh import batch_shards, check_batch
from densegrpo_jax.runtime.outputs import claim
from densegrpo_jax.runtime.paths import foreign
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.runtime.streams import STREAM_CALIBRATION, key_data, stream_key
from densegrpo_jax.runtime.trees import json_value
from densegrpo_jax.sampling import noise
from densegrpo_jax.sampling.collector import Collector
from densegrpo_jax.sampling.conditioning import content_hash
from densegrpo_jax.sampling.loading import weights_digest
from densegrpo_jax.sampling.sampler import make_rollout
from densegrpo_jax.sampling.schedule import Schedule, make_schedule
from densegrpo_jax.sampling.session import Checked, Session, check, load, start_policy


def run(
    config, workdir: pathlib.Path, out: pathlib.Path, mesh: Mesh, stop: StopRequest
) -> np.ndarray:
    """Calibrates a configuration into the file `out`; result and errors as in `calibrate`.

    Args:
      workdir: holds the conditioning, unless `config.text_cache` names a folder.
    """
    claim(workdir, (), ('text',), hosts=stop.communicator.hosts)
    check_ours(out)
    _check_unused(out)
    checked = check(config, mesh, stop, needs=('train', 'start'))
    check_file(checked, out)
    session = load(checked, [p.text for p in visited_prompts(config, checked.train)], workdir)
    return calibrate(session, out, start_policy(session))


def check_file(checked: Checked, path: pathlib.Path) -> None:
    """Raises the errors of `calibrate` that show before anything is loaded: of `prepare`, and of a
    file of this configuration that is there.
    """
    _, schedule = prepare(checked)
    if path.exists() and not checked.config.lora.init_from:  # its weights are among the settings
        _opened(path, schedule, checked, None)


def check_ours(path: pathlib.Path) -> None:
    """Raises ValueError if the file `path` is there and of another kind, or if the figure beside it
    would replace somebody's.
    """
    if path.exists():
        noise.read(path)
    elif problem := foreign(path.with_suffix('.png')):
        raise ValueError(f'{problem}; the figure of a psi file that was removed goes with it')


def _check_unused(path: pathlib.Path) -> None:
    """Raises ValueError if the file `path` is there and a run beside it has trained with it: more
    iterations would change it, and the run could not continue.
    """
    saved = path.parent / 'checkpoints'
    if path.name == noise.FILE and path.exists() and any(p.name.isdigit() for p in saved.glob('*')):
        raise ValueError(
            f'{path} is the noise of the run in that folder, which has checkpoints: give another '
            f'--workdir, or --out=FILE (a copy of {path.name} goes on from there)'
        )


def calibrate(
    session: Session, path: pathlib.Path, policy: dict | None, *, used: bool = False
) -> np.ndarray:
    """Computes psi, or continues or uses the file at `path`; writes the figure beside it.

    Calibration starts from `rollout.noise` at `rollout.level`. It ends when psi only oscillates
    (`has_settled`) or after `calibration.iterations`. The result is the mean of psi over the last
    `calibration.window` iterations. With constant step sizes psi does not converge but walks around
    its rest point, within a few steps; the mean of the walk is nearer to that point than the last
    psi. Afterwards the first iteration's prompts and noise are sampled once more with the result,
    so that before and after are paired.

    Args:
      session: with training prompts and the conditioning of `visited_prompts`.
      policy: samples the trajectories; None: the base.
      used: a run has checkpoints that were trained with the result, so a finished file is taken as
        it is: its end may be set otherwise now.

    Returns:
      float32 [T].

    Raises:
      Preempted, RewardError: the last complete iteration is in the file.
      ValueError: the file has other settings, or `prepare` raises it.
    """
    config = session.config
    sized, schedule = prepare(session)
    document = _opened(path, schedule, session, policy)
    if session.own_code == WARN and session.hosts.primary and path.exists():
        noise.write(path, document)  # with the code that it goes on with
    ended = _ended(document, config)
    document['finished'] = (ended or used) and document['after'] is not None
    document = session.stop.communicator.of_primary(document)
    if not document['finished']:
        what = _described(sized, schedule)
        logging.info('calibrating psi on %s into %s: %s', session.folder, path, what)
        with Scorer(session.reward, config.reward_workers) as scorer:
            _iterate(document, path, session, sized, schedule, policy, scorer)
    if session.hosts.primary:
        made = draw(document, path.with_suffix('.png'))
        logging.info(
            '%s: psi = %s; made %s, %s',
            _outcome(document),
            [round(v, 4) for v in document['psi']],
            path,
            made,
        )
    return np.array(document['psi'], np.float32)


def prepare(checked: Checked) -> tuple:
    """The configuration with calibration's prompts and samples, single trajectories and the default
    credit (dense, n = t), and its Schedule. Nothing runs.

    A batch has at most as many rows as one of training, and divides over the mesh.

    Raises:
      ValueError: the kernel adds no noise, sizes do not divide over the mesh, or the start is
        outside the bounds.
    """
    config, mesh = checked.config, checked.mesh
    c, r = config.calibration, config.rollout
    if not kernel_of(config).noisy:
        raise ValueError(
            f'rollout.kernel={r.kernel!r} adds no noise, so there is none to calibrate: use '
            "--config.rollout.kernel='sde' or 'cps'"
        )
    check_batch(mesh, c.prompts * c.group, 'calibration.prompts * calibration.group')
    fitting = [
        p
        for p in range(1, c.prompts + 1)
        if c.prompts % p == 0 and p * c.group % batch_shards(mesh) == 0
    ]
    batch = max(
        (p for p in fitting if p * c.group <= r.prompts_per_batch * r.group), default=fitting[0]
    )
    sized = config.copy_and_resolve_references()
    with sized.unlocked():
        sized.rollout.update(prompts=c.prompts, group=c.group, prompts_per_batch=batch)
        sized.credit.update(default_config().credit)
        sized.update_from_flattened_dict({**AS_TRAJECTORY, **UNMOVED})
        sized.noise.update(psi_path='', interpolate=False, calibrate=False)
    schedule, (low, high) = make_schedule(checked.pipeline, sized), _bounds(config)
    start = schedule.noise_levels[schedule.masks.trained]
    if np.any((start < low) | (start > high)):
        raise ValueError(
            f'calibration starts from rollout.noise={r.noise!r}, level {r.level:g}: '
            f'{start.tolist()}, which is not within the bounds {low:g} to {high:g}; change '
            'calibration.low and calibration.high, or rollout.level'
        )
    return sized, schedule


def prompts_of_iteration(config, train: PromptSet, iteration: int) -> list[Prompt]:
    """The prompts of an iteration, drawn from the training set by a separate stream."""
    count = config.calibration.prompts
    if count > len(train):
        raise ValueError(
            f'calibration.prompts={count}, but the training set has {len(train)} prompts'
        )
    seed = int(np.random.SeedSequence([config.seed, STREAM_CALIBRATION]).generate_state(1)[0])
    return prompts_for_step(train, count, iteration, seed)


def visited_prompts(config, train: PromptSet) -> list[Prompt]:
    """Every prompt that a calibration may use, once each."""
    every = (
        p
        for i in range(config.calibration.iterations)
        for p in prompts_of_iteration(config, train, i)
    )
    return list({p.text: p for p in every}.values())


def settings(checked: Checked, policy: dict | None) -> dict:
    """JSON values that every iteration depends on. They include hashes, because a model's weights,
    a file's prompts or a server's reward may change while its name stays.
    """
    facts = {
        **checked.facts(),
        'policy': weights_digest(policy),
        'prompts of data.train': content_hash(checked.train),
    }
    return identity.record('calibration', checked.config, facts)


def _opened(path: pathlib.Path, schedule: Schedule, checked: Checked, policy: dict | None) -> dict:
    """The document at `path`, or a fresh one, as in all processes but the primary; see
    `noise.geometry` and `settings`.

    Keys: psi [T], the result so far; start [T]; history [I][T], psi after every iteration;
    positives, negatives [I][T]; before, after: rewards [T+1][N] of every state (null if it has
    none), for the same prompts and noise with the start and with the result.
    """
    config, ours = checked.config, settings(checked, policy)
    # the primary process alone writes it; on separate disks others may have one of another run
    if checked.hosts.primary and path.exists():
        document = noise.read(path)
        if found := checked.differences('calibration', document['settings'], ours):
            raise ValueError(
                f'{path} was calibrated with other settings ({identity.told(found)}). Use those, '
                'name another file, or remove it'
            )
        if (had := document['geometry']['calibrated']) != (now := schedule.masks.trained.tolist()):
            steps = lambda on: ''.join('x' if each else '.' for each in on)
            raise ValueError(
                f'{path} was calibrated for the transitions {steps(had)}, and this configuration '
                f'trains {steps(now)} (plan.active). Name another file, or remove it'
            )
        document['settings'] = ours
        return document
    start = np.asarray(schedule.noise_levels, np.float64)
    return {
        'settings': ours,
        'config_hash': hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest()[:12],
        'geometry': noise.geometry(config, schedule.sigmas, schedule.masks),
        'finished': False,
        'settled': False,
        'psi': start.tolist(),
        'start': start.tolist(),
        'history': [],
        'positives': [],
        'negatives': [],
        'before': None,
        'after': None,
    }


def _bounds(config) -> tuple[float, float]:
    """The bounds of psi, which stays a noise level of the kernel."""
    return config.calibration.low, min(config.calibration.high, kernel_of(config).max_level)


def one_step(config, psi, positives, negatives, trained) -> np.ndarray:
    """psi [T] after one iteration by the configuration's rule; as `calibrate_step`."""
    c = config.calibration
    return calibrate_step(
        psi,
        positives,
        negatives,
        trained,
        rule=c.rule,
        eps1=c.eps1,
        eps2=c.eps2,
        z=c.z,
        bounds=_bounds(config),
        min_count=c.min_count,
    )


def _ended(document: dict, config) -> bool:
    c, history = config.calibration, np.array(document['history'])
    if not len(history):
        return False
    moving = history[:, np.array(document['geometry']['calibrated'])]
    settled = has_settled(moving, c.window, c.drift, rule=c.rule, eps2=c.eps2)
    document['settled'] = settled
    return settled or len(history) >= c.iterations


def _iterate(
    document: dict,
    path: pathlib.Path,
    session: Session,
    config,
    schedule: Schedule,
    policy: dict | None,
    scorer: Scorer,
) -> None:
    """Runs iterations until the end, then measures the result; updates `document` and writes it
    after each. config, schedule: from `prepare`.
    """
    c, r, stop, primary = config.calibration, config.rollout, session.stop, session.hosts.primary
    samples = r.prompts * r.group
    rollout_fn = make_rollout(session.pipeline, config, schedule, session.mesh)
    collector = Collector(session, scorer, r.group, r.prompts_per_batch)

    def rewards(iteration: int, psi) -> np.ndarray:
        """float64 [T+1, N]; NaN where a state was not scored, or an image has no score."""
        key = key_data(stream_key(config.seed, STREAM_CALIBRATION, iteration))
        chosen = prompts_of_iteration(config, session.train, iteration)
        levels = np.asarray(psi, np.float32)
        rollouts, pending, *_ = collector.sample(rollout_fn, policy, chosen, key, levels)
        values, valid = collector.scores(pending, samples)
        return np.asarray(
            state_rewards(np.where(valid, values[TOTAL], np.nan), rollouts[0].plan.sources_of()),
            np.float64,
        )

    def keep() -> None:
        if primary:
            noise.write(path, document)

    with ProgressBar(
        c.iterations, start=len(document['history']), label='calibrate', show=primary
    ) as bar:
        while not _ended(document, config):
            iteration = len(document['history'])
            psi = document['history'][-1] if iteration else document['start']
            found = rewards(iteration, psi)
            positives, negatives = count_gains(np.diff(found, axis=0))
            moved = one_step(config, psi, positives, negatives, schedule.masks.trained)
            for name, row in (
                ('history', moved),
                ('positives', positives),
                ('negatives', negatives),
            ):
                document[name].append(row.tolist())
            document['before'] = document['before'] or json_value(found)
            document['psi'] = np.mean(document['history'][-c.window :], axis=0).tolist()
            document['after'] = None
            keep()
            on = schedule.masks.trained
            signs = {'positive': positives[on].sum(), 'negative': negatives[on].sum()}
            bar.update(
                iteration + 1,
                {
                    **{k: v / on.sum() / samples for k, v in signs.items()},
                    'psi_mean': moved[on].mean(),
                },
            )
            stop.communicator.exchange()
        bar.note(f'{_outcome(document)}; sampling the first prompts again, with the result')
        document['after'], document['finished'] = json_value(rewards(0, document['psi'])), True
        keep()


def _outcome(document: dict) -> str:
    return (
        f'{"settled" if document["settled"] else "stopped, not settled,"} after '
        f'{len(document["history"])} iterations'
    )


def _described(config, schedule: Schedule) -> str:
    c, r, (low, high) = config.calibration, config.rollout, _bounds(config)
    steps = ''.join('x' if on else '.' for on in schedule.masks.trained)
    return (
        f'rule {c.rule}, {r.prompts} prompts x {r.group} = {r.prompts * r.group} trajectories an '
        f'iteration, at most {c.iterations}; T = {r.steps}, kernel {r.kernel}, calibrated '
        f'transitions {steps}, psi from {r.noise} {r.level:g} within {low:g} to {high:g}'
    )
