"""Keys of rollouts that drift along the gradient of a process reward (Euphonium)."""

from __future__ import annotations

from densegrpo_jax.config.key import Key, choice, number, positive, switch, text, whole

SOURCES = ('none', 'probe', 'value', 'spsa')
IMAGES = ('value', 'spsa')  # sources that decode images and score them on the devices

GUIDE: dict[str, Key] = {
    'source': choice(
        'none',
        "The process reward that rollouts drift along (model.guidance is something else): 'probe', "
        "a ridge regression on the base network's hidden states (densegrpo_jax.process_reward); "
        "'value', the reward of the predicted image, with its gradient through decoder and "
        "network; 'spsa', the same with a gradient from differences of rewards. The last two are "
        'for rewards that compute on the devices (docs/euphonium.md).',
        SOURCES,
    ),
    'file': text('', "'probe': the file of densegrpo_jax.process_reward."),
    'scale': number(
        0.16,
        'The drift of a step is this times its variance times the gradient; 1 / (2 β) of '
        'Euphonium, whose λ is η² times this. 0: none.',
        0,
    ),
    'rate': number(
        0.0,
        "A fixed λ instead: the drift is this times the step's length s − s' times the gradient. "
        'With it guide.scale must be 0.',
        0,
    ),
    'steps': Key(
        (),
        'Transitions that drift and whose process reward counts; (): the trained ones in the '
        'second half of the grid.',
        item=int,
    ),
    'share': number(
        1.0,
        'The part of each group that drifts, its first samples; if all of a group drift, the '
        'mean drift cancels in their advantages.',
        0,
        1,
        above=True,
    ),
    'normalise': switch(
        False,
        "Scale every sample's gradient to a root mean square of 1, or of guide.clip. The drift "
        "over the step's std is then guide.scale times that std, or guide.clip times as much.",
    ),
    'clip': number(0.0, 'Largest root mean square of a gradient; 0: none.', 0),
    'spsa_directions': whole(1, "'spsa': random directions, with two images each.", high=1000),
    'spsa_step': positive(0.01, "'spsa': length of the differences, in the clean latent."),
    'samples': whole(5000, 'Rollouts of the base model that a probe is fitted to.', 16),
    'ridge': number(
        0.0, 'Penalty of the fit; 0: the best of several on prompts that are held out.', 0
    ),
}

_DRIFT = tuple(f'guide.{name}' for name in ('scale', 'rate', 'steps', 'share', 'normalise', 'clip'))
PROBE_FIT = ('guide.samples', 'guide.ridge')  # read where a probe is fitted
# The keys that each source reads in a run.
GUIDE_HEEDED: dict[str, tuple[str, ...]] = {
    'none': (),
    'probe': ('guide.file', *_DRIFT),
    'value': _DRIFT,
    'spsa': ('guide.spsa_directions', 'guide.spsa_step', *_DRIFT),
}


def drifts(config) -> bool:
    """Whether rollouts drift."""
    g = config.guide
    return g.source != 'none' and bool(g.scale or g.rate)


def has_guide(config) -> bool:
    """Whether rollouts need the process reward at all; if not, they are those without one."""
    return config.guide.source != 'none' and (drifts(config) or config.credit.process != 'none')
