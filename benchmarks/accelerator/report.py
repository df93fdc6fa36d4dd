"""The final table, and the line for docs/results/accelerators.md: what was measured, and which aims
were met.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.accelerator.steps import QUICK
from benchmarks.names import DECODING, DENSE, UPDATE, VELOCITY

ROLLOUT_MFU, UPDATE_MFU, HIDDEN = 0.60, 0.55, 0.90
MET, MISSED, OPEN = 'met', 'NOT MET', 'not measured'


class Aim(NamedTuple):
    """text: the aim; verdict: of MET, MISSED, OPEN; found: what was measured, in words."""

    text: str
    verdict: str
    found: str


def _rows(found: Mapping[str, dict], part: str, *words: str) -> dict[str, dict]:
    """All rows of a part whose names of steps hold all words; of two modes the faster one."""
    best: dict[str, dict] = {}
    for name, document in found.items():
        if name.split('_')[0] != part or not all(word in name.split('_') for word in words):
            continue
        for row, values in document['rows'].items():
            old = best.get(row, {}).get('seconds')
            if old is None or values.get('seconds', old) < old:
                best[row] = values
    return best


def aims(found: Mapping[str, dict]) -> list[Aim]:
    """Every aim with its verdict."""
    result = []
    shapes = [row for row in _rows(found, 'a').values() if 'equal' in row]
    wrong = [row for row in shapes if not row['equal']]
    verdict = OPEN if not shapes else MISSED if wrong else MET
    result.append(
        Aim(
            'fused attention equals plain attention, forward and backward',
            verdict,
            f'{len(shapes) - len(wrong)} of {len(shapes)} shapes' if shapes else '',
        )
    )
    for model, part, words in (('SD3.5-M', 'b', ()), ('FLUX.1-dev', 'c', ('512',))):
        rows = _rows(found, part, *words)
        for name, least in ((DENSE, ROLLOUT_MFU), (UPDATE, UPDATE_MFU)):
            result.append(_mfu(f'{model} 512 px', name, rows.get(name, {}), least))
        result.append(_beside_torch(f'{model} 512 px', rows))
    memory = _rows(found, 'c', '512').get('peak memory', {})
    verdicts_of_memory = {None: OPEN, True: MET, False: MISSED}
    result.append(
        Aim(
            'flux_ocr:devices=1 fits 80 GB',
            verdicts_of_memory[memory.get('fits_80_gb')],
            f'{memory["gib"]:.1f} GiB' if memory else '',
        )
    )
    hidden = _rows(found, 'd').get('hidden')
    result.append(
        Aim(
            f'sampling hides at least {HIDDEN:.0%} of the scoring',
            OPEN if hidden is None else MET if hidden['hidden'] >= HIDDEN else MISSED,
            '' if hidden is None else f'{hidden["hidden"]:.0%}, at most {hidden["at_most"]:.0%}',
        )
    )
    return result


def _mfu(model: str, name: str, row: Mapping, least: float) -> Aim:
    share = row.get('mfu')
    verdict = OPEN if share is None else MET if share >= least else MISSED
    if 'seconds' not in row:
        return Aim(
            f'{model}, {name}: at least {least:.0%} of the peak', OPEN, row.get('missing', '')
        )
    found = f'{row["seconds"]:.3g} s'
    found += f', {share:.0%}' if share is not None else ', no peak known'
    return Aim(f'{model}, {name}: at least {least:.0%} of the peak', verdict, found)


def _beside_torch(model: str, rows: Mapping[str, dict]) -> Aim:
    """Velocity, decoding and a microbatch of the update against torch's; the worst counts."""
    ratios = {}
    for name in (VELOCITY, DECODING, UPDATE):
        title = f'torch: {name}' + (' of a microbatch' if name == UPDATE else '')
        ours, theirs = rows.get(name), rows.get(title)
        if ours and theirs and 'seconds' in ours and theirs['how'] == 'torch.compile':
            seconds = ours['seconds']
            if name == UPDATE:
                seconds *= ours['microbatch'] / ours['count']
            ratios[name] = seconds / theirs['seconds']
    text = f'{model}: not slower than torch.compile'
    if not ratios:
        return Aim(text, OPEN, '')
    found = ', '.join(f'{name} {ratio:.2f} of its time' for name, ratio in ratios.items())
    return Aim(text, MET if max(ratios.values()) <= 1 else MISSED, found)


def table(found: Mapping[str, dict], left_out: Mapping[str, str]) -> str:
    """Every row of every step, then the steps that were left out."""
    lines = []
    for name, document in found.items():
        state = '' if document['done'] else ' (stopped: run it again for the rest)'
        lines.append(f'{name}: {document["seconds"]:.0f} s{state}')
        for row, values in document['rows'].items():
            shown = ', '.join(
                f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}'
                for key, value in values.items()
                if value is not None
            )
            lines.append(f'    {row:34s} {shown}')
    lines += [f'{name}: left out, {reason}' for name, reason in left_out.items()]
    return '\n'.join(lines)


def verdicts(found: Mapping[str, dict]) -> str:
    """The aims, met or not."""
    lines = [f'    {aim.verdict:12s} {aim.text}  {aim.found}'.rstrip() for aim in aims(found)]
    return '\n'.join(['aims', *lines])


def line(facts: Mapping, found: Mapping[str, dict]) -> str:
    """One row of the table of docs/results/accelerators.md."""

    def share(part: str, name: str, *words: str) -> str:
        row = _rows(found, part, *words).get(name, {})
        if 'seconds' not in row:
            return '-'
        return f'{row["seconds"]:.3g} s' + (f', {row["mfu"]:.0%}' if row.get('mfu') else '')

    rows = [
        row
        for name, document in found.items()
        if name.endswith(f'_{QUICK}')
        for row in document['rows'].values()
    ]
    # of what was read from the cache the seconds tell nothing
    compiling = sum(row.get('compile_s', 0.0) for row in rows if not row.get('cached'))
    least = 'at least ' if any(row.get('cached') for row in rows) else ''
    judged = [aim.verdict for aim in aims(found)]
    hidden = _rows(found, 'd').get('hidden')
    cells = (
        f'{facts["count"]} x {facts["device"]}, jax {facts["jax"]}',
        share('b', DENSE),
        share('b', UPDATE),
        share('c', DENSE, '512'),
        share('c', UPDATE, '512'),
        '-' if hidden is None else f'{hidden["hidden"]:.0%}',
        f'{least}{compiling:.0f} s',
        f'{judged.count(MET)} met, {judged.count(MISSED)} not, {judged.count(OPEN)} open',
    )
    return f'| {" | ".join(cells)} |'
