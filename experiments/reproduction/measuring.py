"""The configuration of measurements without training."""

from __future__ import annotations

from collections.abc import Mapping

from densegrpo_jax.config.plan_keys import AS_TRAJECTORY
from densegrpo_jax.config.schema import default_config
from densegrpo_jax.config.validation import validate
from densegrpo_jax.core.rollout_plan import state_points, trajectory_plan
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.schedule import Schedule

# The keys of config.credit that say how states are completed, with their values for complete
# completions.
COMPLETE = {
    key: value for key, value in default_config().credit.items() if key.startswith('completion')
}


def with_overrides(config, overrides: Mapping):
    """A checked copy of a configuration with some keys changed; an unknown key is an error."""
    changed = config.copy_and_resolve_references().lock()
    try:
        changed.update_from_flattened_dict(dict(overrides))
    except (KeyError, AttributeError) as error:
        raise ValueError(
            f'a method changes {sorted(overrides)}, which are not all keys of a configuration: '
            f'{error}'
        ) from None
    validate(changed)
    return changed


def measured_config(config, stop: StopRequest, overrides: Mapping):
    """The configuration with single trajectories and dense credit from complete completions, then
    with `overrides`.

    Raises:
      ValueError: several processes were started, or `validate` raises it.
    """
    if (count := stop.communicator.hosts.count) > 1:
        raise ValueError(f'this measures in one process, but {count} were started')
    return with_overrides(
        config,
        {
            'credit.rule': 'dense',
            **AS_TRAJECTORY,
            **{f'credit.{key}': value for key, value in COMPLETE.items()},
            **overrides,
        },
    )


def every_state_completed(schedule: Schedule) -> Schedule:
    """The schedule that scores all T + 1 states by complete completions, whatever the credit rule
    needs.
    """
    every = state_points(range(len(schedule.sigmas)))
    return schedule._replace(plan=trajectory_plan(schedule.masks, every))
