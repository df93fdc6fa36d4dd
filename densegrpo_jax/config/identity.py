"""What does not change which model or reward a configuration has."""

from __future__ import annotations

import json

from densegrpo_jax.config.run_keys import REWARD_MACHINE_OPTIONS

FREE_MODEL_KEYS = ('attention', 'remat')  # how the same network is compiled


def identifying(config) -> dict:
    """The configuration as JSON values, without keys of the model and of rewards that change
    neither which they are.
    """
    c = json.loads(config.to_json_best_effort())
    without = lambda options, free: {
        key: value for key, value in options.items() if key not in free
    }
    of_rewards = lambda spec: {
        name: without(options, REWARD_MACHINE_OPTIONS) for name, options in spec.items()
    }
    c['eval']['panel'] = of_rewards(c['eval']['panel'])
    return {**c, 'model': without(c['model'], FREE_MODEL_KEYS), 'reward': of_rewards(c['reward'])}
