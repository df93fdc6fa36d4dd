"""Exports a run's policy as files that other tools open, with a model card."""

from __future__ import annotations

import pathlib
import re
import shutil
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import logging

from densegrpo_jax.config.schema import KEYS
from densegrpo_jax.networks import lora
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.folder import folders
from densegrpo_jax.pipelines.saving import save_pipeline
from densegrpo_jax.pipelines.weights import lora_files
from densegrpo_jax.pipelines.weights.lora_reading import FILENAME, KOHYA_FILENAME
from densegrpo_jax.runtime.markdown import table
from densegrpo_jax.runtime.mesh import make_mesh
from densegrpo_jax.runtime.outputs import claim
from densegrpo_jax.runtime.reading import read_json, shown
from densegrpo_jax.sampling.layouts import LAYOUTS, MERGED
from densegrpo_jax.sampling.loading import find_step, load_policy
from densegrpo_jax.sampling.noise import title
from densegrpo_jax.sampling.push import check_push, push
from densegrpo_jax.sampling.session import check, load_weights, open_shapes

CURVE = 'reward_curve.png'  # of a finished run
PROMPT = 'A neon sign that says "HELLO"'  # of the card
# ComfyUI looks for the layers of a U-Net by kohya's names alone
PASSED_OVER = """
ComfyUI passes over this file; it reads what `densegrpo export --layout=kohya` writes.
"""
HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')  # of a released model

CARD = """---
{front}library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image, {tag}reinforcement-learning, densegrpo]
---

# {label}

Trained with densegrpo_jax (DenseGRPO, arXiv 2601.20218) from `{base}`, {step} updates.

```python
{snippet}
```
{other}
{scores}
{settings}

The weights inherit the licence of the base model. `config.json` beside this card is the run's whole
configuration.
"""


def written(pipeline: Pipeline, layout: str) -> tuple[list[str], list[str]]:
    """The names of files and of folders that an export writes in its folder."""
    files = {'peft': FILENAME, 'kohya': KOHYA_FILENAME, MERGED: 'model_index.json'}
    within = folders(type(pipeline)) if layout == MERGED else []
    return [files[layout], 'README.md', 'config.json', CURVE], within


def drawing(config, pipeline: Pipeline) -> dict[str, float]:
    """The arguments with which the pipeline in Diffusers draws as the run's evaluation did."""
    model = config.model
    found = {'height': model.height, 'width': model.width, 'num_inference_steps': config.eval.steps}
    found['guidance_scale'] = pipeline.diffusers_guidance(model.guidance)
    if any(encoder.chosen_length for encoder in pipeline.TEXT_ENCODERS):
        found['max_sequence_length'] = model.t5_length  # padding is attended to
    options = ('cfg_normalization', 'cfg_truncation')
    return found | {n: model[n] for n in options if model[n] != KEYS[f'model.{n}'].default}


def snippet(config, pipeline: Pipeline, home: str, layout: str, filename: str) -> str:
    """The lines that draw with it in Diffusers. home: the export's folder, or its repository."""
    model = config.model
    base, file, dtype = model.path, model.transformer_file, model.dtype
    lines = ['import torch', f'from diffusers import {pipeline.CLASS_NAME}']
    opened = repr(home if layout == MERGED else base)
    if layout != MERGED and base.startswith('builtin:'):  # wherever the package is
        lines.insert(0, 'from importlib.resources import files')
        opened = f"files('densegrpo_jax') / 'assets' / {base.removeprefix('builtin:')!r}"
    elif layout != MERGED and base.startswith('~'):  # Diffusers does not expand it
        lines.insert(0, 'import os')
        opened = f'os.path.expanduser({base!r})'
    lines += [
        f'pipe = {pipeline.CLASS_NAME}.from_pretrained(',
        f'    {opened}, torch_dtype=torch.{dtype}',
        ')',
    ]
    if file and layout != MERGED:
        lines.append(f'# first put the transformer of {file} in the place of pipe.transformer')
    if layout != MERGED:
        lines.append(f'pipe.load_lora_weights({home!r}, weight_name={filename!r})')
    arguments = [
        repr(PROMPT),
        *(f'{n}={value:g}' for n, value in drawing(config, pipeline).items()),
    ]
    lines += ['image = pipe(', *(f'    {argument},' for argument in arguments), ').images[0]']
    return '\n'.join(lines)


def _evaluations(workdir: pathlib.Path) -> list:
    """Those in a run's summary.json, if there is one. Raises ValueError if it has another form."""
    path = workdir / 'summary.json'
    found = read_json(path).get('evaluations') if path.is_file() else []
    number = lambda value: type(value) in (int, float)
    row = lambda r: (
        isinstance(r, list) and len(r) == 3 and type(r[0]) is int and all(map(number, r))
    )
    if not isinstance(found, list) or not all(map(row, found)):
        raise ValueError(
            f'{path}: evaluations is {shown(found)}; expected [step, mean, standard error] each. '
            'Move the file away to leave the scores out of the model card'
        )
    return found


def model_card(
    config,
    pipeline: Pipeline,
    workdir: pathlib.Path,
    out: pathlib.Path,
    layout: str,
    filename: str,
    step: int,
    evaluations: Sequence[Sequence[float]] = (),
    home: str = '',
) -> str:
    """The text of README.md; copies the run's curve beside it if there is one.

    evaluations: of a finished run, [step, mean, standard error] each.
    home: where others will open the export; '' = `out`.
    """
    scores = ''
    if evaluations:
        line = lambda mean, error: f'{mean:.4f} ± {error:.4f}'
        first, of_step = evaluations[0], {evaluated: score for evaluated, *score in evaluations}
        # not the run's last score: these weights may be of an earlier step, or of one that was not
        # evaluated
        if step in of_step:
            since = f'after {first[0]} updates' if first[0] else 'before'
            scores = (
                f'Evaluation score {since} {line(*first[1:])}, after {line(*of_step[step])} '
                '(standard errors over the prompts).\n'
            )
    if (workdir / CURVE).is_file():
        shutil.copyfile(workdir / CURVE, out / CURVE)
        scores += f'\n![reward curve]({CURVE})\n'
    model, rows = config.model, {}
    if model.quantize != 'none':
        rows['base while it was trained'] = model.quantize
    if not config.full:
        rows['LoRA rank, alpha'] = f'{config.lora.rank}, {config.lora.alpha:g}'
    rows |= {
        'reward': ', '.join(config.reward),
        'credit': config.credit.rule,
        'learning rate': config.optim.learning_rate,
        'T': config.rollout.steps,
        'seed': config.seed,
    }
    # the Hub accepts no other names of models in a card's head
    base, file = model.path, model.transformer_file
    released = HUB_ID.fullmatch(base) and not pathlib.Path(base).exists() and not file
    return CARD.format(
        front=f'base_model: {base}\n' if released else '',
        tag='' if layout == MERGED else 'lora, ',
        base=f'{base}` with the transformer of `{file}' if file else base,
        label=title(config, out.name),
        step=step,
        scores=scores,
        other=PASSED_OVER if layout == 'peft' and pipeline.DENOISER == 'unet' else '',
        snippet=snippet(config, pipeline, home or str(out), layout, filename),
        settings=table(('setting', 'value'), ((name, str(value)) for name, value in rows.items())),
    )


def export(
    config,
    workdir: pathlib.Path,
    out: pathlib.Path,
    *,
    layout: str = 'peft',
    checkpoint: str = 'best',
    dtype: str = '',
    push_to: str = '',
    public: bool = False,
    told=None,
) -> pathlib.Path:
    """Writes the moving average of a run's policy and returns the file or folder; see the
    module's docstring.

    push_to: OWNER/NAME of a repository of the Hub that gets the finished files, see `push`.
      public: to everyone.
    told: the configuration of which card and config.json tell, if `config` is not the run's own.

    Raises:
      ValueError: an unknown layout, or one in which the network has no names; or `out` is the input
        folder, or holds files that other programs wrote.
    """
    if layout not in LAYOUTS:
        raise ValueError(f'--layout={layout!r} is not known; choose one of {LAYOUTS}')
    if config.full and layout != MERGED:
        raise ValueError(
            f'--layout={layout} holds adapters, but this run trains all weights: use '
            '--layout=merged'
        )
    told = config if told is None else told
    mesh = make_mesh({'data': 1, 'fsdp': -1, 'tensor': 1})
    exact = config.copy_and_resolve_references()
    # Adapters are merged into the original base, not into its quantised form; nothing is computed
    # with it.
    exact.model.update(quantize='none', attention='xla')
    kind = jnp.dtype(dtype) if dtype else None
    if layout == MERGED and kind not in (None, jnp.dtype(config.model.dtype)):
        exact.model.dtype = 'float32'  # the sums are rounded once, when they are written
    target = check_push(push_to, public) if push_to else None
    find_step(workdir, checkpoint)  # checks that a checkpoint exists before a base is downloaded
    checked = check(exact, mesh) if layout == MERGED else None
    pipeline = open_shapes(exact, mesh) if checked is None else checked.pipeline
    evaluations = _evaluations(workdir)
    base = [checked.folder] if checked else []
    file = pathlib.Path(config.model.transformer_file).expanduser()
    read = [workdir, *base, *([file] if config.model.transformer_file and checked else [])]
    claim(out, *written(pipeline, layout), read=read, closed=[workdir / 'checkpoints', *base])
    digest = checked.base_digest if checked else None
    policy, step = load_policy(pipeline, config, mesh, workdir, checkpoint, digest)
    names, scale = pipeline.adapter_names(), config.lora.alpha / config.lora.rank
    if layout == MERGED:
        filename = ''
        if not config.full:
            merge = jax.jit(lora.merge, static_argnums=2, donate_argnums=0)
            params = load_weights(checked, ['transformer'])
            policy = merge(params.pop('transformer'), policy, scale)
        kind = kind or jnp.dtype(config.model.dtype)
        save_pipeline(out, pipeline, {'transformer': policy}, dtype=kind, base=checked.folder)
    else:
        layers = lora_files.to_layers(policy, names, scale)
        if layout == 'peft':
            filename, tensors = FILENAME, lora_files.peft_tensors(layers, pipeline.DENOISER)
        else:
            widths = lora_files.output_widths(
                names, pipeline.abstract_params(['transformer'])['transformer']
            )
            filename, tensors = (
                KOHYA_FILENAME,
                lora_files.kohya_tensors(layers, widths, pipeline.ORIGINAL),
            )
        lora_files.write(
            out / filename,
            tensors,
            dtype=kind,
            metadata={'densegrpo_step': str(step), 'base_model': told.model.path},
        )
    shown = told.copy_and_resolve_references()
    if layout == MERGED:  # the file's own base and precision
        shown.model.update({n: config.model[n] for n in ('path', 'transformer_file', 'dtype')})
    (out / 'README.md').write_text(
        model_card(shown, pipeline, workdir, out, layout, filename, step, evaluations, push_to),
        encoding='utf-8',
    )
    (out / 'config.json').write_text(told.to_json_best_effort(indent=2) + '\n', encoding='utf-8')
    if target is not None:
        what = f'{title(told, out.name)}, {step} updates ({layout})'
        address = push(target, out, sum(written(pipeline, layout), []), what)
        logging.info('pushed to %s, %s', address, 'public' if public else 'private')
    return out / filename
