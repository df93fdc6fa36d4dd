"""Keys of the guard against reward hacking (guard/guard.py). It is no relation of the method
`guard`, which is a loss.
"""

from __future__ import annotations

from densegrpo_jax.config.key import DISPLAY, choice, number, positive, switch, whole

WARN, BRAKE, STOP = 'warn', 'brake', 'stop'
RATE, BETA = 'rate', 'beta'

GUARD = {
    'on': switch(
        False,
        'Watch for reward hacking (the method guard is something else): measure the unseen panel '
        '(eval.panel), diversity and KL at evaluations. A checkpoint at which an unseen score has '
        'fallen cannot be the best (docs/guard.md).',
    ),
    'action': choice(
        WARN,
        "What follows when unseen scores have fallen guard.patience times in a row: 'warn'; "
        "'brake', slow the training down; 'stop', end it.",
        (WARN, BRAKE, STOP),
    ),
    'patience': whole(2, 'Guarded evaluations in a row with a fallen score, before the action.'),
    'level': number(
        0.05,
        'Chance of a false alarm in the run as planned: that a score which has not fallen counts '
        'as fallen at any evaluation. Larger for skewed differences: docs/guard.md has a table.',
        0,
        1,
        above=True,
        below=True,
    ),
    'every': whole(
        1,
        'Every how many evaluations the guard measures; it does so at the last in any case. The '
        'others cannot be the best.',
    ),
    'prompts': whole(
        32, 'Prompts to measure on, at least 8 different ones, drawn by the seed; 0 = all.', 0
    ),
    'images': whole(
        4, 'Images of each prompt; 1 measures no diversity. eval.batch holds at least these.'
    ),
    'kl_prompts': whole(16, 'Prompts to measure the KL on; 0: none.', 0),
    'brake': choice(
        RATE,
        "'brake' multiplies every later update by guard.factor ('rate'), or divides loss.beta by "
        "it ('beta').",
        (RATE, BETA),
    ),
    'factor': number(0.5, "Factor of each 'brake'.", 0, 1, above=True, below=True),
    'zero_spread': number(
        1.0, 'Alarm: so large a share of groups without any spread of rewards.', 0, 1, above=True
    ),
    'ratio': positive(
        10.0,
        'Alarm: the mean deviation of the probability ratio from 1 in the updates of an iteration, '
        'in units of loss.clip_range. With optim.updates=1 all ratios are 1 up to rounding.',
    ),
    'kl_jump': number(
        10.0,
        'Alarm: the KL grows by this factor from one guarded evaluation to the next; not from a KL '
        'of 0, as the start has without lora.init_from.',
        1,
    ),
    'pairs': whole(8, "Prompts on the verdict's pictures, those that lost most.", kind=DISPLAY),
}

# What is read with each value of guard.on, and with each of guard.action.
GUARD_HEEDED = {False: (), True: tuple(f'guard.{name}' for name in GUARD if name != 'on')}
# The same for guard.on, of keys that densegrpo_jax.evaluate reads in any case.
PANEL_HEEDED = {False: (), True: ('eval.panel', 'eval.panel_prompts', 'eval.embedding')}
BRAKE_HEEDED = {WARN: (), BRAKE: ('guard.brake', 'guard.factor'), STOP: ()}
