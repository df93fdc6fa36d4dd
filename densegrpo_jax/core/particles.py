"""Particles: weighted sets of latents, for search at inference.

Weights are in log space. A row of K log weights belongs to one prompt; a particle with log weight
-inf is never chosen. Use `vmap` to apply functions of one row to many. All randomness is passed in,
as keys or as standard normal noise.

Sources: FK steering (arXiv 2501.06848), particle Gibbs (Andrieu et al. 2010; arXiv 2507.08390), the
Psi-Sampler (arXiv 2506.01320), SVDD (arXiv 2408.08252), refinement (arXiv 2502.14944). Resampling:
Chopin and Papaspiliopoulos, An Introduction to Sequential Monte Carlo, ch. 9.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from densegrpo_jax.core.sde_step import at_least_f32

SCHEMES = ('multinomial', 'systematic', 'ssp')


def log_normalised(logw: Float[ArrayLike, '*batch K']) -> Float[Array, '*batch K']:
    """log W with sum W = 1, from unnormalised log weights. NaN if all K are -inf, which the caller
    must exclude.
    """
    return jax.nn.log_softmax(at_least_f32(logw), axis=-1)


def ess(logw: Float[ArrayLike, '*batch K']) -> Float[Array, '*batch']:
    """Effective sample size 1 / sum W^2: 1 if one particle has all weight, K for equal weights."""
    return 1 / jnp.sum(jnp.exp(2 * log_normalised(logw)), axis=-1)


def resample(
    key: PRNGKeyArray, logw: Float[ArrayLike, ' K'], scheme: str = 'systematic'
) -> Int[Array, ' K']:
    """Ancestors of K equally weighted particles; E[times that j is chosen] = K W_j.

    Args:
        key: a typed key.
        logw: log weights, at least one finite.
        scheme: 'multinomial' (K independent draws); 'systematic' (one uniform number: each particle
            is chosen floor or ceil(K W_j) times); 'ssp' (Srinivasan's sampling process, Gerber,
            Chopin and Whiteley 2019: floor or ceil too, and consistent in every order of the
            particles). For equal weights the last two are the identity.

    Returns:
        int32 [K], increasing for 'systematic' and 'ssp'.

    Raises:
        ValueError: an unknown scheme.
    """
    logw = at_least_f32(logw)
    count = logw.shape[0]
    # Relative to the largest weight: equal weights are then exactly 1, and their sums exact.
    weights = jnp.exp(logw - jnp.max(logw))
    if scheme == 'ssp':
        return _ssp(jax.random.uniform(key, (count - 1,), weights.dtype), weights)
    if scheme == 'multinomial':
        unit = jax.random.uniform(key, (count,), weights.dtype) * count
    elif scheme == 'systematic':
        index = jnp.arange(count, dtype=weights.dtype)
        unit = index + jax.random.uniform(key, (), weights.dtype)
        # index + u may round up to index + 1
        unit = jnp.minimum(unit, jnp.nextafter(index + 1, jnp.zeros_like(index)))
    else:
        raise ValueError(f'unknown scheme {scheme!r}; expected one of {SCHEMES}')
    return _inverse(unit, weights)


def conditional_resample(
    key: PRNGKeyArray, logw: Float[ArrayLike, ' K'], pinned: int = 0
) -> Int[Array, ' K']:
    """Multinomial resampling given that particle `pinned` is its own ancestor: a[pinned] = pinned,
    the others are independent draws from W (conditional SMC, Andrieu et al. 2010).

    The pinned particle may have weight 0; then no other particle chooses it.
    """
    return resample(key, logw, 'multinomial').at[pinned].set(pinned)


def ancestor_path(ancestors: Int[ArrayLike, 'T K'], last: Int[ArrayLike, '']) -> Int[Array, ' T+1']:
    """The slots of one particle's path, from its slot `last` at the end: path[T] = last,
    path[k] = ancestors[k, path[k + 1]].

    Args:
        ancestors: row k holds, for each particle of state k + 1, its ancestor's slot at state k.
        last: the slot at state T.
    """

    def back(slot, row):
        slot = row[slot]
        return slot, slot

    last = jnp.asarray(last, jnp.int32)
    _, path = jax.lax.scan(back, last, jnp.asarray(ancestors, jnp.int32), reverse=True)
    return jnp.append(path, last)


def backward_log_weights(
    carried: Float[ArrayLike, ' K'],
    x_next: Float[ArrayLike, '*shape'],
    mean: Float[ArrayLike, 'K *shape'],
    std: Float[ArrayLike, ''],
) -> Float[Array, ' K']:
    """Log weights for redrawing the ancestor of a path's next state (backward sampling; Whiteley
    2010, Lindsten and Schon 2013).

    Given the path from x_next on, particle j of state k is its ancestor with probability
    proportional to w_j G(x_j, x_next) N(x_next; mean_j, std^2). If w_j ends with the factor
    exp(r(x_j) / alpha), the potential of the step, G = exp((r(x_next) - r(x_j)) / alpha), cancels
    it: their product then depends on j no longer.

    Args:
        carried: [K] log weights at state k without that factor.
        x_next: the chosen path's next state. mean: [K, ...] of the kernel from each particle.
        std: of the kernel, > 0: after a deterministic step only the ancestor itself is possible.
    """
    residual = (at_least_f32(x_next) - at_least_f32(mean)) / std
    log_density = -0.5 * jnp.sum(residual**2, axis=tuple(range(1, residual.ndim)))
    # a particle of weight 0 may have no density either, and a NaN would be drawn
    known = (at_least_f32(carried) > -jnp.inf) & ~jnp.isnan(log_density)
    return jnp.where(known, at_least_f32(carried) + log_density, -jnp.inf)


def pcnl_proposal(
    x: Float[ArrayLike, 'B *shape'],
    noise: Float[ArrayLike, 'B *shape'],
    gradient: Float[ArrayLike, 'B *shape'] | None,
    step_size: float,
) -> Float[Array, 'B *shape']:
    """Proposal of the preconditioned Crank-Nicolson Langevin chain for the density N(x; 0, I)
    exp(l(x)) (Cotter et al. 2013, arXiv 1202.0709):

        x' = rho x + sqrt(1 - rho^2) (z + sqrt(eps) / 2 g),    rho = (1 - eps/4) / (1 + eps/4)

    Args:
        x: the chain's state. noise: standard normal z.
        gradient: g = grad l(x); None: the chain without a gradient (pCN), for black-box l.
        step_size: eps in (0, 4]. At 4, rho = 0: independent draws.
    """
    rho = _rho(step_size)
    x, drift = at_least_f32(x), at_least_f32(noise)
    if gradient is not None:
        drift = drift + math.sqrt(step_size) / 2 * at_least_f32(gradient)
    return rho * x + math.sqrt(1 - rho**2) * drift


def pcnl_log_accept(
    x: Float[ArrayLike, 'B *shape'],
    proposed: Float[ArrayLike, 'B *shape'],
    value: Float[ArrayLike, ' B'],
    value_proposed: Float[ArrayLike, ' B'],
    gradient: Float[ArrayLike, 'B *shape'] | None,
    gradient_proposed: Float[ArrayLike, 'B *shape'] | None,
    step_size: float,
) -> Float[Array, ' B']:
    """Log of the Metropolis-Hastings ratio of `pcnl_proposal`: J(x' -> x) - J(x -> x') with

        J(a -> b) = l(a) - eps/8 |g(a)|^2 + sqrt(eps)/2 <(b - rho a) / sqrt(1 - rho^2), g(a)>

    The proposal itself leaves N(0, I) invariant, so the ratio stays of order one in any dimension.

    Args:
        x, proposed: as in the proposal. value, value_proposed: l there; -inf is never accepted.
        gradient, gradient_proposed: g there; both None without gradient.
        step_size: eps.

    Returns:
        [B]; accept where log u is below it.
    """
    here, there = at_least_f32(value), at_least_f32(value_proposed)
    if gradient is None:
        return there - here
    rho = _rho(step_size)
    scale = math.sqrt(step_size) / 2 / math.sqrt(1 - rho**2)

    def rest(a, b, g):
        a, b, g = at_least_f32(a), at_least_f32(b), at_least_f32(g)
        axes = tuple(range(1, g.ndim))
        return scale * jnp.sum((b - rho * a) * g, axes) - step_size / 8 * jnp.sum(g**2, axes)

    return there - here + rest(proposed, x, gradient_proposed) - rest(x, proposed, gradient)


def proposal_log_ratio(
    x_next: Float[ArrayLike, 'B *shape'],
    mean: Float[ArrayLike, 'B *shape'],
    std: Float[ArrayLike, ' B'],
    shift: Float[ArrayLike, 'B *shape'],
) -> Float[Array, ' B']:
    """log p(x') / q(x') of x' drawn from q = N(mean + shift, std^2), where p = N(mean, std^2) is
    the model's kernel: the correction of a guided proposal's weight.

        log p/q = (-<x' - mean, shift> + |shift|^2 / 2) / std^2

    With shift = std^2 g / alpha this is -<x' - mean, g> / alpha + std^2 |g|^2 / (2 alpha^2). It is
    0 where std is 0; there the shift must be 0 too.
    """
    x_next, mean, shift = at_least_f32(x_next), at_least_f32(mean), at_least_f32(shift)
    std = at_least_f32(std)
    axes = tuple(range(1, shift.ndim))
    exponent = jnp.sum(shift * (mean - x_next + shift / 2), axes)
    return jnp.where(std > 0, exponent / jnp.where(std > 0, std, 1) ** 2, 0)


def renoise(
    x0: Float[ArrayLike, 'B *shape'], s: Float[ArrayLike, ''], noise: Float[ArrayLike, 'B *shape']
) -> Float[Array, 'B *shape']:
    """x_s = (1 - s) x_0 + s z: a clean latent renoised to noise level s, with the path's marginal.
    s = 0 changes nothing.
    """
    s = jnp.asarray(s)
    return (1 - s) * at_least_f32(x0) + s * at_least_f32(noise)


def best_candidate(
    key: PRNGKeyArray, scores: Float[ArrayLike, '*batch M'], alpha: float
) -> Int[Array, '*batch']:
    """The chosen one of M candidates: drawn with probability softmax(score / alpha), or the best
    for alpha = 0 (SVDD; the first of equals). A score of -inf is never chosen.
    """
    scores = at_least_f32(scores)
    if alpha == 0:
        return jnp.argmax(scores, axis=-1)
    return jax.random.categorical(key, scores / alpha, axis=-1)


def _rho(step_size: float) -> float:
    if not 0 < step_size <= 4:
        raise ValueError(f'step_size is {step_size}; expected a number above 0 and at most 4')
    return (1 - step_size / 4) / (1 + step_size / 4)


def _inverse(unit, weights):
    """For each of `unit` in [0, K), the particle in whose share of the summed weights it falls;
    never a particle without weight.
    """
    sums = jnp.cumsum(weights)
    position = unit * (sums[-1] / len(weights))
    position = jnp.minimum(position, jnp.nextafter(sums[-1], jnp.zeros_like(sums[-1])))
    return jnp.searchsorted(sums, position, side='right').astype(jnp.int32)


def _ssp(uniforms, weights):
    """Srinivasan's sampling process: of two particles with fractional shares, one takes from the
    other until it is whole or the other is used up. The particle that is not done meets the next.
    """
    count = len(weights)
    shares = weights * (count / jnp.sum(weights))
    children = jnp.floor(shares)
    if count > 1:
        fractions = shares - children

        def meet(carry, given):
            children, (i, a), (j, b) = carry  # two particles and what is left of their fractions
            uniform, following = given
            up, down = jnp.minimum(b, 1 - a), jnp.minimum(a, 1 - b)
            swap = uniform * (up + down) < up  # j is the one that gains
            pick = lambda first, second: jnp.where(swap, second, first)
            (i, j), (a, b), gain = (
                (pick(i, j), pick(j, i)),
                (pick(a, b), pick(b, a)),
                pick(up, down),
            )
            full = b >= 1 - a
            children = children.at[i].add(jnp.where(full, 1, 0))
            new = (following, fractions[following])
            first = jax.tree.map(lambda x, y: jnp.where(full, x, y), new, (i, a + gain))
            second = jax.tree.map(lambda x, y: jnp.where(full, x, y), (j, b - gain), new)
            return (children, first, second), jnp.where(full, j, i)

        following = jnp.minimum(jnp.arange(2, count + 1), count - 1)
        pair = [(jnp.array(i), fractions[i]) for i in (0, 1)]
        (children, *_), left = jax.lax.scan(meet, (children, *pair), (uniforms, following))
        # The fractions sum to a whole number: the last particle has 0 or, up to rounding, 1.
        children = children.at[left[-1]].add(count - jnp.sum(children))
    ends = jnp.cumsum(children)
    return jnp.searchsorted(ends, jnp.arange(count), side='right').astype(jnp.int32)
