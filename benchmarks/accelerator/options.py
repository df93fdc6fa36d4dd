"""(e) What the settings are worth on SD3.5-M: rematerialisation of the update, adapters merged into
the base for sampling, and the ratio of the first update in bfloat16.
"""

from __future__ import annotations

import jax

from benchmarks.accelerator.record import Record, arguments
from benchmarks.accelerator.setting import configuration, session_of, too_small
from benchmarks.phases import SPARSE, UPDATE, VELOCITY, phases

REMAT = ('full', 'dots', 'none')


def main() -> None:
    given = arguments(__doc__)
    record, small = Record(given.record), given.size == 'small'
    if reason := too_small('sd35', small):
        record.add('skipped', reason=reason)
        record.finish()
        return
    repeat = 1 if small else 3
    for remat in REMAT:
        name = f'update, remat {remat}'
        if name in record:
            continue
        config = configuration('sd35', 512, small)
        config.model.remat = remat
        try:
            [phase] = phases(session_of(config, small), repeat, [UPDATE])
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            record.add(name, missing='it does not fit this device')
            continue
        record.add(
            name,
            compile_s=phase.compile_s,
            seconds=phase.seconds,
            gib=phase.bytes / 2**30,
            ratio_deviation=phase.ratio,
        )
    config = configuration('sd35', 512, small)
    for merged in (False, True):
        how = 'merged' if merged else 'beside the base'
        names = {VELOCITY: f'velocity, adapters {how}', SPARSE: f'rollout, adapters {how}'}
        wanted = [phase for phase, name in names.items() if name not in record]
        for phase in phases(session_of(config, small), repeat, wanted, merged=merged):
            record.add(names[phase.name], compile_s=phase.compile_s, seconds=phase.seconds)
    record.finish()


if __name__ == '__main__':
    main()
