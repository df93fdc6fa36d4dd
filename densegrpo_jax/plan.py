"""Command: does a configuration fit a machine, and what would a run cost? The compiler answers,
before you rent anything.

    python -m densegrpo_jax.plan --config=configs/flux_ocr.py:devices=8 \\
        --topology=v5e:2x4 --config.mesh.fsdp=8
    python -m densegrpo_jax.plan --config=configs/sd35_ocr.py:devices=8 \\
        --topology=h100:8 --out=plan.json
    python -m densegrpo_jax.plan --config=configs/flux_ocr.py:devices=32 \\
        --topology=v5p:2x4x4 --quick
    python -m densegrpo_jax.plan --config=configs/flux_ocr.py:devices=1 --topology=cards:1

Compiles the real rollout (with completions and decoding), update and evaluation for that topology
and prints per device: the memory of each phase and of the chip, operations (counted from the
networks, not by the compiler), bytes received in collectives, and seconds at a stated utilisation.
For the whole run it prints chip-hours and whether it fits; if not, what would make it fit. With
--quick a TPU's compiler makes less effort: it takes an eighth of the time, and the plan shows more
memory than a run needs (docs/scaling.md).

`cards:N` asks about every GPU of the table, N of it: the least change that fits each, from the
configuration as it is over smaller batches and more rematerialisation to a base in 8 or 4 bits.

TPUs need `pip install libtpu` (requirements-tpu.txt), GPUs jax-cuda13-plugin, with
model.attention=cudnn also the libraries of nvidia-cudnn-cu13 in LD_LIBRARY_PATH. Without them the
CPU's compiler lays out the memory, and the table says so. The times do not include scoring on
hosts. Released checkpoints need no weights. With --search it plans densegrpo_jax.search: memory,
and seconds per prompt.
"""

from __future__ import annotations

import json
import pathlib

from absl import flags, logging

from densegrpo_jax.config.command_line import define_config, given_keys, run_main, say_start
from densegrpo_jax.config.flag_types import define_output, define_real
from densegrpo_jax.planning.chips import CHIPS
from densegrpo_jax.runtime.paths import writable
from densegrpo_jax.runtime.reading import read_json


def main(flag) -> int:
    from densegrpo_jax.config.unread import SEARCH, TRAINING, check_unread
    from densegrpo_jax.config.validation import validate

    out = writable(flag.out) if flag.out else None
    validate(flag.config)
    of = SEARCH if flag.search else TRAINING
    check_unread(flag.config, given_keys(), of=of, then=flag.unread)
    say_start(f'plan for {flag.topology}')

    import jax

    from densegrpo_jax.planning import cards
    from densegrpo_jax.planning.plan import check_rollout, plan
    from densegrpo_jax.planning.topology import parse
    from densegrpo_jax.runtime.trees import json_value

    jax.config.update('jax_platforms', 'cpu')  # nothing runs on the planned devices
    count = cards.count_of(flag.topology)
    topology = parse(flag.topology if count is None else f'{cards.REFERENCE}:{count}')
    if count and (flag.search or flag.quick):
        raise ValueError(f'--topology={flag.topology} is not for --search and has no --quick')
    if flag.quick and topology.chip.gpu:
        raise ValueError(
            f'--quick is for TPUs, and --topology={flag.topology} names GPUs, whose compiler takes '
            'seconds anyway: leave it out'
        )
    if not flag.search:
        # before so many devices are made
        check_rollout(flag.config, topology.count)
    if not topology.can_compile:
        logging.warning('%s is not installed: estimating with the CPU compiler', topology.compiler)
        jax.config.update('jax_num_cpu_devices', topology.count)
    if count:
        result = cards.fitting(flag.config, count, flag.utilisation, plan)
        text, fits = cards.table(result), any(result['fits'].values())
    else:
        text, result, fits = _one(flag, topology)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            json.dumps(json_value(result), indent=2, allow_nan=False) + '\n', encoding='utf-8'
        )
    return 0 if fits else 1


def _one(flag, topology) -> tuple[str, dict, bool]:
    """(table, document, whether it fits) of one topology."""
    from densegrpo_jax.planning import search
    from densegrpo_jax.planning.plan import plan, plan_search, table

    how = (flag.config, topology, flag.utilisation, flag.quick)
    result = plan_search(*how) if flag.search else plan(*how)
    return (search.table(result) if flag.search else table(result)), result, result['fits']


def _is_plan(path: pathlib.Path) -> bool:
    """Whether a file is of this command."""
    try:
        return {'estimated_on_cpu', 'fits'} <= read_json(path).keys()
    except (OSError, ValueError):
        return False


if __name__ == '__main__':
    define_config('Configuration of the run.', reads='plan')
    flags.DEFINE_string(
        'topology',
        None,
        f'KIND:SHAPE, KIND one of {sorted(CHIPS)}: v5p:2x2x1, h100:8; cards:N, N of every GPU.',
    )
    share = 'Assumed share of the peak rate that the arithmetic reaches.'
    define_real('utilisation', 0.4, share, above=0, high=1)
    flags.DEFINE_bool(
        'quick',
        False,
        'Compile for TPUs with the least effort: faster, and more memory in the plan than in a '
        'run.',
    )
    define_output('out', None, 'JSON file for the result.', '.json', _is_plan)
    flags.DEFINE_bool('search', False, 'Plan config.search instead of a training run.')
    flags.mark_flags_as_required(['config', 'topology'])
    run_main(main)
