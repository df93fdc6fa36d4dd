"""Keys of a run: data, optimiser, reward, evaluation, checkpoints, devices."""

from __future__ import annotations

from densegrpo_jax.config.key import (
    DISPLAY,
    MACHINE,
    Key,
    choice,
    line,
    number,
    positive,
    switch,
    text,
    whole,
)

# Options of rewards that say where and how the same reward is computed.
REWARD_MACHINE_OPTIONS = (
    'urls',
    'timeout_s',
    'retries',
    'give_up_s',
    'token_env',
    'concurrency',
    'batch_size',
)

# Only numbers below 2**32 are distinct seeds: JAX and numpy use the lower 32 bits of larger ones.
SEED = whole(42, 'Seed of prompts, noise and adapters.', 0, 2**32 - 1)
ITERATIONS = whole(800, 'Iterations of the run.')
LABEL = line('', 'A line shown at the start and kept with the results.')

LOG = {
    'report_to': text(
        '',
        "Trackers in addition to TensorBoard and metrics.jsonl: 'wandb', 'trackio', or both with a "
        'comma; docs/running.md.',
        DISPLAY,
    ),
    'project': text('densegrpo', 'Name of the project at the trackers.', DISPLAY),
}

DATA = {
    'train': text(
        'scenes',
        "'scenes', 'tiny', 'tiny_shapes', a text file with one prompt per line, a .jsonl file of "
        'GenEval prompts, FILE.csv or FILE.parquet with :COLUMN, or a data set '
        'hf:OWNER/NAME:COLUMN@SPLIT; docs/running.md.',
    ),
    'eval': text('scenes', 'As data.train, for evaluations.'),
    'scenes': whole(20000, "Size of the generated prompt set 'scenes'.", high=10_000_000),
    'eval_prompts': whole(0, 'Number of evaluation prompts; 0 = all.', 0, 10_000_000),
}

OPTIM = {
    'learning_rate': positive(3e-4, 'Of AdamW.'),
    'b1': number(0.9, 'Decay of the first moment.', 0, 1, below=True),
    'b2': number(0.999, 'Decay of the second moment.', 0, 1, below=True),
    'eps': positive(1e-8, "Added to AdamW's denominator."),
    'weight_decay': number(1e-4, 'Of AdamW.', 0),
    'grad_clip': positive(1.0, "The gradient's norm is clipped to this."),
    'warmup': whole(0, 'Iterations of linear warm-up.', 0),
    'decay': choice(
        'constant',
        "Decay of the rate after the warm-up: 'linear' and 'cosine' fall towards 0, where the "
        'update after the last would be; lengthening a run stretches them.',
        ('constant', 'linear', 'cosine'),
    ),
    'updates': whole(1, 'Optimiser steps per iteration, over disjoint parts of its prompts.'),
    'microbatch': whole(24, 'Transitions per gradient accumulation step.', kind=MACHINE),
    'rows_per_device': whole(
        0,
        'Rows of a microbatch that a device is known to hold, as `:devices=N` sets it; a run with '
        'more says so. 0: not known.',
        0,
        kind=MACHINE,
    ),
    'share_states': switch(
        False,
        "plan.kind='branch': an update evaluates a state once for all samples that leave it; the "
        'result is the same up to rounding.',
        MACHINE,
    ),
    'max_bad': whole(5, 'Stop after this many non-finite gradients in a row.'),
}

EMA = {
    'decay': number(0.9, 'Decay of the moving average of the policy.', 0, 1, below=True),
    'every': whole(8, 'Iterations between its updates.'),
}

REWARD = Key({'ocr': {'weight': 1.0, 'mode': 'detect'}}, 'Name -> options; docs/rewards.md.')
TEXT_CACHE = text(
    '',
    "Folder of the prompts' conditioning; '' = WORKDIR/text. Runs on the same model may share one.",
    MACHINE,
)
REWARD_WORKERS = whole(0, 'Scoring threads; 0 = one per core.', 0, 4096, MACHINE)

EVAL = {
    'every': whole(30, 'Iterations between evaluations.'),
    'steps': whole(28, 'ODE steps of evaluation images.', 1, 1000),
    'batch': whole(
        48, 'Images sampled together, and rows of a network call of a search.', kind=MACHINE
    ),
    'shown': whole(16, 'Images on a contact sheet.', kind=DISPLAY),
    'groups': whole(
        1,
        'Groups whose images go on record before every evaluation, in WORKDIR/groups; at most 256 '
        'pixels wide or high. A group of 24 samples with 11 images takes about 4 MB.',
        0,
        kind=DISPLAY,
    ),
    'report': switch(
        True, 'Make the page WORKDIR/report at the end of the run (10 MB, mostly script).', DISPLAY
    ),
    'best': text(
        'total',
        "The score that picks the best checkpoint; 'total' is the weighted sum of `reward`.",
    ),
    'panel': Key(
        {}, 'More rewards, as in `reward`, which densegrpo_jax.evaluate and the guard measure.'
    ),
    'panel_prompts': text(
        '',
        "The panel's prompts: a name or file as in data.eval, 'panel' = 60 of our own, '' = the "
        "evaluation's.",
    ),
    'embedding': text(
        'pixels',
        "Embedding that measures diversity: 'pixels' (16 x 16), or a CLIP folder or id (its image "
        'features).',
    ),
}

CHECKPOINT = {
    'every': whole(10, 'Iterations between checkpoints.', kind=MACHINE),
    'keep': whole(2, 'How many of the newest stay, in addition to the best.', kind=MACHINE),
    'pin': Key((), 'Iterations whose checkpoints are never removed.', MACHINE, item=int),
}

MESH = {
    'data': whole(-1, 'Copies of the model; -1 = all devices left.', kind=MACHINE, also=(-1,)),
    'fsdp': whole(
        1, 'Devices that split batch and parameters; -1 = all left.', kind=MACHINE, also=(-1,)
    ),
    'tensor': whole(
        1, 'Devices that split matrix products; -1 = all left.', kind=MACHINE, also=(-1,)
    ),
}
