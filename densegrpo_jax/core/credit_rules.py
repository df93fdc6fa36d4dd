"""Credit rules: the states of a trajectory whose rewards a rule reads, and the credit it gives."""

import dataclasses
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from densegrpo_jax.core.branch_plan import BRANCH
from densegrpo_jax.core.masks import StepMasks
from densegrpo_jax.core.options import keyword_options
from densegrpo_jax.core.prediction_rewards import MIN_TOTAL, returns_to_go, sdpo_reward
from densegrpo_jax.core.rollout_plan import STATE, X0HAT


def read_offsets(*offsets: int) -> Callable[[StepMasks], Iterable[int]]:
    """States k + offset of every trained transition k, as `CreditRule.states`."""
    return lambda masks: [int(k) + i for k in np.flatnonzero(masks.trained) for i in offsets]


def read_onwards(masks: StepMasks) -> Iterable[int]:
    """Every state from the first trained transition on, as `CreditRule.states`."""
    return range(int(np.flatnonzero(masks.trained)[0]), len(masks.trained) + 1)


def read_all(masks: StepMasks) -> Iterable[int]:
    """Every state, as `CreditRule.states`."""
    return range(len(masks.trained) + 1)


_READ = ('similarity', 'predictions')  # arguments of rules that are no options


@dataclasses.dataclass(frozen=True)
class CreditRule:
    """One way to turn the rewards V of a trajectory's states into a reward for each transition.

    Attributes:
        assign: (V [T+1, B], similarity=[T+1, B] if the rule reads it, options by keyword) ->
            [T, B], differentiable or not, in JAX. V is NaN in states that the rule does not read;
            results for untrained transitions are not used. Its keyword-only arguments other than
            `similarity` are the rule's options.
        states: masks -> the states other than T that are completed and scored for it.
        reads: the kind of points whose rewards V are; k of the point is the index into V. Only
            plans that have such points serve the rule (`PlanKind.points`).
        reads_similarity: whether it reads `Rollout.similarity`.
        reads_predictions: whether it reads `Rollout.predictions`; V of each sample's anchor is then
            the reward of that prediction.
        shares: whether the result is V_T times shares that do not depend on V, so that the shares
            can scale an advantage of V_T instead.
        per_sample: whether all transitions of a sample get the same credit.
        interpolates: whether rewards between completed states may be interpolated
            (`every_state`). Not for rules that compare neighbouring gains.
    """

    assign: Callable[..., Array]
    states: Callable[[StepMasks], Iterable[int]] = read_offsets()
    reads: str = STATE
    reads_similarity: bool = False
    reads_predictions: bool = False
    shares: bool = False
    per_sample: bool = False
    interpolates: bool = True

    def __post_init__(self) -> None:
        for name in _READ:
            reads = getattr(self, f'reads_{name}')
            if reads != (name in keyword_options(self.assign)):
                raise ValueError(
                    f'reads_{name} is {reads}; expected True if assign has the keyword-only '
                    f'argument {name!r}, else False'
                )

    @property
    def options(self) -> dict[str, bool]:
        """The rule's options by name, and whether they have a default."""
        named = keyword_options(self.assign)
        return {name: default for name, default in named.items() if name not in _READ}


def coca_shares(
    similarity: Float[ArrayLike, 'states B'], window: int = 1
) -> Float[Array, 'states-1 B']:
    """Each transition's share of the terminal reward, by how much nearer it brings x0hat to the
    final sample.

    The similarities c_1 ... c_T are averaged in windows of `window` transitions (the last may be
    shorter). A window's gain is the rise of that average over the previous window's (over c_0 for
    the first). Gains are divided by their sum and spread evenly over the window; single shares may
    be negative. If the sum, the total rise, is below MIN_TOTAL (the first prediction was already
    the final image), the shares would explode, and are uniform instead.

    Args:
        similarity: [T+1, B] cosines c_k, c_T = 1.
        window: W >= 1 transitions per window.

    Returns:
        [T, B] shares that sum to 1 over the transitions.
    """
    c = jnp.asarray(similarity)
    num_steps = len(c) - 1
    if not 1 <= window <= num_steps:
        raise ValueError(f'window is {window}; expected 1 <= window <= {num_steps} transitions')
    starts = range(0, num_steps, window)
    lengths = np.array([min(window, num_steps - start) for start in starts])
    means = jnp.stack(
        [c[1 + start : 1 + start + length].mean(0) for start, length in zip(starts, lengths)]
    )
    gains = means - jnp.concatenate([c[:1], means[:-1]])
    total = means[-1] - c[0]
    usable = total >= MIN_TOTAL
    per_window = gains / jnp.where(usable, total, 1) / lengths[:, None]
    return jnp.where(
        usable,
        jnp.repeat(per_window, lengths, axis=0, total_repeat_length=num_steps),
        1 / num_steps,
    )


def read_ends(masks: StepMasks) -> Iterable[int]:
    """The first and the last prediction, as `CreditRule.states`."""
    return (0, len(masks.trained) - 1)


def _terminal(rewards):
    return jnp.broadcast_to(rewards[-1], rewards[1:].shape)


def _after(rewards):
    return rewards[1:]


def _of_branch(rewards):
    return rewards[:-1]


def _gains(rewards):
    return rewards[1:] - rewards[:-1]


def turning_points(
    rewards: Float[ArrayLike, 'states B'], *, consistent: bool = True
) -> Bool[Array, 'states-1 B']:
    """Which transitions turn the course of the reward into the direction of the whole trajectory
    (TP-GRPO, arXiv 2602.06422).

    With d_k = V_{k+1} - V_k and s_k = sign(d_k) sign(V_T - V_0), transition k >= 1 is one if
    s_{k-1} < 0 < s_k, and transition 0 if 0 < s_0.

    Args:
        rewards: [T+1, B] V, all states.
        consistent: only those after which the reward goes on in the same direction, sign(d_k) =
            sign(V_T - V_{k+1}) (the paper; the configurations of its code do not ask for it).

    Returns:
        bool [T, B].
    """
    rewards = jnp.asarray(rewards)
    gains = jnp.sign(_gains(rewards))
    along = gains * jnp.sign(rewards[-1] - rewards[0])
    before = jnp.concatenate([-jnp.ones_like(along[:1]), along[:-1]])
    found = (before < 0) & (along > 0)
    return found & (gains == jnp.sign(rewards[-1] - rewards[1:])) if consistent else found


def _turning(rewards):
    return jnp.where(turning_points(rewards), rewards[-1] - rewards[:-1], _gains(rewards))


def _turning_code(rewards):
    bonus = jnp.where(turning_points(rewards, consistent=False), _gains(rewards), 0)
    return rewards[-1] - rewards[0] + bonus


def _gae(rewards, *, gae_lambda=0.5):
    """A_k = d_k + gae_lambda A_{k+1} of the gains d, from the end: the NaN of a state without a
    score reaches only the transitions before it.
    """
    if not 0 <= gae_lambda <= 1:
        raise ValueError(f'gae_lambda is {gae_lambda}; expected 0 <= gae_lambda <= 1')
    return returns_to_go(_gains(rewards), gae_lambda)


def _coca_share(rewards, *, similarity, window=1):
    return _terminal(rewards) * coca_shares(similarity, window)


def _coca_to_go(rewards, *, similarity, window=1, alpha=0.0):
    to_go = jnp.cumsum(coca_shares(similarity, window)[::-1], axis=0)[::-1]
    return _terminal(rewards) * (alpha + (1 - alpha) * to_go)


# The formulas and their sources are in the table of `dense_reward`.
CREDIT_RULES = {
    'sparse': CreditRule(_terminal, per_sample=True),
    'dense_baseline': CreditRule(_after, read_offsets(1)),
    'dense': CreditRule(_gains, read_offsets(0, 1)),
    'gae': CreditRule(_gae, read_onwards),
    'turning': CreditRule(_turning, read_all, interpolates=False),
    'turning_code': CreditRule(_turning_code, read_all, interpolates=False),
    'branch': CreditRule(_of_branch, read_offsets(0), reads=BRANCH),
    'sdpo': CreditRule(sdpo_reward, read_ends, reads=X0HAT, reads_predictions=True),
    'coca_share': CreditRule(_coca_share, reads_similarity=True, shares=True),
    'coca_to_go': CreditRule(_coca_to_go, reads_similarity=True, shares=True),
}


def as_credit_rule(credit: str | CreditRule) -> CreditRule:
    """The rule itself, or the rule of that name in CREDIT_RULES. Raises ValueError if neither."""
    if isinstance(credit, CreditRule):
        return credit
    if credit not in CREDIT_RULES:
        raise ValueError(
            f'unknown credit rule {credit!r}; expected a CreditRule or one of '
            f'{sorted(CREDIT_RULES)}'
        )
    return CREDIT_RULES[credit]
