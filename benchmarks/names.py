"""The names of an iteration's phases in results."""

VELOCITY, DECODING, SPARSE, DENSE, UPDATE = PHASES = (
    'one velocity',
    'decode',
    'rollout',
    'rollout with completions',
    'update',
)
