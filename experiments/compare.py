"""Command: trains variants of a configuration over several seeds and draws their evaluation curves
with spread.

    python -m experiments.compare --config=configs/tiny_ocr.py \\
        --vary=credit.rule=dense,sparse --seeds=0,1,2 --workdir=runs/credit --out=runs/credit/report

    python -m experiments.compare --config=configs/claims_ocr.py \\
        --vary=method=dense_grpo,flow_grpo --seeds=0 --workdir=runs/methods --out=runs/methods/out

    python -m experiments.compare --config=configs/tiny_ocr.py --workdir=runs/own \\
        --out=runs/own/out \\
        --vary=credit.rule+loss.kind=dense+grpo,examples.own_method:rule+examples.own_method:loss

`--vary=KEY=A,B` compares values of a key, `--vary=method=A,B` methods by name (`all`: every row of
docs/methods.md). Several keys that change together are joined by +, and so are their values. Every
run is a separate `densegrpo_jax.main` in WORKDIR/VALUE/SEED; of a value that is no name for a
folder, such as package.module:object, other characters become _ and a digest follows. The same
command, run again, continues unfinished runs and keeps finished ones, also those of which only the
tables in OUT are left. Writes OUT/curves.png (score against updates, network evaluations and
seconds), OUT/runs.csv, OUT/evaluations.csv and OUT/README.md. Extra arguments after `--` go to
every run: `-- --config.iterations=40`. Runs of an earlier version of code of your own are refused
or made again; `-- --own_code=warn` keeps them. For the claims of the paper use
`experiments.reproduce`.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from absl import app, flags, logging

from densegrpo_jax.config.command_line import check_key, define_folder, define_seeds, run_main
from densegrpo_jax.config.loading import load, with_method
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.config.unread import unread
from densegrpo_jax.runtime.markdown import table
from densegrpo_jax.runtime.stop import FINISHED, StopRequest
from experiments.reproduction.drawing import LABELS, draw_curves
from experiments.reproduction.facts import commit, device
from experiments.reproduction.records import PAGE, Records, check_page
from experiments.reproduction.sweep import (
    Run,
    check_sweep,
    configured,
    recorded,
    run_all,
    status_of,
)

METHOD = 'method'  # as a key of --vary: the recipe's variant of that name

Changes = tuple[tuple[str, str], ...]  # (key, value)


def variants(vary: str, config: str) -> dict[str, tuple[str, Changes]]:
    """Value of --vary -> the --config of its runs, and what they change in it.

    Raises:
      app.UsageError: there are no values.
      ValueError: a key or value is missing, occurs twice or is not known.
    """
    key, _, listed = vary.partition('=')
    if not listed:
        raise app.UsageError(f'--vary={vary}: expected key=value,value,...')
    keys, values = key.split('+'), listed.split(',')
    if keys == [METHOD] and values == ['all']:
        values = list(METHODS)
    for what, of in (('keys', keys), ('values', values)):
        if len({*of}) < len(of) or '' in of:
            raise ValueError(f'--vary={vary}: expected different {what}, none of them empty')
    found = {}
    for value in values:
        parts = value.split('+') if len(keys) > 1 else [value]
        if len(parts) != len(keys) or '' in parts:
            raise ValueError(
                f'--vary={vary}: expected a value for each of {key} in {value!r}, joined by +, as '
                f'in {"+".join(f"VALUE{i}" for i, _ in enumerate(keys, 1))}'
            )
        given = dict(zip(keys, parts, strict=True))
        method = given.pop(METHOD, None)
        of = config if method is None else with_method(config, method)
        loaded = load(of)
        for changed in given:
            check_key(loaded, changed, f'--vary={vary}')
        found[value] = of, tuple(given.items())
    return found


def folder_name(value: str) -> str:
    """The folder of a value's runs: the value itself, or its letters and a digest if a file system
    or a shell would read more into it.
    """
    plain = re.sub(r'[^A-Za-z0-9_.,=+-]', '_', value)[:100].strip('.')
    if plain == value:
        return value
    return f'{plain}-{hashlib.sha256(value.encode()).hexdigest()[:6]}'


def write(records: Records, key: str, values: list[str], out: pathlib.Path, command: str) -> None:
    """Writes tables, curves.png and README.md into `out`; hand-written text in its notes.md goes
    into the page.
    """
    records.save(out)
    told = lambda text: text.replace('+', ' + ') if '+' in key else text
    curves = {value: records.curves(value) for value in values}
    present = {
        f'{told(key)} = {told(value)}': list(runs.values())
        for value, runs in curves.items()
        if runs
    }
    if present:
        draw_curves(present, out / 'curves.png')
    lines = []
    for value, runs in curves.items():
        for seed, rows in runs.items():
            first, last = rows[0], rows[-1]
            spent = [f'{last["updates"]:.0f}', f'{last["nfe"] / 1e6:.3f}', f'{last["seconds"]:.0f}']
            lines.append(
                [
                    told(value),
                    seed,
                    *spent,
                    f'{first["score"]:.4f}',
                    f'{last["score"]:.4f} ± {last["standard_error"]:.4f}',
                ]
            )
        if len(runs) > 1:
            final = np.array([rows[-1]['score'] for rows in runs.values()])
            spread = f'± {final.std(ddof=1):.4f} (standard deviation over seeds)'
            lines.append(
                [f'**{told(value)}**', 'mean', '', '', '', '', f'**{final.mean():.4f}** {spread}']
            )
    head = [told(key), 'seed', 'updates', LABELS['nfe'], 'seconds', 'before']
    head += ['after (± standard error)']
    notes = out / 'notes.md'
    page = [
        f'# {told(key)}: '
        + (' against '.join(map(told, values)) if len(values) < 5 else f'{len(values)} variants'),
        f'    {command}',
        *([notes.read_text(encoding='utf-8').strip()] if notes.exists() else []),
        '![curves](curves.png)',
        table(head, lines),
    ]
    (out / PAGE).write_text('\n\n'.join(page) + '\n', encoding='utf-8')


def main(flag, extra: Sequence[str]) -> int:
    workdir, out = pathlib.Path(flag.workdir), pathlib.Path(flag.out)
    key = flag.vary.partition('=')[0]
    # mistakes are found now, and not in every run
    varied = variants(flag.vary, flag.config)
    set_here = tuple(f'config.{each}=' for each in key.split('+'))
    if twice := [text for text in extra if text.lstrip('-').startswith(set_here)]:
        raise ValueError(f'--vary={flag.vary} and {twice[0]} set the same key: leave one out')
    _check_read(flag.vary, varied, extra)
    runs = [
        Run(
            config,
            value,
            changes,
            seed,
            workdir / folder_name(value) / seed,
            workdir / 'text',
            tuple(extra),
        )
        # seed by seed, so that the finished part of an interrupted sweep can be compared
        for seed in flag.seeds
        for value, (config, changes) in varied.items()
    ]
    records = Records.load(out)
    check_page(out, 'python -m experiments.compare', ('curves.png',))
    left = [run for run in runs if not recorded(records, run)]
    base = check_sweep(flag.config, extra, left, records, out)

    def work(stop: StopRequest) -> int:
        facts = {'base': base, 'device': device(), 'commit': commit()}
        return 1 if run_all(left, 1, stop, facts) else FINISHED

    status = status_of(work)
    for run in left:
        if run.finished:
            records.add(run.folder)
    command = ' '.join(
        ['python -m experiments.compare', *(f"'{a}'" if ' ' in a else a for a in sys.argv[1:])]
    )
    write(records, key, list(varied), out, command)
    logging.info('made %s', ', '.join(str(p) for p in sorted(out.iterdir())))
    return status


def _check_read(vary: str, varied: Mapping[str, tuple[str, Changes]], extra: Sequence[str]) -> None:
    """Raises ValueError if no run reads a key that they differ in: it makes them no different."""
    reasons: dict[str, list[list[str]]] = {}
    for config, changes in varied.values():
        given = [f'--config.{key}={value}' for key, value in changes]
        complete = configured(config, [*extra, *given])
        try:
            silent = unread(complete)
        except ValueError:  # a part that does not exist: its run says so
            return
        for key, _ in changes:
            reasons.setdefault(key, []).append([str(each) for each in silent if each.key == key])
    for key, told in reasons.items():
        if all(told):
            raise ValueError(f'--vary={vary}: the runs would be equal in {key}. {told[0][0]}')


if __name__ == '__main__':
    flags.DEFINE_string('config', None, 'Configuration file, passed to densegrpo_jax.main.')
    flags.DEFINE_string(
        'vary',
        'credit.rule=dense,sparse',
        'Key and the values to compare: key=a,b,c; or method=a,b,c, or method=all; several keys '
        'together: key+other=a+x,b+y.',
    )
    define_seeds(3)
    define_folder('workdir', None, 'Where the runs go.')
    define_folder('out', None, 'Folder for the figure, the tables and the page.')
    flags.mark_flags_as_required(['config', 'workdir', 'out'])
    run_main(main, extra=True)
