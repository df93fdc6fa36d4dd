"""Losses: the objective that an update minimises over a batch, and the inputs it needs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from densegrpo_jax.core.clean_samples import CleanSamples, NoisedSamples, best_weights
from densegrpo_jax.core.grpo_loss import LossSums, grpo_loss
from densegrpo_jax.core.guard_loss import guard_loss
from densegrpo_jax.core.list_loss import EFFECTIVE, LOGIT_MAX, list_loss
from densegrpo_jax.core.lists import list_ids, sample_rows
from densegrpo_jax.core.nft_loss import nft_terms
from densegrpo_jax.core.options import keyword_options
from densegrpo_jax.core.pair_loss import pair_loss
from densegrpo_jax.core.roles import EMA, POLICY, REF, Follow, follow_old

TRANSITIONS = 'transitions'  # the batch is `Transitions` of the rollout
CLEAN = 'clean'  # the batch is `NoisedSamples`: final latents with fresh noise

OLD = 'old'  # the policy that sampled, of `nft`

# Fields of a training state other than its roles: a checkpoint has one set of names for both.
STATE_FIELDS = ('opt', 'step', 'skipped')

# Metrics that a run logs of every iteration, and beginnings of others: a loss's own would take
# their place there.
METRICS = frozenset(
    'advantage_abs approx_kl_old clip_fraction clip_fraction_high clip_fraction_low drift entropy '
    'entropy_change finite gain gain_negative gain_positive grad_norm kl latent_reward loss mfu '
    'nfe process process_advantage_abs ratio_deviation ratio_deviation_first reward samples '
    'seconds skipped transitions valid_share zero_spread'.split()
)
METRICS_OF_SCORES = ('gain_of_', 'reward_')


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss and its inputs.

    Attributes:
        fn: (outputs, batch, options by keyword) -> LossSums, in JAX. `outputs` maps POLICY and
            every role in `needs` to the network's output for the batch with that role's parameters:
            for TRANSITIONS the StepOutput of the stored transitions, for CLEAN the velocity v [M,
            ...] at (batch.x, batch.s). Gradients flow into POLICY alone. The update divides the sum
            by the number of rows whose mask is set, over all microbatches. Options are keys of the
            configuration's group `loss`, `log_prob` and `kernel` of the rollout, and
            `advantage_weights`, name -> weight, for losses that take several advantages.
        batch: TRANSITIONS or CLEAN.
        groups: whether a microbatch must hold whole groups; their samples are then adjacent.
        trajectories: whether the groups come with all their transitions, ordered by prompt, then
            transition, then sample.
        needs: further roles: REF, EMA, or one of its own in `follows`.
        mean_old: whether it reads `Transitions.mean_old`, which the rollouts keep for it.
        sums, maxima: names of further metrics in its LossSums: means over rows, and maxima. None is
            in METRICS or begins as METRICS_OF_SCORES.
        follows: roles that the training state holds for this loss, by name, and how each follows
            the policy. They start equal to it.
        sampler: the role whose samples the update trains on; a role of the state.
        weights: (CleanSamples of an iteration) -> [B] weights of its samples, `batch.weight` of
            their rows. Rows of weight 0 are known to add nothing before they are made: the update
            does not evaluate them, unless the KL to the reference needs them.

    The KL to the reference is not part of the loss: the update adds beta times it to any loss.
    """

    fn: Callable[..., LossSums]
    batch: str = TRANSITIONS
    groups: bool = False
    trajectories: bool = False
    needs: tuple[str, ...] = ()
    mean_old: bool = False
    sums: tuple[str, ...] = ()
    maxima: tuple[str, ...] = ()
    follows: Mapping[str, Follow] = dataclasses.field(default_factory=dict)
    sampler: str = POLICY
    weights: Callable[[CleanSamples], Array] | None = None

    def __post_init__(self) -> None:
        if self.batch not in (TRANSITIONS, CLEAN):
            raise ValueError(f'batch is {self.batch!r}; expected {TRANSITIONS!r} or {CLEAN!r}')
        if self.mean_old and self.batch != TRANSITIONS:
            raise ValueError(f'mean_old is set and batch is {self.batch!r}; it is of transitions')
        if self.weights is not None and (self.groups or self.batch != CLEAN):
            raise ValueError('weights are of single samples (groups=False), of the batch CLEAN')
        if self.trajectories and not (self.groups and self.batch == TRANSITIONS):
            raise ValueError('trajectories are of whole groups (groups=True) of transitions')
        known = [REF, EMA, *self.follows]
        if unknown := set(self.needs) - set(known):
            raise ValueError(f'needs has {sorted(unknown)}; expected roles of {known}')
        if self.sampler not in (held := [POLICY, EMA, *self.follows]):
            raise ValueError(f'sampler is {self.sampler!r}; expected one of {held}')
        metrics = [*self.sums, *self.maxima]
        for name in metrics:
            if name in METRICS or name.startswith(METRICS_OF_SCORES) or metrics.count(name) > 1:
                raise ValueError(
                    f'sums={self.sums} and maxima={self.maxima} have {name!r}, which is the name '
                    f'of another metric of the run: rename it, such as "own_{name}"'
                )
        taken = {POLICY, REF, EMA, *STATE_FIELDS}
        for name in self.follows:
            if name in taken or not name.isidentifier():
                raise ValueError(
                    f'follows has {name!r}; expected a Python name other than {sorted(taken)}'
                )

    @property
    def options(self) -> dict[str, bool]:
        """The loss's options by name, and whether they have a default."""
        return keyword_options(self.fn)


def loss_sums(values: Float[ArrayLike, 'M'], mask: Bool[ArrayLike, 'M']) -> LossSums:
    """The sums of a loss without a ratio.

    Args:
        values: to minimise; any finite value where masked.
        mask: False leaves the value out of sum and count.
    """
    mask = jnp.asarray(mask)
    values = jnp.where(mask, values, 0)
    sums = LossSums.zeros(values.dtype)
    return sums._replace(policy_sum=values.sum(), policy_count=mask.sum().astype(values.dtype))


def _grpo(outputs: Mapping[str, Any], batch, *, clip_range, log_prob, advantage_weights=None):
    return grpo_loss(
        outputs[POLICY],
        batch.log_prob,
        batch.advantage,
        mask=batch.mask,
        weight=batch.weight,
        clip_range=clip_range,
        advantage_weights=advantage_weights,
        log_prob=log_prob,
    )


def _guard(outputs: Mapping[str, Any], batch, *, clip_range):
    return guard_loss(
        outputs[POLICY],
        batch.mean_old,
        batch.s,
        batch.s_next,
        batch.advantage,
        mask=batch.mask,
        weight=batch.weight,
        clip_range=clip_range,
    )


def _list(outputs: Mapping[str, Any], batch, *, list_temperature, list_reward_temperature):
    return _listed(outputs[POLICY], batch, list_temperature, list_reward_temperature)


def _list_trajectory(
    outputs: Mapping[str, Any], batch, *, list_temperature, list_reward_temperature
):
    samples = sample_rows(batch.prompt_id, batch.s, batch.s_next)
    return _listed(outputs[POLICY], batch, list_temperature, list_reward_temperature, samples)


def _listed(step, batch, temperature, reward_temperature, samples=None):
    return list_loss(
        step,
        batch.log_prob,
        batch.advantage,
        list_ids(batch.prompt_id, batch.s, batch.s_next),
        mask=batch.mask,
        weight=batch.weight,
        temperature=temperature,
        reward_temperature=reward_temperature,
        samples=samples,
    )


def _pair(outputs: Mapping[str, Any], batch, *, clip_range, pairs, log_prob):
    return pair_loss(
        outputs[POLICY],
        batch.log_prob,
        batch.advantage,
        list_ids(batch.prompt_id, batch.s, batch.s_next),
        mask=batch.mask,
        weight=batch.weight,
        clip_range=clip_range,
        pairs=pairs,
        log_prob=log_prob,
    )


def winners_loss(v: Float[Array, 'M *latent'], batch: NoisedSamples) -> LossSums:
    """Flow-matching regression on the best sample of each group: the policy learns what a best-of-N
    search finds (RAFT, arXiv 2304.06767, with the flow's own loss).

        sum_groups n mean_winners || v(x_s, s) - (eps - x_0) ||^2 / elements,  over sum_groups n

    Args:
        v: [M, ...] the policy's velocity at (batch.x, batch.s).
        batch: NoisedSamples with the weights of `best_weights`. A group weighs by its number n of
            samples that count; those that tie for its best reward share the weight.

    Returns:
        LossSums; divided by the number of samples that count it is the mean above.
    """
    error = jnp.mean((v - (batch.noise - batch.x0)) ** 2, tuple(range(1, v.ndim)))
    return loss_sums(batch.weight * error, batch.mask)


def _nft(outputs: Mapping[str, Any], batch, *, nft_strength):
    v, v_old, given = outputs[POLICY], outputs[OLD], (batch.x, batch.s, batch.x0, batch.advantage)
    return loss_sums(nft_terms(v, v_old, *given, strength=nft_strength), batch.mask)


LOSSES = {
    'grpo': Loss(_grpo),  # the clipped surrogate, `grpo_loss`
    'guard': Loss(_guard, mean_old=True),
    'list': Loss(_list, groups=True, sums=(EFFECTIVE,), maxima=(LOGIT_MAX,)),
    'list_trajectory': Loss(
        _list_trajectory, groups=True, trajectories=True, sums=(EFFECTIVE,), maxima=(LOGIT_MAX,)
    ),
    'pair': Loss(_pair, groups=True),
    'nft': Loss(_nft, batch=CLEAN, needs=(OLD,), follows={OLD: follow_old}, sampler=OLD),
    'winners': Loss(
        lambda outputs, batch: winners_loss(outputs[POLICY], batch),
        batch=CLEAN,
        weights=best_weights,
    ),
}
