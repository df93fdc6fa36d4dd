"""Keys of densegrpo_jax.search, which spends a budget on better images of given prompts."""

from __future__ import annotations

from densegrpo_jax.config.key import MACHINE, choice, number, part, positive, switch, whole
from densegrpo_jax.core.kernels import KERNELS
from densegrpo_jax.core.particles import SCHEMES

SEARCH = {
    'method': choice(
        'pg', 'How to search (docs/search.md).', ('best_of_n', 'smc', 'svdd', 'pg', 'psi', 'refine')
    ),
    'nfe': whole(240, 'Network evaluations a prompt.', high=10_000_000),
    'prompts': whole(4, 'Searched together.', kind=MACHINE),
    'particles': whole(0, 'K of pg (0: 4) and psi (0: what half of the budget buys).', 0),
    'candidates': whole(4, 'M of svdd and refine.'),
    'designs': whole(
        0, 'B of refine; 0: at most 4, as many as leave half of the budget for rounds.', 0
    ),
    'chains': whole(0, 'Of psi; 0: at most 4.', 0),
    'from_level': number(
        0.6, "Noise level that refine's rounds begin at: the nearest of the grid.", 0, 1
    ),
    'kernel': part(
        '',
        "Of the sampler; '': rollout.kernel; 'ode': without noise, for best_of_n.",
        ('', *KERNELS),
    ),
    'every': whole(1, 'Weigh every n-th state on the way.'),
    # Temperatures are in units of the reward's spread within a prompt, measured on first samples.
    'temperature': positive(
        0.5, "Of the target of smc, pg and psi, in units of the reward's spread."
    ),
    'beta': number(0.0, "The same in the reward's own units; 0: as search.temperature says.", 0),
    'alpha': number(0.25, 'Temperature of the choice among candidates; 0: the best.', 0),
    'selection': positive(0.5, "Temperature of the designs' selection between refine's rounds."),
    'incremental': switch(False, 'refine: select by what a round gained.'),
    'keep_best': switch(True, 'refine: the best design so far stays one of the set.'),
    'backward': switch(False, 'pg: draw the ancestors of the path that is kept anew.'),
    'gradient': switch(False, 'smc, psi: follow the gradient of a differentiable reward.'),
    'step_size': positive(0.5, "Of psi's chain.", 4),
    'scheme': choice('systematic', 'Of resampling in smc and psi.', SCHEMES),
    'threshold': number(
        0.5, 'smc, psi: resample where the ESS is below this share of K; 0: always.', 0, 1
    ),
    'potential': choice('difference', 'Of smc (FK steering).', ('difference', 'max', 'sum')),
}
