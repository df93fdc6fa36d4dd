"""(e) What the settings are worth on SD3.5-M: rematerialisation of the update, adapters merged into
the base for sampling, and the ratio of the first update in bfloat16.
"""

from __future__ import annotations

import dataclasses

from benchmarks.accelerator.record import Record, arguments
from benchmarks.accelerator.setting import configuration, fitting, session_of, too_small
from benchmarks.bases import random_pipeline
from benchmarks.names import SPARSE, VELOCITY
from benchmarks.phases import Bench, Phase

REMAT = ('full', 'dots', 'none')


def main() -> None:
    given = arguments(__doc__)
    record, small = Record(given.record, given.step), given.size == 'small'
    if reason := too_small('sd35', small):
        record.add('skipped', reason=reason)
        record.finish()
        return
    repeat = 1 if small else 3
    session = session_of(configuration('sd35', 512, small), small)
    bench = Bench(session, repeat)
    for remat in REMAT:
        if (name := f'update, remat {remat}') not in record:
            with fitting(record, name):  # all train on the same record
                record.add(name, **row(bench.update(with_remat(session, remat, small))))
    merged = Bench(session, repeat, merged=True)
    for how, measured in (('beside the base', bench), ('merged', merged)):
        for phase in (VELOCITY, SPARSE):
            if (name := f'{phase}, adapters {how}') not in record:
                with fitting(record, name):
                    record.add(name, **row(measured.measure(phase)))
    record.finish()


def with_remat(session, remat: str, small: bool):
    """The session with the same weights, and another rematerialisation."""
    config = session.config.copy_and_resolve_references()
    config.model.remat = remat
    pipeline = random_pipeline(config, session.mesh, small)
    return dataclasses.replace(session, config=config, pipeline=pipeline)


def row(phase: Phase) -> dict:
    """What is kept of a phase."""
    return {
        'compile_s': phase.compile_s,
        **({'cached': True} if phase.cached else {}),
        'seconds': phase.seconds,
        'gib': phase.bytes / 2**30,
        **({} if phase.ratio is None else {'ratio_deviation': phase.ratio}),
    }


if __name__ == '__main__':
    main()
