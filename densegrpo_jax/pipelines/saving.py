"""Pipeline folders in the Diffusers layout, written."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.weights import files as weights

SHARD_BYTES = 5 << 30  # of a file of weights; one shard is in memory while it is written


def save_pipeline(
    folder: str | pathlib.Path,
    pipeline: Pipeline,
    params: dict,
    *,
    dtype: Any = None,
    base: pathlib.Path | None = None,
) -> None:
    """Writes the folder that `load_pipeline` and the Diffusers pipeline open; weights in `dtype`
    (None keeps theirs), in files of at most SHARD_BYTES.

    base: the folder that the pipeline was opened from, whose components go along as they are where
      `params` has none.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {pipeline.folder(name): entry for name, entry in pipeline.INDEX.items()} | {
        'scheduler': ('diffusers', pipeline.SCHEDULER)
    }
    tokenizers = {e.tokenizer: ('transformers', e.kind) for e in pipeline.TEXT_ENCODERS}
    index = {name: list(entry) for name, entry in sorted({**entries, **tokenizers}.items())}
    _write_json(
        folder / 'model_index.json',
        {
            '_class_name': pipeline.CLASS_NAME,
            '_diffusers_version': '0.32.0',
            **pipeline.configs.get('pipeline', {}),
            **index,
        },
    )
    _write_json(folder / 'scheduler' / 'scheduler_config.json', pipeline.scheduler)
    for encoder, tokenizer in zip(pipeline.TEXT_ENCODERS, pipeline.tokenizers):
        tokenizer.save_pretrained(folder / encoder.tokenizer)
    rules = pipeline.weight_rules()
    for name, (library, cls) in pipeline.INDEX.items():
        target = folder / pipeline.folder(name)
        if base is not None and name not in params:
            _copy(base / pipeline.folder(name), target)
            continue
        _write_json(target / 'config.json', pipeline.configs[name])
        filename = (
            'model.safetensors'
            if library == 'transformers'
            else 'diffusion_pytorch_model.safetensors'
        )
        network = pipeline.modules[name]
        prefix = '' if cls in network.BARE else network.PREFIX
        weights.save_weights(
            target,
            rules[name],
            params[name],
            filename=filename,
            dtype=dtype,
            prefix=prefix,
            max_shard_bytes=SHARD_BYTES,
        )


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """A component's configuration and the weights that are read, under their names."""
    target.mkdir(parents=True, exist_ok=True)
    for earlier in target.glob('*.safetensors*'):
        earlier.unlink()
    files, _ = weights.weight_files(source)
    for path in (source / 'config.json', *files, *source.glob('*.safetensors.index.json')):
        shutil.copyfile(path, target / path.name)


def _write_json(path: pathlib.Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
