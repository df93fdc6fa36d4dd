"""The keys that each command reads. One on its command line that it does not read would be ignored,
and the results would be others than were asked for.

Only keys that decide results count. A recipe is shared by all commands: what it sets counts
nowhere, nor does a run's own config.json.
"""

from __future__ import annotations

from collections.abc import Collection

from densegrpo_jax.config.d2_keys import D2_LEARNED, D2_OF_FILE
from densegrpo_jax.config.guide_keys import GUIDE, PROBE_FIT
from densegrpo_jax.config.key import Selection

REFUSE, WARN = 'refuse', 'warn'


EVERYTHING = Selection()
_POLICY = ('model.*', 'full', 'lora.*')
_SCORING = (
    *('seed', *_POLICY, 'rollout.*', 'noise.*', 'reward', 'reward.*', 'd2.file', *D2_OF_FILE),
    'data.*',
)
_PANEL = ('eval.panel', 'eval.panel.*', 'eval.steps', 'eval.embedding')
_AMOUNT = ('rollout.prompts', 'rollout.group')  # of an iteration of training
_LEARNING = ('iterations', 'credit.*', 'loss.*', 'optim.*', 'ema.*', 'guard.*')
_PREPARED = (*D2_LEARNED, *PROBE_FIT)  # what is learned before a run, by commands of its own

READS = {
    'main': Selection(but=('search.*', *_PREPARED)),
    'plan': EVERYTHING,  # `config.unread` knows better
    'sample': Selection((*_POLICY, 'eval.steps')),
    'evaluate': Selection(
        (*_SCORING, *_PANEL, 'eval.panel_prompts', 'eval.best', 'plan.active', 'loss.cfg'),
        ('data.train', *_AMOUNT),
    ),
    'search': Selection(
        (*_SCORING, *_PANEL, 'search.*', 'plan.active', 'loss.cfg'), ('data.train', *_AMOUNT)
    ),
    # noise.psi_path has a refusal of its own
    'calibrate': Selection(
        (*_SCORING, 'calibration.*', 'plan.active'),
        ('data.eval*', 'rollout.prompts', 'rollout.log_prob'),
    ),
    # it prices the run that all of its keys describe, what the guard measures among it
    'preflight': Selection(but=('search.*', *_PREPARED)),
    'direction': Selection(
        but=(*_LEARNING, 'plan.*', 'moving.*', 'budget.*', 'guide.*', 'calibration.*', 'search.*')
    ),
    'process_reward': Selection(
        but=(
            *_LEARNING,
            *('plan.[!a]*', 'moving.*', 'budget.*'),  # plan.active: what is trained
            *(f'guide.{name}' for name in GUIDE if f'guide.{name}' not in PROBE_FIT),
            *('calibration.*', 'search.*', *D2_LEARNED),
        )
    ),
    'reward_server': Selection(('reward', 'reward.*')),
}


def check_reads(command: str, reads: Selection, given: Collection[str]) -> None:
    """Raises ValueError if a key that the command line sets, and that decides results, is not read
    by the command of that name.
    """
    for key in sorted(given):
        if key not in reads:
            but = f', except {", ".join(reads.but)}' if reads.but else ''
            of = '' if reads.keys == ('*',) else f' (it reads {", ".join(reads.keys)}{but})'
            raise ValueError(
                f'--config.{key} is given, and densegrpo_jax.{command} does not read it{of}: leave '
                f'it out, or give --unread={WARN}{_own(key, reads)}'
            )


def _own(key: str, reads: Selection) -> str:
    """For messages: the command's own key of the same name, if it has one."""
    from densegrpo_jax.config.schema import KEYS  # imports jax

    name = key.rpartition('.')[2]
    own = [k for k in KEYS if k.rpartition('.')[2] == name and k in reads]
    return f'. Its own is {own[0]}' if len(own) == 1 else ''
