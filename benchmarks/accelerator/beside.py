"""(b, c) Diffusers under torch.compile on the shapes of `model`: one velocity, decoding, and a
microbatch of the update. A step of its own, as JAX would hold the device's memory. At small size
without torch.compile.
"""

from __future__ import annotations

import subprocess

import jax

from benchmarks.accelerator.record import Record, arguments
from benchmarks.accelerator.setting import configuration
from benchmarks.torch_models import run_torch


def main() -> None:
    given = arguments(
        __doc__,
        ('--model', dict(choices=('sd35', 'flux'), required=True)),
        ('--side', dict(type=int, required=True)),
    )
    record, small = Record(given.record, given.step), given.size == 'small'
    jax.config.update('jax_platforms', 'cpu')  # the device is for torch
    config = configuration(given.model, given.side, small)
    try:
        found = run_torch(config, small, 1 if small else 3, compile=not small)
    except (subprocess.SubprocessError, ValueError) as error:
        raise SystemExit(f'torch failed, see above: {str(error).splitlines()[0][:200]}') from None
    facts = {key: found[key] for key in ('torch', 'device', 'how')}
    for name, row in found.items():
        if isinstance(row, dict):
            record.add(f'torch: {name}', **facts, **row)
    record.finish()


if __name__ == '__main__':
    main()
