"""(b, c) A model with random weights: every phase of an iteration, its seconds to compile and to
run, its share of the chip's peak, its memory. `beside` measures Diffusers on the same shapes.
"""

from __future__ import annotations

from benchmarks.accelerator.record import Record, arguments
from benchmarks.accelerator.setting import configuration, fitting, peak_gib, session_of, too_small
from benchmarks.names import PHASES, UPDATE
from benchmarks.phases import Bench, Phase

MEMORY = 'peak memory'
CARD_GIB = 74.0  # of 80 GB, less what the driver and other programs hold


def main() -> None:
    given = arguments(
        __doc__,
        ('--model', dict(choices=('sd35', 'flux'), required=True)),
        ('--side', dict(type=int, required=True)),
    )
    record, small = Record(given.record, given.step), given.size == 'small'
    if reason := too_small(given.model, small):
        record.add('skipped', reason=reason)
        record.finish()
        return
    config = configuration(given.model, given.side, small)
    peak, micro = record.facts['peak'], config.optim.microbatch
    bench = Bench(session_of(config, small), 1 if small else 3)
    for name in PHASES:
        if name not in record:
            with fitting(record, name):
                record.add(name, **row(bench.measure(name), peak, micro))
    rows = [record.rows[name] for name in PHASES]
    # of a step that continued, the peak is of its last process alone
    held = max([peak_gib(), *(found.get('gib', 0.0) for found in rows)])
    fits: bool | None = held <= CARD_GIB
    if any('missing' in found for found in rows):
        fits = False if (record.facts['gib'] or 0) >= CARD_GIB else None
    record.add(MEMORY, gib=held, fits_80_gb=fits)
    record.finish()


def row(phase: Phase, peak: float | None, microbatch: int) -> dict:
    """What is kept of a phase."""
    rate = phase.flops / phase.seconds
    return {
        'count': phase.count,
        'compile_s': phase.compile_s,
        **({'cached': True} if phase.cached else {}),
        'seconds': phase.seconds,
        'runs': phase.runs,
        'tflops': rate / 1e12,
        'mfu': peak and rate / peak,
        'gib': phase.bytes / 2**30,
        **({} if phase.ratio is None else {'ratio_deviation': phase.ratio}),
        **({} if phase.name != UPDATE else {'microbatch': microbatch}),
    }


if __name__ == '__main__':
    main()
