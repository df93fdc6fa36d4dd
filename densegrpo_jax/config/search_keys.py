"""Keys of densegrpo_jax.search, which spends a budget on better images of given prompts."""

from __future__ import annotations

from densegrpo_jax.config.key import MACHINE, choice, number, part, positive, switch, whole
from densegrpo_jax.core.kernels import KERNELS
from densegrpo_jax.core.particles import SCHEMES

SEARCH = {
    'method': choice(
        'pg', 'How to search (docs/search.md).', ('best_of_n', 'smc', 'svdd', 'pg', 'psi', 'refine')
    ),
    'nfe': whole(240, 'Network evaluations per prompt.', high=10_000_000),
    'prompts': whole(4, 'Searched together.', kind=MACHINE),
    'particles': whole(0, 'K of pg (0: 4) and psi (0: what half of the budget pays for).', 0),
    'candidates': whole(4, 'M of svdd and refine.'),
    'designs': whole(
        0, 'B of refine; 0: at most 4, as many as leave half of the budget for rounds.', 0
    ),
    'chains': whole(0, 'Chains of psi; 0: at most 4.', 0),
    'from_level': number(
        0.6, "Noise level at which refine's rounds begin; the nearest on the grid.", 0, 1
    ),
    'kernel': part(
        '',
        "Kernel of the sampler; '': rollout.kernel; 'ode': without noise, for best_of_n.",
        ('', *KERNELS),
    ),
    'every': whole(1, 'Weigh every n-th state on the way.'),
    # Temperatures are in units of the reward's spread within a prompt, measured on first samples.
    'temperature': positive(
        0.5, "Temperature of the target of smc, pg and psi, in units of the reward's spread."
    ),
    'beta': number(0.0, "The same in the reward's own units; 0: use search.temperature.", 0),
    'alpha': number(0.25, 'Temperature of the choice among candidates; 0: the best.', 0),
    'selection': positive(0.5, "Temperature of the designs' selection between refine's rounds."),
    'incremental': switch(False, "refine: select by a round's gain."),
    'keep_best': switch(True, 'refine: the best design so far stays in the set.'),
    'backward': switch(False, 'pg: redraw the ancestors of the kept path.'),
    'gradient': switch(False, 'smc, psi: follow the gradient of a differentiable reward.'),
    'step_size': positive(0.5, "Step size of psi's chain.", 4),
    'scheme': choice('systematic', 'Resampling scheme of smc and psi.', SCHEMES),
    'threshold': number(
        0.5, 'smc, psi: resample if the ESS is below this share of K; 0: always.', 0, 1
    ),
    'potential': choice(
        'difference', 'Potential of smc (FK steering).', ('difference', 'max', 'sum')
    ),
}

_TARGET = ('search.temperature', 'search.beta', 'search.every')
_RESAMPLING = ('search.scheme', 'search.threshold', 'search.gradient')
_CANDIDATES = ('search.candidates', 'search.alpha')
_ROUNDS = (
    *(f'search.{name}' for name in ('designs', 'from_level', 'selection')),
    *(f'search.{name}' for name in ('incremental', 'keep_best')),
)
# What each method of search reads, beside the budget and the kernel.
SEARCH_HEEDED = {
    'best_of_n': (),
    'smc': (*_TARGET, *_RESAMPLING, 'search.potential'),
    'svdd': _CANDIDATES,
    'pg': (*_TARGET, 'search.particles', 'search.backward'),
    'psi': (
        *_TARGET,
        *_RESAMPLING,
        *(f'search.{name}' for name in ('particles', 'chains', 'step_size')),
    ),
    'refine': (*_CANDIDATES, *_ROUNDS),
}
