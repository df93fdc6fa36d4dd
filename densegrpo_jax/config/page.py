"""Renders docs/config.md: the table of keys, the variants and the methods, from the code."""

from __future__ import annotations

from collections.abc import Mapping

from densegrpo_jax.config import identity
from densegrpo_jax.config.key import DISPLAY, MACHINE, SCIENCE, Key
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.config.schema import TABLE
from densegrpo_jax.runtime.markdown import table

INTRODUCTION = f"""# Configuration

Made from the code by `python -m densegrpo_jax.config --markdown > docs/config.md`.

A recipe is a Python file with a function `get_config()` that starts from `default_config()` and
changes what it must (`configs/`). Commands take it by its name or its file, and keys from the
command line:

    python -m densegrpo_jax.main --config=flux_ocr:devices=8 --workdir=runs/flux \\
        --config.optim.learning_rate=1e-4
    python -m densegrpo_jax.main --config=my/recipe.py --workdir=runs/mine --config.rollout.steps=10

Each key has a kind. *{SCIENCE}* decides the results, *{MACHINE}* only speed, memory and place,
*{DISPLAY}* only the display. A run continues from its checkpoint, and results share a table, if the
science is the same; devices, batches and places may differ. Keys marked with * may also differ when
a run continues: they set its end or further measurements, or what they name is compared by its
content, such as the base, the prompts or the noise levels of `noise.psi_path`.

An empty value on the command line is refused: it may be a variable of the shell that is unset.
`none` stands for no value where the default is `''`, as in `--config.noise.psi_path=none`.

A key of the command line that the command does not read is refused. `train`, `plan`, `search` and
`calibrate` also refuse a key that has no effect beside the others, such as `calibration.z` in a run
that does not calibrate; `--unread=warn` makes that a note. Where the recipe itself sets such an
option of the method, the run only warns. If a method replaces a part, that part's options return to
their defaults.
"""

VARIANTS = """## Variants

`--config=RECIPE:devices=N,method=NAME,settings=paper`; each may be left out. Without `devices=N`
the recipes for large models fit 8 devices: give `devices=1` for one GPU. `devices=N` fits
`rollout.prompts_per_batch`, `optim.microbatch` and `eval.batch` to N devices: batches are as large
as the devices hold. The learning stays the same. `method=NAME` sets the keys of a method; the
recipe keeps its model, prompts, reward and amounts, but not its window of transitions
(`rollout.first`, `rollout.last`), which is of its own method. `settings=paper` also sets the
amounts, as far as they were published of the method for the recipe's model ([methods](methods.md));
if all weights are trained with them, `mesh.fsdp` splits the weights over the devices.
"""


def markdown() -> str:
    """The text of docs/config.md."""
    alone = {name: entry for name, entry in TABLE.items() if isinstance(entry, Key)}
    groups = {name: entry for name, entry in TABLE.items() if isinstance(entry, Mapping)}
    methods = [
        (
            f'`{name}`',
            method.idea,
            method.source,
            ', '.join(f'`{key}={value}`' for key, value in method.overrides.items()),
        )
        for name, method in METHODS.items()
    ]
    parts = [
        INTRODUCTION,
        VARIANTS,
        table(('method', 'idea', 'source', 'sets'), methods) + '\n',
        '## Keys\n',
        _section(alone, ''),
        *(f'### {name}\n\n{_section(keys, f"{name}.")}' for name, keys in groups.items()),
    ]
    return '\n'.join(parts)


def _section(keys: Mapping[str, Key], prefix: str) -> str:
    rows = [
        (f'`{prefix}{name}`', _default(key), _values(key), _kind(prefix + name, key), key.help)
        for name, key in keys.items()
    ]
    return table(('key', 'default', 'values', 'kind', 'meaning'), rows) + '\n'


def _kind(name: str, key: Key) -> str:
    decides = identity.decides('training', name) and name not in identity.TOLD_BY
    free = key.kind == SCIENCE and not decides
    return key.kind + (' \\*' if free else '')


def _default(key: Key) -> str:
    if isinstance(key.default, tuple) and len(key.default) > 3:
        return f'{len(key.default)} names, as `{key.default[0]}`'
    return f'`{key.default!r}`'


def _values(key: Key) -> str:
    if key.choices is not None:
        return key.range
    return f'{key.type}, {key.range}' if key.range else key.type
