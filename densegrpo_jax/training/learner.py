"""The learning half of an iteration: credit and advantages of a whole iteration, then accumulated
gradients and one or more updates.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densegrpo_jax.config.guard_keys import BETA, BRAKE, RATE
from densegrpo_jax.config.method import (
    credit_options,
    credit_rule_of,
    loss_of,
    loss_options,
    roles_read,
)
from densegrpo_jax.core.advantages import group_advantages
from densegrpo_jax.core.combine import combined_advantages
from densegrpo_jax.core.dense_reward import dense_reward, state_rewards
from densegrpo_jax.core.grpo_loss import LossSums, noise_weights
from densegrpo_jax.core.guide import process_credit
from densegrpo_jax.core.prediction_rewards import anchored_rewards
from densegrpo_jax.core.roles import POLICY, REF
from densegrpo_jax.core.rollout import Rollout
from densegrpo_jax.core.rollout_plan import ANCHOR
from densegrpo_jax.core.transitions import OUTCOME, PROCESS
from densegrpo_jax.core.tree_plan import node_means
from densegrpo_jax.pipelines.base import Conditioning, Pipeline, take_rows
from densegrpo_jax.rewards.composite import TOTAL
from densegrpo_jax.runtime.mesh import replicated
from densegrpo_jax.runtime.sharding import shardings
from densegrpo_jax.sampling.policy import policy_velocity
from densegrpo_jax.sampling.sampler import EXACT
from densegrpo_jax.sampling.schedule import Schedule
from densegrpo_jax.sampling.state import TrainState, follow_rules
from densegrpo_jax.training.batches import BATCHES, Credited, carries, carrying_first, microbatches
from densegrpo_jax.training.geometry import donates_state, rescored_together, skips_rows


def join(rollouts: list[Rollout]) -> Rollout:
    """Joins rollouts of different prompts: every array is concatenated along its batch axis (1)."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *rollouts)


def make_credit(
    config, schedule: Schedule, mesh: Mesh | None = None, weights: Mapping[str, float] | None = None
):
    """Jitted `(rollouts, rewards [S, B], valid [S, B], group_ids [B], scores, chosen) -> (record,
    metrics of [T] or [] arrays)` for a whole iteration; the loss trains on the record.

    `rewards` is the weighted sum of the raw scores. `scores` {name: [S, B]} are the single scores
    and `weights` their weights; both may be omitted with credit.combine='sum', which uses `rewards`
    alone. Metrics without a score's name are of `rewards`, however scores are combined. A sample is
    left out if any of its scores is invalid. Step-wise metrics are over trained steps, NaN
    elsewhere. Rewards and advantages are indexed by the step k at which a transition starts; a
    transition that samples make together gets the mean of their rewards.

    `chosen` int32 [K], increasing, are the trained transitions of this iteration, an argument so
    that one program serves any; None: all that the plan trains.

    If the plan has several kinds of points to take credit from, the advantages are added, and the
    metrics are of the first kind. With `credit.process` the record has a second advantage, by the
    process reward of the rollouts' states.
    """
    c, groups = config.credit, config.rollout.prompts
    rule, options = credit_rule_of(config), credit_options(config)
    batch_kind = BATCHES[loss_of(config).batch]
    plan = schedule.plan
    trained, rows = np.array(plan.trained_steps), plan.transitions
    seeds = config.plan.seeds if c.siblings == 'seed' else 1
    normalisation = {'std': c.std, 'centre': c.centre, 'eps': c.std_eps, 'clip': c.clip}

    def of_process(rollout: Rollout, on, keep, siblings):
        """([T, B] advantages by the process reward, 0 where it does not count; metrics)."""
        if rollout.process is None:
            raise ValueError(
                f'credit.process={c.process!r} needs rollouts with a process reward (guide.source)'
            )
        counts = on & np.isin(np.arange(len(trained)), schedule.guide_steps)
        steps = process_credit(rollout.process, c.process)
        known = keep & jnp.isfinite(steps)
        found = group_advantages(
            steps, groups * seeds, group_ids=siblings, steps=counts, valid=known, **normalisation
        )
        mean = lambda x: jnp.where(known, x, 0).sum(1) / jnp.maximum(known.sum(1), 1)
        return found.values, {
            'process': jnp.where(counts, mean(steps), jnp.nan),
            'process_advantage_abs': jnp.where(counts, mean(jnp.abs(found.values)), jnp.nan),
        }

    def credit(
        rollouts: list[Rollout],
        rewards: jax.Array,
        valid: jax.Array,
        group_ids: jax.Array,
        scores: Mapping[str, jax.Array] | None = None,
        chosen: jax.Array | None = None,
    ):
        rollout = join(rollouts)
        on, rows_on = jnp.asarray(trained), np.array(rows.trained)
        if chosen is not None:
            on = rows_on = jnp.zeros_like(on).at[chosen].set(True)
        if len(rewards) != len(plan.completions):
            raise ValueError(
                f'rewards have {len(rewards)} rows; the plan scores {len(plan.completions)} images '
                'of a sample'
            )
        keep = valid.all(0)
        by_rule = lambda values: dense_reward(
            values, rule, similarity=rollout.similarity, predictions=rollout.predictions, **options
        )
        shared_out = c.coca_signed and rule.shares
        alone = (lambda values: dense_reward(values, 'sparse')) if shared_out else by_rule
        assign = alone
        if plan.together:
            assign = lambda values: node_means(alone(values), plan.together, keep)

        def of_points(scored, kind):
            found = state_rewards(scored, plan.sources_of(kind), interpolate=c.completion_every > 1)
            if rule.reads_predictions:
                of_anchor = scored[plan.sources_of(ANCHOR)[0]]
                found = anchored_rewards(found, of_anchor, rollout.predictions.anchor)
            return found

        values = of_points(rewards, plan.credited[0])
        steps = assign(values)
        steps_of = {}
        sets = []
        for kind in plan.credited:
            by_name = {n: assign(of_points(score, kind)) for n, score in (scores or {}).items()}
            steps_of = steps_of or by_name
            total = {TOTAL: assign(of_points(rewards, kind))}
            sets.append(total if c.combine == 'sum' else by_name)
        siblings = group_ids
        if seeds > 1:  # samples of a seed are adjacent
            siblings = np.arange(len(keep)) // (config.rollout.group // seeds)
        result = combined_advantages(
            sets,
            {TOTAL: 1.0} if c.combine == 'sum' else weights,
            groups * seeds,
            combine=c.combine,
            group_ids=siblings,
            steps=on,
            valid=keep,
            **normalisation,
        )
        if shared_out:  # the terminal reward's advantage is the same at every trained transition
            terminal = jnp.broadcast_to(result.values[jnp.argmax(on)], values.shape)
            result = result._replace(values=jnp.clip(by_rule(terminal), -c.clip, c.clip))
        starts = np.array(rows.k_from)
        weight = noise_weights(rollout.std[:, 0], rows_on, config.loss.noise_power)
        if config.loss.step_decay != 1:
            weight = weight * np.float32(config.loss.step_decay) ** starts
        advantages, further = {OUTCOME: result.values[starts]}, {}
        if c.process != 'none':
            by_process, further = of_process(rollout, on, keep, siblings)
            advantages[PROCESS] = by_process[starts]
        record = batch_kind.record(
            Credited(rollout, rewards[-1], advantages, weight, group_ids, keep, chosen)
        )
        kept = jnp.maximum(keep.sum(), 1)
        mean = lambda x: jnp.where(on, jnp.where(keep, x, 0).sum(1) / kept, jnp.nan)
        of_samples = jnp.where(keep, rewards[-1], 0)
        group_best = jax.ops.segment_max(jnp.where(keep, rewards[-1], -jnp.inf), group_ids, groups)
        has_best = jnp.isfinite(group_best)
        metrics = {
            'reward': of_samples.sum() / kept,
            'reward_group_best': jnp.where(has_best, group_best, 0).sum()
            / jnp.maximum(has_best.sum(), 1),
            'gain': mean(steps),
            'gain_positive': mean((steps > 0).astype(jnp.float32)),
            'gain_negative': mean((steps < 0).astype(jnp.float32)),
            'advantage_abs': mean(jnp.abs(result.values)),
            'zero_spread': jnp.where(on, result.zero_spread / (groups * seeds), jnp.nan),
            'latent_reward': jnp.where(keep, values, 0).sum(1) / kept,
            'valid_share': keep.mean(),
        }
        if rollout.drift is not None:
            drift = jnp.zeros(len(trained)).at[starts].set(jnp.where(keep, rollout.drift, 0).sum(1))
            metrics['drift'] = jnp.where(drift > 0, drift / kept, jnp.nan)
        metrics |= further
        if len(steps_of) > 1:
            metrics |= {f'gain_of_{name}': mean(gains) for name, gains in steps_of.items()}
        if mesh is not None:  # every process reads them
            metrics = jax.lax.with_sharding_constraint(metrics, replicated(mesh))
        return record, metrics

    return jax.jit(credit)


def make_update(
    pipeline: Pipeline, config, tx: optax.GradientTransformation, mesh: Mesh, *, donate: bool = True
):
    """Jitted `(state, params, conditioning [P, ...], negative conditioning [1, ...] or None,
    record) -> (state, metrics)`: `optim.updates` optimiser steps on a record of `make_credit`.

    Update u trains on the samples of its own share of the prompts, with all their rows of the
    record, in microbatches whose gradients are accumulated in one scan, which passes over those
    that are known to carry no loss. The loss is divided once, by the number of rows in the update
    that count. A non-finite gradient leaves every role and the
    optimiser unchanged and counts in `state.skipped`. The input state is donated if
    `donates_state(config)`, without `donate` never. With guard.action='brake' a last argument,
    float32 [], multiplies the optimiser's updates, or divides `loss.beta`.
    """
    o, r = config.optim, config.rollout
    loss, options = loss_of(config), loss_options(config)
    kind, roles, rules = BATCHES[loss.batch], roles_read(config), follow_rules(config)
    together = r.group if loss.trajectories else None
    brakes = config.guard.brake if config.guard.on and config.guard.action == BRAKE else None
    # [updates, accumulation, microbatch, ...]
    rows = NamedSharding(mesh, PartitionSpec(None, None, ('data', 'fsdp')))

    copies, skips = rescored_together(config), skips_rows(config)
    # [microbatch, ...], of batches that are made for their microbatch
    of_batch = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))

    def microbatch_loss(policy, others, params, conditioning, negative, brake, batch, count):
        few = one_of_each(batch.mask, copies) if copies > 1 else None
        ids = batch.prompt_id if few is None else batch.prompt_id[few]
        rows_of = take_rows(conditioning, ids)

        def output(role):
            velocity = policy_velocity(pipeline, config, params, role, rows_of, negative)
            if few is None:
                return kind.output(config, velocity, batch)
            of_all = lambda x, s: jnp.repeat(velocity(x[few], s[few]), copies, axis=0)
            return kind.output(config, of_all, batch)

        outputs = {POLICY: output(policy)}
        outputs |= {role: output(others.get(role)) for role in roles}
        sums = loss.fn(outputs, batch, **options)  # of the form that `try_parts` has seen
        if REF in outputs:
            kl_sum, kl_count = kind.kl(config, outputs[POLICY], outputs[REF], batch)
            sums = sums._replace(kl_sum=kl_sum, kl_count=kl_count)
        total, beta = sums.policy_sum, config.loss.beta
        if beta:  # else a KL that is only measured, and not finite, would still count
            total += (beta if brakes != BETA else beta / brake) * sums.kl_sum
        return total / count, sums

    def one_update(carry, rows_here, made, others, params, conditioning, negative, brake):
        policy, opt, skipped = carry
        count = jnp.maximum(rows_here.mask.sum(), 1)

        def accumulate(total, few):
            micro = made(few)
            if micro is not few:
                micro = jax.lax.with_sharding_constraint(micro, of_batch)
            (_, sums), grads = jax.value_and_grad(microbatch_loss, has_aux=True)(
                policy, others, params, conditioning, negative, brake, micro, count
            )
            return jax.tree.map(jnp.add, total[0], grads), total[1].merge(sums)

        def counted(total, few):
            rows_of_zero = nothing._replace(policy_count=few.mask.sum().astype(jnp.float32))
            return total[0], total[1].merge(rows_of_zero)

        def microbatch(total, few):
            if not skips:
                return accumulate(total, few), None
            return jax.lax.cond(carries(few).any(), accumulate, counted, total, few), None

        zeros = jax.tree.map(jnp.zeros_like, policy)
        nothing = LossSums.zeros(sums=loss.sums, maxima=loss.maxima)
        (grads, sums), _ = jax.lax.scan(microbatch, (zeros, nothing), rows_here)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(norm)
        updates, new_opt = tx.update(grads, opt, policy)
        if brakes == RATE:
            updates = jax.tree.map(lambda u: u * brake, updates)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        policy, opt = keep(optax.apply_updates(policy, updates), policy), keep(new_opt, opt)
        return (policy, opt, skipped + ~finite), (sums, norm, finite)

    def update(state: TrainState, params, conditioning: Conditioning, negative, record, brake=None):
        made = lambda few: kind.made(config, record, few, state.step)
        all_rows = kind.rows_of(config, record)
        parts = microbatches(all_rows, r.prompts * r.group, o.updates, o.microbatch, together)
        parts = jax.tree.map(
            lambda a: jax.lax.with_sharding_constraint(a, rows),
            carrying_first(parts) if skips else parts,
        )
        others = {role: state.roles[role] for role in rules}  # REF is the base itself
        text = params, conditioning, negative, brake
        carry, results = (state.policy, state.opt, state.skipped), []
        for u in range(o.updates):
            part = jax.tree.map(lambda a: a[u], parts)
            carry, result = one_update(carry, part, made, others, *text)
            results.append(result)
        policy, opt, skipped = carry
        progressed = jnp.stack([finite for *_, finite in results]).any()
        followed = {role: rule(others[role], policy, state.step) for role, rule in rules.items()}
        followed = jax.tree.map(lambda a, b: jnp.where(progressed, a, b), followed, others)
        sums = results[0][0]
        for later, *_ in results[1:]:
            sums = sums.merge(later)
        count = jnp.maximum(sums.policy_count, 1)
        metrics = {
            'loss': sums.policy_sum / count,
            'kl': sums.kl_sum / jnp.maximum(sums.kl_count, 1),
            **kind.metrics(results[0][0], sums),
            **{name: value / count for name, value in sums.sums.items()},
            **sums.maxima,
            'grad_norm': results[-1][1],
            kind.unit: sums.policy_count,
            'finite': jnp.stack([finite for *_, finite in results]).all(),
        }
        metrics = jax.lax.with_sharding_constraint(metrics, replicated(mesh))
        new = TrainState({POLICY: policy, **followed}, opt, state.step + 1, skipped)
        # The state's placement must not change: another placement would compile everything again.
        placed = shardings(new, mesh, pipeline.sharding_rules)
        return jax.tree.map(jax.lax.with_sharding_constraint, new, placed), metrics

    given = 0 if donate and donates_state(config) else ()
    return jax.jit(update, donate_argnums=given, compiler_options=EXACT)


def one_of_each(mask: jax.Array, copies: int) -> jax.Array:
    """[M / copies] the row of each block of `copies` that stands for it: the first whose mask is
    set, as the latents of the others are 0.
    """
    blocks = mask.reshape(-1, copies)
    return jnp.arange(len(blocks)) * copies + jnp.argmax(blocks, axis=1)
