"""Command: writes a run's policy in the layouts that other tools open.

    python -m densegrpo_jax.export --workdir=runs/flux_ocr --out=exported/flux_ocr
    python -m densegrpo_jax.export --workdir=runs/flux_ocr --layout=merged \\
        --out=exported/flux_ocr_full

The configuration is the run's own (WORKDIR/config.json) unless --config names another; the model
card and config.json tell of the run's own in any case.
Layouts: `peft` (Diffusers' load_lora_weights; ComfyUI reads it too, except of SD1.5), `kohya` (the
names of ComfyUI and of kohya's scripts, and of SD1.5 the only ones that ComfyUI reads; not SD3.5;
Diffusers opens it too), `merged` (a whole pipeline folder: the adapters are added to the
transformer's weights, the base's other parts stay as they are). A model card (README.md) with
settings, scores and curve lies beside it. Training can start from a file of either kind:
`--config.lora.init_from=exported/flux_ocr`.

--push=OWNER/NAME sends the finished files to a repository of the Hugging Face Hub, private unless
--public is given, with the token of `hf auth login` or HF_TOKEN.
"""

from __future__ import annotations

import pathlib

from absl import flags, logging

from densegrpo_jax.config.command_line import (
    define_config,
    define_folder,
    given_keys,
    goes_with,
    run_main,
    say_start,
)
from densegrpo_jax.config.flag_types import refuse
from densegrpo_jax.config.of_run import own_configuration
from densegrpo_jax.sampling.layouts import LAYOUTS

# names of a stored dtype, those of other tools too -> its name here
DTYPES = {
    '': '',
    'float32': 'float32',
    'fp32': 'float32',
    'bfloat16': 'bfloat16',
    'bf16': 'bfloat16',
    'float16': 'float16',
    'fp16': 'float16',
}


def main(flag) -> None:
    say_start('export', flag.out)

    import jax

    from densegrpo_jax.sampling.export import export

    # No accelerator is needed, and one may be too small for the exact base of a quantised run; one
    # host's part of a pod would wait for the others.
    jax.config.update('jax_platforms', 'cpu')
    workdir, out = (pathlib.Path(folder).expanduser() for folder in (flag.workdir, flag.out))
    told = own_configuration(workdir, flag.config, given_keys())
    made = export(
        flag.config,
        workdir,
        out,
        layout=flag.layout,
        checkpoint=flag.checkpoint,
        dtype=DTYPES[flag.dtype],
        push_to=flag.push or '',
        public=flag.public,
        told=told,
    )
    logging.info('made %s and its model card %s', made, out / 'README.md')


if __name__ == '__main__':
    define_config('Configuration of the run, unless its own is used.', of_run=True)
    define_folder('workdir', None, 'The training run.')
    define_folder('out', None, 'Folder to write into.')
    flags.DEFINE_enum('layout', 'peft', LAYOUTS, 'Adapters, or the base merged with them.')
    flags.DEFINE_string('checkpoint', 'best', "'best', 'latest' or a step.")
    flags.DEFINE_enum(
        'dtype',
        '',
        list(DTYPES),
        "Of the adapters, or of the merged transformer; '': float32, or model.dtype.",
    )
    flags.DEFINE_string('push', None, 'OWNER/NAME of a repository of the Hub to send the files to.')
    refuse('push', lambda name: None if name else 'it is empty: is a variable of the shell unset?')
    flags.DEFINE_bool('public', False, 'With --push: everyone may see it.')
    goes_with('public', 'push')
    flags.mark_flags_as_required(['config', 'workdir', 'out'])
    run_main(main)
