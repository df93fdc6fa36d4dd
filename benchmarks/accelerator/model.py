"""(b, c) A model with random weights: every phase of an iteration, its seconds to compile and to
run, its share of the chip's peak, its memory. `beside` measures Diffusers on the same shapes.
"""

from __future__ import annotations

from benchmarks.accelerator.device import facts
from benchmarks.accelerator.record import Record, arguments
from benchmarks.accelerator.setting import configuration, peak_gib, session_of, too_small
from benchmarks.phases import PHASES, phases

MEMORY = 'peak memory'


def main() -> None:
    given = arguments(
        __doc__,
        ('--model', dict(choices=('sd35', 'flux'), required=True)),
        ('--side', dict(type=int, required=True)),
    )
    record, small = Record(given.record), given.size == 'small'
    repeat = 1 if small else 3
    record.facts = facts()
    if reason := too_small(given.model, small):
        record.add('skipped', reason=reason)
        record.finish()
        return
    config = configuration(given.model, given.side, small)
    wanted = [name for name in PHASES if name not in record]
    peak = record.facts['peak']
    for phase in phases(session_of(config, small), repeat, wanted):
        rate = phase.flops / phase.seconds
        record.add(
            phase.name,
            count=phase.count,
            compile_s=phase.compile_s,
            seconds=phase.seconds,
            tflops=rate / 1e12,
            mfu=peak and rate / peak,
            gib=phase.bytes / 2**30,
            **({} if phase.ratio is None else {'ratio_deviation': phase.ratio}),
            **({} if phase.name != 'update' else {'microbatch': config.optim.microbatch}),
        )
    if MEMORY not in record:
        held = peak_gib() or max(record.rows[name]['gib'] for name in PHASES)
        record.add(MEMORY, gib=held, fits_80_gb=held <= 74.0)
    record.finish()


if __name__ == '__main__':
    main()
