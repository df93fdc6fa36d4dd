"""The mathematics of DenseGRPO as pure functions: arrays and static host values in, arrays out.

Reading order: schedules (the noise grid), noise_tables, masks (which transitions are stochastic,
which are trained), kernels and sde_step (the policy), ode_rollout (completion of a latent),
rollout_plan (the table of what is sampled and scored), rollout and jobs (which run it),
branch_plan, tree_plan and plan_kinds (other tables), credit_rules and dense_reward (credit),
advantages, combine (several rewards), transitions and clean_samples (the batches of an update),
grpo_loss, losses, calibration.

Conventions: x_s = (1 - s) x_0 + s eps and v = eps - x_0, so s = 1 is noise and s = 0 the clean
latent; a grid sigmas[0] > ... > sigmas[T] is visited from noise to image, and the paper's timestep
is t = T - k. Trajectories are time first, [T+1, B, ...], with B = P * G in prompt-major order.
Everything is float32 (float64 stays float64).
"""
