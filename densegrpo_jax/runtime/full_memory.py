"""What helps when the memory of a device is full. Imports nothing large."""

HELP = (
    "error: the device's memory is full. Another process may hold it (`nvidia-smi` names it): "
    'while one trains, a second command on the same GPU has no room. What lowers the need: smaller '
    'optim.microbatch, rollout.prompts_per_batch or eval.batch, model.quantize=int8 or nf4, '
    'model.remat=full, and mesh.fsdp over several devices. `densegrpo plan --config=RECIPE '
    '--topology=cards:1` says what fits on which card'
)


def explain(error: RuntimeError) -> None:
    """Adds `HELP` to XLA's error that the memory of a device is full: it stands after the
    traceback, wherever that is shown.
    """
    if 'RESOURCE_EXHAUSTED' in str(error):
        error.add_note(HELP)
