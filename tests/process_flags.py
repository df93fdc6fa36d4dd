"""The flags that `sampling.execution.execute` reads, as of one process without any given."""

import types


def process_flags(workdir, **given):
    """Flags with those that a test gives, others of its command among them."""
    plain = dict(
        config=None,
        device='',
        cpu_devices=0,
        heartbeat=0,
        distributed='off',
        coordinator='',
        num_processes=0,
        process_id=-1,
    )
    return types.SimpleNamespace(workdir=str(workdir), **plain | given)
