"""Which prompts a training step uses: a pure function of the step number, so that a resumed run needs no generator state."""

import numpy as np


def prompt_indices_for_step(num_prompts: int, prompts_per_step: int, step: int, seed: int) -> np.ndarray:
    """The prompts of training step `step`, one group of samples each.

    Every epoch is a fresh seeded permutation cut into floor(num_prompts / prompts_per_step) steps; the rest of the
    permutation is left out, so a step never holds a prompt twice (two groups of one prompt would be one group).

    Args:
      num_prompts: size of the prompt set.
      prompts_per_step: groups per step, over all processes.
      step: training step, counted from 0.
      seed: of the run.

    Returns:
      int64 [prompts_per_step], distinct indices in [0, num_prompts).

    Raises:
      ValueError: fewer prompts than a step needs, or a negative step.
    """
    if not 0 < prompts_per_step <= num_prompts:
        raise ValueError(f'prompts_per_step = {prompts_per_step}: expected 1 to {num_prompts}, the number of prompts in the set')
    if step < 0:
        raise ValueError(f'step = {step}: expected 0 or more')
    epoch, position = divmod(step, num_prompts // prompts_per_step)
    order = np.random.default_rng([seed, epoch]).permutation(num_prompts)
    return order[position * prompts_per_step : (position + 1) * prompts_per_step]


def process_slice(num_rows: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that belong to one process: equal, contiguous blocks in process order.

    Applied to prompts before they are repeated it keeps every group on one process.

    Raises:
      ValueError: `num_rows` does not divide by `process_count`, or there is no such process.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f'process_index = {process_index}: expected 0 to {process_count - 1}')
    if num_rows % process_count:
        raise ValueError(f'{num_rows} rows do not divide over {process_count} processes; choose a multiple of {process_count}')
    rows = num_rows // process_count
    return slice(process_index * rows, (process_index + 1) * rows)
