"""Decides whether two things are the same: checkpoints and runs, calibrations, evaluations,
searches, sweeps.

A record holds the keys that decide (`record`); `differences` compares two records. Keys of the
machine and of the display do not decide: a run continues on other devices. Which of the other keys
decide depends on the scope, the kind of thing compared. A record also holds *facts* that no key
tells: digests of the base, of prompts, of rewards' weights and of a user's own code, fingerprints
of reward servers, calibrated noise levels. Where facts tell what a key names, the name does not
decide (`TOLD_BY`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from densegrpo_jax.config.guide_keys import PROBE_FIT
from densegrpo_jax.config.key import MACHINE, SCIENCE, Selection
from densegrpo_jax.config.retired import RETIRED, renamed
from densegrpo_jax.config.run_keys import REWARD_MACHINE_OPTIONS
from densegrpo_jax.config.schema import KEYS, OPEN, TABLE
from densegrpo_jax.runtime.trees import ABSENT, Difference, dotted

_PROBE = ('guide.file', *PROBE_FIT)
# What is learned before a run is compared by its values: noise, the direction of a reward, a
# process reward.
_NOT_TRAINED = ('noise.*', 'calibration.*', 'd2.*', 'search.*', *_PROBE)
_SAMPLED = ('seed', 'model.*', 'full', 'lora.*', 'rollout.*', 'plan.active', 'loss.cfg')
_AMOUNT = ('rollout.prompts', 'rollout.group')  # of an iteration of training

# Of the keys of SCIENCE, those that decide.
SCOPES: Mapping[str, Selection] = {
    # A checkpoint continues. A run's end is free; scores are comparable only if they were made in
    # the same way.
    'training': Selection(
        ('*',),
        but=(
            'iterations',
            'optim.max_bad',
            'loss.measure_kl',
            *_NOT_TRAINED,
            'eval.every',
            'eval.panel',
            'eval.panel_prompts',
            'eval.embedding',
            'guard.*',
        ),
    ),
    # A psi file continues, or is used; its end is free.
    'calibration': Selection(
        (
            'seed',
            'model.*',
            'lora.init_from',
            'data.train',
            'data.scenes',
            'rollout.*',
            'reward',
            'calibration.*',
        ),
        but=(*_AMOUNT, 'rollout.log_prob', 'calibration.iterations', 'calibration.drift'),
    ),
    # Scores of policies share a table.
    'evaluation': Selection(
        (*_SAMPLED, 'reward', 'eval.steps', 'eval.panel', 'eval.embedding'), but=_AMOUNT
    ),
    # Results of a search share a table.
    'search': Selection(
        (*_SAMPLED, 'noise.*', 'reward', 'search.*', 'eval.steps', 'eval.panel', 'eval.embedding'),
        but=_AMOUNT,
    ),
    # Raw rewards of a measurement, and its gradients.
    'rewards': Selection((*_SAMPLED, 'reward'), but=_AMOUNT),
    'gradients': Selection(
        ('*',),
        but=('iterations', 'optim.*', 'ema.*', 'eval.*', 'guard.*', 'calibration.*', 'search.*'),
    ),
    # A probe of the base's hidden states serves as process reward; the base's weights, which may
    # have moved, are compared by their content.
    'process': Selection(
        ('model.*', 'rollout.steps', 'reward'), but=('model.path', 'model.transformer_file')
    ),
    # A run's policy is read: what its adapters mean. Their layers are compared as arrays; the base
    # may be another, which is said.
    'policy': Selection(('full', 'lora.rank', 'lora.alpha')),
    # Runs of a sweep have the same base.
    'sweep': Selection(('*',)),
    # Prompts have the same conditioning; of the model the encoders' files are compared.
    'text': Selection(('model.t5_length', 'model.dtype')),
}

# Scopes of trained arrays, which are stacked where the blocks are scanned.
_STACKED = ('training', 'gradients')

# Keys that the processes of one run may set otherwise: places on a machine, and its threads.
_OWN = ('model.path', 'model.transformer_file', 'text_cache', 'reward_workers')

# The facts that tell a base model by its content: its weights, and its small files.
BASE, FILES = 'weights of the base', 'settings and tokenizers of the base'

# Keys that only name something -> the facts that tell, together, all that they decide. Generated
# scenes of evaluations are the same whatever `data.scenes` is.
TOLD_BY: Mapping[str, tuple[str, ...]] = {
    'model.path': (BASE, FILES),
    'model.transformer_file': (BASE, FILES),
    'data.train': ('prompts of data.train',),
    'data.scenes': ('prompts of data.train',),
    'data.eval': ('prompts of data.eval',),
    'data.eval_prompts': ('prompts of data.eval',),
}

# The fact that tells a user's own code: key -> digest (`method.own_code`).
CODE = 'code of your own'

# Facts that a change of a user's own code changes, here or behind a server of rewards.
OF_CODE = (CODE, 'servers of rewards')

_OLD_FILES = 'base'  # names and sizes of the base's files in records of earlier versions, for BASE

# A record without them is of a run without calibrated noise, guided rewards or a process reward;
# other missing facts are unknown.
_DEFAULT_FACTS: Mapping[str, object] = {
    'psi': None,
    'directions of rewards': {},
    'process reward': '',
}
# Of these facts, an entry that the old record lacks is unknown: which rewards there are is told by
# the keys, and earlier searches did not record the panel's.
_BY_REWARD = ('servers of rewards', 'weights of rewards')
# These keys are unknown if missing: earlier checkpoints did not record them.
_UNTOLD = ('eval.steps', 'eval.best')


def kind_of(name: str) -> str | None:
    """SCIENCE, MACHINE or DISPLAY for a key, an option of a reward, or a group of keys of one kind;
    None for anything else.
    """
    if (key := _table_key(name)) is not None:
        option = name.rpartition('.')[2]
        return MACHINE if name != key and option in REWARD_MACHINE_OPTIONS else KEYS[key].kind
    kinds = {key.kind for other, key in KEYS.items() if other.startswith(f'{name}.')}
    return kinds.pop() if len(kinds) == 1 else None


def decides(scope: str, name: str) -> bool:
    """Whether a key (or an option of a reward) decides in a scope."""
    key = _table_key(name)
    if key == 'model.scan':
        return scope in _STACKED
    return key is not None and key in SCOPES[scope] and kind_of(name) == SCIENCE


def record(scope: str, config, facts: Mapping = {}) -> dict:
    """The values that decide in a scope, as nested JSON values: the configuration's keys, then
    `facts`, of the user's own code that of the keys that decide.
    """
    kept = _deciding(scope, json.loads(config.to_json_best_effort()))
    told = json.loads(json.dumps(dict(facts)))
    code = {key: code for key, code in told.pop(CODE, {}).items() if decides(scope, key)}
    return {**kept, **told, **({CODE: code} if code else {})}


def common(config) -> dict[str, object]:
    """Dotted key -> JSON value, of all that the processes of a run must share: every key except
    places on a machine, and options that say where a reward is computed.
    """
    values = dotted(json.loads(config.to_json_best_effort()))
    own = lambda name: name in _OWN or (name not in KEYS and kind_of(name) == MACHINE)
    return {name: value for name, value in values.items() if not own(name)}


def differences(
    scope: str, old: Mapping, new: Mapping, *, primary: bool = True
) -> list[Difference]:
    """The differences of two records of a scope.

    A key that one record lacks counts as its default. A fact that the old record lacks counts as
    equal, as does a reward's entry in one. A key that only names something does not count where
    both tell what that is, nor where the new record does not tell it yet (`TOLD_BY`). Keys of the
    old record that do not decide, such as those of the machine, are ignored. A removed key must
    have the value that every run has now (`retired`).

    Args:
      old: from a file, perhaps of an earlier version. new: from `record`.
      primary: this is the primary process, which wrote `old`; of another one the places on its
        machine may be others.
    """
    old = {**_DEFAULT_FACTS, **_deciding(scope, renamed(scope, old))}
    old.pop(_OLD_FILES, None)
    if not old.get(CODE):  # earlier checkpoints tell that there is none
        old.pop(CODE, None)
    new = dict(new)
    for fact in _BY_REWARD:
        if isinstance(before := old.get(fact), Mapping) and fact in new:
            new[fact] = {name: value for name, value in new[fact].items() if name in before}
    untold = {name for name in new if name not in old and name not in TABLE}
    there = dotted(old)
    here = dotted({**_DEFAULT_FACTS, **{k: v for k, v in new.items() if k not in untold}})
    found = []
    for name in sorted(there.keys() | here.keys()):
        if name in RETIRED:
            gone = RETIRED[name]
            if there[name] != gone.value:
                found.append(Difference(name, there[name], gone))
            continue
        before, now = (a.get(name, _default(name, b)) for a, b in ((there, here), (here, there)))
        if before != now and (primary or name not in _OWN) and not _same_content(name, old, new):
            found.append(Difference(name, before, now))
    return found


def of_code(found: Difference) -> bool:
    """Whether a difference is one of code, which a run may accept (`--own_code=warn`)."""
    return found.key.partition('.')[0] in OF_CODE


def of_scores(found: Difference) -> bool:
    """Whether a difference of code is one of the rewards', whose scores are then others; other code
    changes how they are trained on.
    """
    return found.key.startswith((f'{CODE}.reward.', OF_CODE[1]))


def told(found: Iterable[Difference]) -> str:
    """Differences in a line, as 'key: old, now new'."""
    return '; '.join(f'{key}: {old!r}, now {new!r}' for key, old, new in found)


def _deciding(scope: str, tree: Mapping, prefix: str = '') -> dict:
    """The tree without keys that do not decide; entries that are not keys of the table stay."""
    kept = {}
    for name, value in tree.items():
        key = f'{prefix}.{name}' if prefix else str(name)
        known = _table_key(key) is not None
        if known and not decides(scope, key):
            continue
        if isinstance(value, Mapping) and (known or key in TABLE):
            value = _deciding(scope, value, key)
            if not value and not known:  # a group without a key that decides
                continue
        kept[name] = value
    return kept


def _same_content(name: str, old: Mapping, new: Mapping) -> bool:
    """Whether a key only names what is the same in both, as far as `new` tells what it is."""
    facts = TOLD_BY.get(name, ())
    return bool(facts) and all(f in old and old[f] == new.get(f, old[f]) for f in facts)


def _table_key(name: str) -> str | None:
    """The key of the table that a dotted name is or belongs to, as an option."""
    if name in KEYS:
        return name
    return next((key for key in OPEN if name.startswith(f'{key}.')), None)


def _default(name: str, other: Mapping) -> object:
    """The value that a missing key stands for."""
    if name in _UNTOLD:
        return other.get(name, ABSENT)
    return json.loads(json.dumps(KEYS[name].default)) if name in KEYS else ABSENT
