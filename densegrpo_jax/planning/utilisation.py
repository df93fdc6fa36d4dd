"""What share of the devices' peak a training uses (MFU): the operations of its networks, counted
before the first iteration, over the operations that the devices could do in its time.
"""

from __future__ import annotations

from absl import logging

from densegrpo_jax.planning.chips import chip_of
from densegrpo_jax.planning.lowering import phases
from densegrpo_jax.sampling.session import Checked

# Phases of an iteration, those that it has; `seconds/iteration` is without others.
MEASURED = ('probe', 'rollout', 'update')


def seconds_at_peak(checked: Checked) -> float | None:
    """Seconds of an iteration whose networks keep all devices at their bfloat16 peak; None if the
    peak is not known (`planning.chips`), or the operations cannot be counted.

    What rematerialisation repeats does not count, nor does what a reward computes.
    """
    mesh = checked.mesh
    found = chip_of(mesh.devices.flat[0].device_kind)
    if found is None:
        return None
    name, chip = found
    try:
        reward = None if checked.process_reward is None else checked.process_reward.reward
        programs = phases(checked.config, checked.pipeline, checked.schedule, mesh, reward)
        measured = [programs[phase] for phase in MEASURED if phase in programs]
        flops = sum(phase.runs * phase.flops for phase in measured)
    except Exception as error:  # noqa: BLE001 (a number for the curves must not end a run)
        said = ' '.join(str(error).split())[:200]
        logging.warning('utilisation is not measured (%s: %s)', type(error).__name__, said)
        return None
    seconds = flops / (mesh.devices.size * chip.flops)
    logging.info(
        'an iteration is %.4g TFLOP of the networks: %.4g s on %d x %s at %.0f TFLOP/s',
        *(flops / 1e12, seconds, mesh.devices.size, name, chip.flops / 1e12),
    )
    return seconds
