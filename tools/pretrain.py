"""Command: trains a miniature FLUX and writes it as a Diffusers folder.

    python -m tools.pretrain --config=configs/tiny_pretrain.py --workdir=runs/tiny_pretrain

Every stage resumes from its own checkpoints; a finished stage is only read. The folder appears at
WORKDIR/flux. After a signal or an error the completed steps are saved, and the same command
continues. Exit status: 0 finished, 75 stopped by a signal, 2 a configuration or work directory
cannot be used, 1 anything else.
"""

from __future__ import annotations

import pathlib

from absl import flags, logging

from densegrpo_jax.config.command_line import define_config, define_folder, run_main
from densegrpo_jax.pipelines.folder import resolve_folder
from densegrpo_jax.runtime.files import only_writer
from densegrpo_jax.runtime.hosts import Hosts
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.outputs import claim
from densegrpo_jax.runtime.startup import start_devices
from densegrpo_jax.runtime.stop import FINISHED, RESUMABLE, Preempted, handle_stop_signals
from tools.make_miniature.miniature import FILES, FOLDERS, pretrain, rows, validate


def main(flag) -> int:
    config, workdir = flag.config, pathlib.Path(flag.workdir).expanduser().absolute()
    if 'dataset' not in config:
        raise ValueError(
            'this configures a training run; pretraining takes configs/tiny_pretrain.py or '
            'configs/tiny_shapes_pretrain.py'
        )
    validate(config)
    start_devices(rows(config))
    init = config.stages.vae.get('init', '')
    try:
        with only_writer(workdir, Hosts()), handle_stop_signals() as stop:
            claim(workdir, FILES, FOLDERS, read=[resolve_folder(init)] if init else [])
            mesh = make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
            folder = pretrain(config, workdir, mesh, stop)
    except Preempted as reason:
        logging.warning('%s; the same command continues', reason)
        return RESUMABLE
    size = sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())
    logging.info(
        'finished: %s (%.1f MiB, bfloat16); samples in %s',
        folder,
        size / 2**20,
        workdir / 'samples',
    )
    return FINISHED


if __name__ == '__main__':
    define_config('Pretraining configuration.', training=False)
    define_folder(
        'workdir', 'runs/tiny_pretrain', 'Where checkpoints, samples and the finished folder go.'
    )
    flags.mark_flag_as_required('config')
    run_main(main)
