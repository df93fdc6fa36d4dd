"""Pipeline folders in the Diffusers layout: found by name, opened with or without weights."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from densegrpo_jax.core.classifier_free import ALWAYS
from densegrpo_jax.networks import attention
from densegrpo_jax.networks import quantize as quantize_lib
from densegrpo_jax.networks.attention import Attend
from densegrpo_jax.networks.lora import LoraConfig
from densegrpo_jax.pipelines.base import Pipeline
from densegrpo_jax.pipelines.chat import check_template
from densegrpo_jax.pipelines.flux import FluxPipeline
from densegrpo_jax.pipelines.flux2 import Flux2KleinPipeline
from densegrpo_jax.pipelines.sd3 import Sd3Pipeline
from densegrpo_jax.pipelines.sd15 import Sd15Pipeline
from densegrpo_jax.pipelines.tokenizers import (
    check_belongs,
    check_length,
    check_vocabulary,
    load_tokenizers,
)
from densegrpo_jax.pipelines.weights import files as weights
from densegrpo_jax.pipelines.weights.content import content_digest
from densegrpo_jax.pipelines.weights.hub import find_folder
from densegrpo_jax.pipelines.zimage import ZImagePipeline
from densegrpo_jax.runtime.reading import missing, read_json

PIPELINES: dict[str, type[Pipeline]] = {
    cls.CLASS_NAME: cls
    for cls in (FluxPipeline, Flux2KleinPipeline, ZImagePipeline, Sd3Pipeline, Sd15Pipeline)
}
WEIGHTS = '*.safetensors'
TOKENIZER_FILES = ('.json', '.txt', '.model', '.jinja')  # suffixes
BUILTIN = pathlib.Path(__file__).parents[1] / 'assets'  # pipelines that the package ships


def layout(kind: type[Pipeline] = FluxPipeline) -> str:
    """What a folder of this kind holds, for messages."""
    return ', '.join(['model_index.json', *(f'{name}/' for name in folders(kind))])


def folders(kind: type[Pipeline]) -> list[str]:
    """The folders inside a pipeline folder."""
    return [
        'scheduler',
        *map(kind.folder, kind.INDEX),
        *(encoder.tokenizer for encoder in kind.TEXT_ENCODERS),
    ]


def resolve_folder(name: str, *, weights: bool = True) -> pathlib.Path:
    """A local pipeline folder for `name`: the folder itself, 'builtin:tiny' for the miniature in
    the package, or the Hugging Face repository of that id, downloaded or cached.

    weights: False downloads only what `open_pipeline` reads, a few MB, into the same folder.

    Raises:
      FileNotFoundError: neither exists; the message says what to do.
    """
    if name.startswith('builtin:'):
        folder = BUILTIN / name.removeprefix('builtin:')
        if folder.is_dir():
            return folder
        shipped = (
            sorted(p.name for p in BUILTIN.iterdir() if p.is_dir()) if BUILTIN.is_dir() else []
        )
        raise FileNotFoundError(
            f'model.path={name!r}: the package ships {shipped or "no model"} in {BUILTIN}'
        )
    components = {name for kind in PIPELINES.values() for name in folders(kind)}
    return find_folder(
        name,
        option='model.path',
        holds=f'a Diffusers folder with {layout()}',
        example='black-forest-labs/FLUX.1-dev',
        files=['model_index.json', *(f'{c}/*' for c in sorted(components))],
        ignored=['*.bin', '*.onnx*', '*.msgpack', '*.fp16*', *([] if weights else [WEIGHTS])],
    )


def load_pipeline(folder: str | pathlib.Path, **options) -> tuple[Pipeline, dict]:
    """`open_pipeline` and all its weights, float32, on the default device: (pipeline, params)."""
    pipeline = open_pipeline(folder, **options)
    return pipeline, load_params(folder, pipeline)


def load_params(
    folder: str | pathlib.Path,
    pipeline: Pipeline,
    components: Sequence[str] | None = None,
    *,
    dtype: Any = jnp.float32,
    shardings: Callable[[dict], dict] | None = None,
    transformer_file: str | pathlib.Path = '',
    quantize: str = 'none',
) -> dict:
    """The weights of the named components of an opened pipeline (None: all): a dict over them.

    dtype: of the stored weights. shardings: maps a tree of shapes to a tree of shardings; None
    places every array on the default device. transformer_file: a safetensors file to take the
    transformer from instead, with Diffusers' names or those of the original release (`originals`).
    quantize: 'none', or the format that the transformer's blocks are stored in
    (`quantize.FORMATS`), each matrix as it arrives.
    """
    rules, params = pipeline.weight_rules(), {}
    for name, shapes in pipeline.abstract_params(components).items():
        placed = None if shardings is None else shardings(shapes)
        source, options = _source(folder, pipeline, name, transformer_file)
        if name == 'transformer' and quantize != 'none':
            blocks = pipeline.transformer.BLOCKS
            options['convert'] = quantize_lib.converter(shapes, quantize, blocks, shardings)
        params[name] = weights.load_weights(
            source, rules[name], shapes, dtype=dtype, shardings=placed, **options
        )
    return params


def check_params(
    folder: str | pathlib.Path,
    pipeline: Pipeline,
    components: Sequence[str] | None = None,
    *,
    transformer_file: str | pathlib.Path = '',
) -> None:
    """Raises the errors of `load_params` with these arguments, from the files' headers alone."""
    rules = pipeline.weight_rules()
    for name in pipeline.modules if components is None else components:
        shapes = pipeline.abstract_params([name])[name]  # one by one, so that errors come early
        source, options = _source(folder, pipeline, name, transformer_file)
        try:
            weights.check_weights(source, rules[name], shapes, **options)
        except ValueError as error:
            file = pathlib.Path(folder) / pipeline.folder(name) / 'config.json'
            raise ValueError(f'{error}{_unset(file, pipeline, name)}') from None


def check_files(
    folder: str | pathlib.Path, pipeline: Pipeline, *, transformer_file: str | pathlib.Path = ''
) -> None:
    """Raises the errors of `load_params` that do not depend on the networks: weights that are
    absent or damaged, without the seconds that a network's shapes take.
    """
    for name in pipeline.modules:
        weights.open_tensors(_source(folder, pipeline, name, transformer_file)[0])


def _unset(file: pathlib.Path, pipeline: Pipeline, name: str) -> str:
    """What a component's config.json leaves to defaults, as a line; '' if nothing."""
    network = getattr(pipeline.modules[name], 'config', None)
    fields = dataclasses.fields(network) if dataclasses.is_dataclass(network) else ()
    absent = [
        f.name for f in fields if f.name not in pipeline.configs[name] and f.default is not None
    ]
    return f'\n  {file} does not set {", ".join(absent)}: defaults were taken' if absent else ''


def params_digest(
    folder: str | pathlib.Path, pipeline: Pipeline, *, transformer_file: str | pathlib.Path = ''
) -> str:
    """A short hash of the files that `load_params` reads, see `content.content_digest`: equal in
    another place, and beside other files.
    """
    sources = (_source(folder, pipeline, n, transformer_file)[0] for n in pipeline.modules)
    return content_digest(path for of in sources for path in weights.weight_files(of)[0])


def files_digest(folder: str | pathlib.Path, pipeline: Pipeline) -> str:
    """A short hash of what `open_pipeline` reads: settings of the networks, the scheduler and the
    tokenizers, which decide results as the weights do. Equal in another place.
    """
    folder, total = pathlib.Path(folder), hashlib.sha256()
    files = [folder / 'model_index.json', folder / 'scheduler' / 'scheduler_config.json']
    files += [folder / pipeline.folder(name) / 'config.json' for name in pipeline.INDEX]
    for encoder in pipeline.TEXT_ENCODERS:
        inside = sorted((folder / encoder.tokenizer).rglob('*'))
        files += [path for path in inside if path.suffix in TOKENIZER_FILES]
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f'{path.relative_to(folder).as_posix()} {content}\n'.encode())
    return total.hexdigest()[:16]


def _source(
    folder: str | pathlib.Path, pipeline: Pipeline, name: str, transformer_file: str | pathlib.Path
) -> tuple[pathlib.Path, dict]:
    """Where the weights of a component are, and how its tensors are named there: options of
    `load_weights`.
    """
    network = pipeline.modules[name]
    options: dict[str, Any] = {'prefix': network.PREFIX, 'layout': network.layout}
    source = pathlib.Path(folder) / pipeline.folder(name)
    if name == 'transformer' and transformer_file:
        source = pathlib.Path(transformer_file).expanduser()
        if not source.is_file():
            raise missing(source, f'model.transformer_file={str(transformer_file)!r}')
        options['layout'] = pipeline.original_layout
    return source, options


def open_pipeline(folder: str | pathlib.Path, **options) -> Pipeline:
    """The pipeline without its weights: reads only the JSON files and the tokenizers.

    folder: Diffusers layout; its model_index.json says which family. options: those of
    `build_pipeline`; text_length is required.
    """
    folder = pathlib.Path(folder)

    def read(path: str, kind: type[Pipeline] = FluxPipeline) -> dict:
        return read_json(folder / path, f'a {kind.CLASS_NAME} folder with {layout(kind)}')

    index = read('model_index.json')
    name = index.get('_class_name')
    if name not in PIPELINES:
        raise ValueError(
            f'{folder / "model_index.json"}: _class_name is {name!r}, expected one of '
            f'{sorted(PIPELINES)}'
        )
    kind = PIPELINES[name]
    if absent := [c for c in folders(kind) if index.get(c) == [None, None]]:
        raise ValueError(
            f'{folder / "model_index.json"}: {absent[0]} is null: this model was saved without it, '
            'and it is needed here; save the whole pipeline'
        )
    configs = {
        component: read(f'{kind.folder(component)}/config.json', kind) for component in kind.INDEX
    }
    scheduler = read('scheduler/scheduler_config.json', kind)
    for component, (library, _) in kind.INDEX.items():
        names = ('_class_name',) if library == 'diffusers' else ('model_type', 'architectures')
        _check_kind(folder / kind.folder(component) / 'config.json', configs[component], names)
    _check_kind(folder / 'scheduler' / 'scheduler_config.json', scheduler, ('_class_name',))
    configs['pipeline'] = _options(folder / 'model_index.json', index, kind)
    tokenizers = load_tokenizers(folder, [(e.tokenizer, e.kind) for e in kind.TEXT_ENCODERS])
    for encoder, tokenizer in zip(kind.TEXT_ENCODERS, tokenizers):
        size = configs[encoder.component].get('vocab_size')
        if isinstance(size, int):
            check_vocabulary(tokenizer, size, f'{folder / encoder.tokenizer}')
        config = configs[encoder.component]
        check_belongs(tokenizer, encoder.kind, config, f'{folder / encoder.tokenizer}')
        longest = configs[encoder.component].get('max_position_embeddings')
        if isinstance(longest, int) and not encoder.chosen_length:
            check_length(tokenizer, longest, folder / encoder.tokenizer)
        if encoder.thinking is not None:
            check_template(tokenizer, f'{folder / encoder.tokenizer}')
    try:
        pipeline = build_pipeline(configs, scheduler, tokenizers, kind=kind, **options)
        pipeline.sigmas(1, 256, 256)  # reads the scheduler's settings
    except ValueError as error:
        raise ValueError(f'{folder}: {error}') from None
    except ArithmeticError as error:
        raise ValueError(
            f'{folder}: the numbers in its configurations cannot be used ({type(error).__name__}: '
            f"{error}): they are not the model's own; fetch it again"
        ) from None
    return pipeline


def _check_kind(path: pathlib.Path, config: dict, names: Sequence[str]) -> None:
    """Raises ValueError if a parsed file does not say what it configures, by one of the keys
    `names`. What it does not set has the libraries' defaults: a file that lost its content would be
    another network, or draw on another grid.
    """
    if not any(config.get(name) for name in names):
        raise ValueError(
            f'{path} has no {" or ".join(names)}, which every such file has: it is not the '
            "model's own; fetch it again"
        )


def _options(path: pathlib.Path, index: dict, kind: type[Pipeline]) -> dict[str, Any]:
    """The options of a kind in the parsed model_index.json at `path`. Raises ValueError if one is
    of another type than its default.
    """
    given = {key: index[key] for key in kind.OPTIONS if key in index}
    for key, value in given.items():
        if type(value) is not type(kind.OPTIONS[key]):
            raise ValueError(
                f'{path}: {key} is {value!r}; expected {type(kind.OPTIONS[key]).__name__}'
            )
    return given


def build_pipeline(
    configs: dict[str, dict],
    scheduler: dict,
    tokenizers: Sequence[Any],
    *,
    kind: type[Pipeline] = FluxPipeline,
    text_length: int,
    lora: LoraConfig | None = None,
    scan: bool = False,
    remat: str = 'none',
    dtype: Any = jnp.float32,
    attend: Attend = attention.xla,
    cfg_normalization: float = 0.0,
    cfg_truncation: float = ALWAYS,
) -> Pipeline:
    """The pipeline of the given component configurations (the contents of their config.json).

    Args:
      text_length: tokens per prompt of the text encoder whose length can be chosen: T5 in FLUX.1
        and SD3.5, which train here with 128, and Qwen3 in FLUX.2.
      lora: which layers of the transformer carry adapters; the adapters themselves are not part of
        the pipeline.
      scan, remat, attend: how the transformer's blocks are compiled, see `StackedNetwork`.
      dtype: of matrix products and of the residual stream.
      cfg_normalization, cfg_truncation: of classifier-free guidance, see
        `core.classifier_free.guided_velocity`.
    """
    modules = kind.build_modules(
        configs, lora=lora, scan=scan, remat=remat, dtype=dtype, attend=attend
    )
    return kind(
        modules=modules,
        tokenizers=tuple(tokenizers),
        scheduler=dict(scheduler),
        text_length=text_length,
        configs=configs,
        cfg_normalization=cfg_normalization,
        cfg_truncation=cfg_truncation,
    )
