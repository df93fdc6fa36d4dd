"""A FLUX pipeline folder in the Diffusers layout: networks, tokenizers and scheduler, opened, used and written back."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.schedules import sigmas_from_scheduler
from densegrpo_jax.data.tokenizers import load_tokenizers, tokenize
from densegrpo_jax.models import clip_text, flux, t5, vae, weights
from densegrpo_jax.models.lora import LoraConfig
from densegrpo_jax.models.packing import PATCH, latent_image_ids, token_grid, unpack_latents

CLASS_NAME = 'FluxPipeline'
COMPONENTS = ('transformer', 'vae', 'text_encoder', 'text_encoder_2')
BUILTIN = pathlib.Path(__file__).parents[1] / 'assets'  # pipelines that the package ships
LAYOUT = 'model_index.json, scheduler/, transformer/, vae/, text_encoder/, text_encoder_2/, tokenizer/ and tokenizer_2/'


class Conditioning(NamedTuple):
    """What the transformer knows of the prompts: text [B, L, D] (T5 states) and pooled [B, D'] (CLIP), float32 or the model's dtype."""

    text: jax.Array
    pooled: jax.Array

    def repeat(self, copies: int) -> Conditioning:
        """Every prompt `copies` times in a row: prompt-major groups."""
        return Conditioning(*(jnp.repeat(a, copies, axis=0) for a in self))


@dataclasses.dataclass(frozen=True)
class FluxPipeline:
    """Networks and settings without weights; the weights are a dict with the keys of `COMPONENTS`."""

    transformer: flux.FluxTransformer
    vae: vae.AutoencoderKL
    text_encoder: clip_text.ClipTextModel
    text_encoder_2: t5.T5Encoder
    tokenizer: Any
    tokenizer_2: Any
    scheduler: dict
    t5_length: int
    configs: dict[str, dict]  # the config.json of every component, as read

    def sigmas(self, num_steps: int, height: int, width: int) -> np.ndarray:
        """Grid [num_steps + 1] that Diffusers' FluxPipeline uses for this size."""
        rows, cols = token_grid(height, width)
        return sigmas_from_scheduler(self.scheduler, num_steps, rows * cols, pipeline='flux')

    def latent_shape(self, height: int, width: int) -> tuple[int, int]:
        """(tokens, channels) of one picture's packed latents."""
        rows, cols = token_grid(height, width)
        return rows * cols, self.transformer.config.in_channels

    def tokenize(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """CLIP and T5 token ids, int32 [B, Lc] and [B, t5_length], as FluxPipeline.encode_prompt makes them."""
        clip_ids = tokenize(self.tokenizer, prompts, self.tokenizer.model_max_length)
        return clip_ids, tokenize(self.tokenizer_2, prompts, self.t5_length)

    def encode(self, params: dict, clip_ids: jax.Array, t5_ids: jax.Array) -> Conditioning:
        """Conditioning of tokenised prompts. T5 sees the padding, as in Diffusers: no mask is passed."""
        _, pooled = self.text_encoder.apply({'params': params['text_encoder']}, clip_ids)
        text = self.text_encoder_2.apply({'params': params['text_encoder_2']}, t5_ids)
        return Conditioning(text, pooled)

    def velocity_fn(
        self, base: dict, adapters: dict | None, conditioning: Conditioning, guidance: jax.Array | float, height: int, width: int
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The velocity `v(x [B, N, C], s [B]) -> [B, N, C]` float32 that core/ works with.

        Args:
          base: the transformer's parameters.
          adapters: LoRA collection, or None for the reference policy.
          conditioning: of B rows.
          guidance: input of the guidance embedding, scalar or [B] (a network without that embedding has no use for it).
        """
        variables = {'params': base} if adapters is None else {'params': base, 'lora': adapters}
        img_ids = latent_image_ids(height, width)
        txt_ids = np.zeros((conditioning.text.shape[1], 3), np.float32)

        def velocity(x, s):
            scale = jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), s.shape) if self.transformer.config.guidance_embeds else None
            return self.transformer.apply(variables, x, conditioning.text, conditioning.pooled, s, scale, img_ids, txt_ids)

        return velocity

    def decode(self, params: dict, latents: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
        """Pictures of packed latents [B, N, C], rounded as Diffusers' image processor does.

        Returns:
          uint8 [B, height, width, 3], and bool [B]: False where a picture holds NaN or infinity (drawn black).
        """
        config = self.vae.config
        z = unpack_latents(latents, height, width) / config.scaling_factor + (config.shift_factor or 0.0)
        images = self.vae.apply({'params': params['vae']}, z, method='decode')
        finite = jnp.isfinite(images).all((1, 2, 3))
        unit = jnp.where(finite[:, None, None, None], jnp.clip(images / 2 + 0.5, 0.0, 1.0), 0.0)
        return jnp.round(unit * 255).astype(jnp.uint8), finite

    def abstract_params(self) -> dict:
        """Shapes of every component's parameters: a tree of jax.ShapeDtypeStruct, float32."""
        return {name: _abstract(name, self) for name in COMPONENTS}

    def init_params(self, key: jax.Array) -> dict:
        """Fresh float32 parameters of every component."""
        return {name: jax.jit(_initialiser(name, self))(key) for name in COMPONENTS}


def resolve_folder(name: str, *, revision: str | None = None) -> pathlib.Path:
    """A local pipeline folder for `name`: the folder itself, 'builtin:tiny' for the miniature that the package ships, or the
    Hugging Face repository of that id, downloaded or cached.

    Raises:
      FileNotFoundError: neither exists; the message says what to do.
    """
    folder = BUILTIN / name.removeprefix('builtin:') if name.startswith('builtin:') else pathlib.Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith('builtin:'):
        shipped = sorted(p.name for p in BUILTIN.iterdir() if p.is_dir()) if BUILTIN.is_dir() else []
        raise FileNotFoundError(f'model.path={name!r}: the package ships {shipped or "no model"} in {BUILTIN}')
    if name.count('/') != 1 or name.startswith(('.', '/', '~')):
        raise FileNotFoundError(
            f'model.path={name!r} is not a folder. Give a Diffusers folder with {LAYOUT}, '
            'or a Hugging Face id such as black-forest-labs/FLUX.1-dev'
        )
    import huggingface_hub
    from huggingface_hub import errors

    patterns = ['model_index.json', *(f'{c}/*' for c in (*COMPONENTS, 'scheduler', 'tokenizer', 'tokenizer_2'))]
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=['*.bin', '*.onnx*'])
        )
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise FileNotFoundError(
            f'the weights {name!r} are not on this machine and could not be fetched ({type(error).__name__}). Either accept the licence on '
            f'its page, run `hf auth login` and retry; or fetch them elsewhere (`hf download {name} --local-dir DIR`) and pass '
            f'--config.model.path=DIR, a folder with {LAYOUT}'
        ) from None


def load_pipeline(
    folder: str | pathlib.Path,
    *,
    t5_length: int,
    lora: LoraConfig | None = None,
    scan: bool = False,
    remat: str = 'none',
    dtype: Any = jnp.float32,
    shardings: Callable[[dict], dict] | None = None,
) -> tuple[FluxPipeline, dict]:
    """Opens a FLUX folder.

    Args:
      folder: Diffusers layout.
      t5_length: T5 tokens per prompt (FLUX.1-dev is trained here with 128).
      lora: which layers of the transformer carry adapters; the adapters themselves are not part of the result.
      scan, remat: how the transformer's blocks are compiled, see `FluxTransformer`.
      dtype: of the stored weights and of matrix products.
      shardings: maps a tree of shapes to a tree of shardings; None places every array on the default device.

    Returns:
      (pipeline, params) with params a dict over `COMPONENTS`.
    """
    pipeline = open_pipeline(folder, t5_length=t5_length, lora=lora, scan=scan, remat=remat, dtype=dtype)
    rules = weight_rules(pipeline)
    params = {}
    for name in COMPONENTS:
        abstract = _abstract(name, pipeline)
        placed = None if shardings is None else shardings(abstract)
        options = {'prefix': 'text_model.'} if name == 'text_encoder' else {}
        params[name] = weights.load_weights(pathlib.Path(folder) / name, rules[name], abstract, dtype=dtype, shardings=placed, **options)
    return pipeline, params


def open_pipeline(folder: str | pathlib.Path, *, t5_length: int, lora=None, scan=False, remat='none', dtype=jnp.float32) -> FluxPipeline:
    """The pipeline without its weights: reads only the JSON files and the tokenizers."""
    folder = pathlib.Path(folder)
    index = _read_json(folder / 'model_index.json')
    if index.get('_class_name') != CLASS_NAME:
        raise ValueError(f'{folder / "model_index.json"}: _class_name is {index.get("_class_name")!r}, expected {CLASS_NAME!r}')
    configs = {name: _read_json(folder / name / 'config.json') for name in COMPONENTS}
    tokenizer, tokenizer_2 = load_tokenizers(folder)
    scheduler = _read_json(folder / 'scheduler' / 'scheduler_config.json')
    return build_pipeline(configs, scheduler, tokenizer, tokenizer_2, t5_length=t5_length, lora=lora, scan=scan, remat=remat, dtype=dtype)


def build_pipeline(
    configs: dict[str, dict],
    scheduler: dict,
    tokenizer,
    tokenizer_2,
    *,
    t5_length: int,
    lora=None,
    scan=False,
    remat='none',
    dtype=jnp.float32,
) -> FluxPipeline:
    """The pipeline of the given component configurations (the contents of their config.json)."""
    return FluxPipeline(
        transformer=flux.FluxTransformer(flux.FluxConfig.from_json(configs['transformer']), scan=scan, remat=remat, lora=lora, dtype=dtype),
        vae=vae.AutoencoderKL(vae.VaeConfig.from_json(configs['vae'])),
        text_encoder=clip_text.ClipTextModel(clip_text.ClipTextConfig.from_json(configs['text_encoder'])),
        text_encoder_2=t5.T5Encoder(t5.T5Config.from_json(configs['text_encoder_2'])),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=dict(scheduler),
        t5_length=t5_length,
        configs=configs,
    )


def save_pipeline(folder: str | pathlib.Path, pipeline: FluxPipeline, params: dict, *, dtype: Any = None) -> None:
    """Writes the folder that `load_pipeline` and Diffusers' FluxPipeline open; weights in `dtype` (None keeps theirs)."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index = {
        '_class_name': CLASS_NAME,
        '_diffusers_version': '0.32.0',
        'scheduler': ['diffusers', 'FlowMatchEulerDiscreteScheduler'],
        'text_encoder': ['transformers', 'CLIPTextModel'],
        'text_encoder_2': ['transformers', 'T5EncoderModel'],
        'tokenizer': ['transformers', 'CLIPTokenizer'],
        'tokenizer_2': ['transformers', 'T5TokenizerFast'],
        'transformer': ['diffusers', 'FluxTransformer2DModel'],
        'vae': ['diffusers', 'AutoencoderKL'],
    }
    _write_json(folder / 'model_index.json', index)
    _write_json(folder / 'scheduler' / 'scheduler_config.json', pipeline.scheduler)
    pipeline.tokenizer.save_pretrained(folder / 'tokenizer')
    pipeline.tokenizer_2.save_pretrained(folder / 'tokenizer_2')
    rules = weight_rules(pipeline)
    for name in COMPONENTS:
        _write_json(folder / name / 'config.json', pipeline.configs[name])
        filename = 'model.safetensors' if name.startswith('text') else 'diffusion_pytorch_model.safetensors'
        # Released CLIP folders carry this prefix; Transformers 5 opens both, earlier ones only this.
        prefix = 'text_model.' if name == 'text_encoder' else ''
        weights.save_weights(folder / name, rules[name], params[name], filename=filename, dtype=dtype, prefix=prefix)


def weight_rules(pipeline: FluxPipeline) -> dict[str, list]:
    """The conversion table of every component."""
    return {
        'transformer': flux.weight_rules(pipeline.transformer.config, pipeline.transformer.scan),
        'vae': vae.weight_rules(pipeline.vae.config),
        'text_encoder': clip_text.weight_rules(pipeline.text_encoder.config, pipeline.text_encoder.scan),
        'text_encoder_2': t5.weight_rules(pipeline.text_encoder_2.config, pipeline.text_encoder_2.scan),
    }


def _initialiser(name: str, pipeline: FluxPipeline) -> Callable[[jax.Array], dict]:
    """`key -> parameters` of one component; the sizes of the blank inputs do not matter."""
    module, ids = getattr(pipeline, name), jnp.zeros((1, 8), jnp.int32)
    if name == 'transformer':
        c = module.config
        x, text = jnp.zeros((1, 1, c.in_channels)), jnp.zeros((1, 1, c.joint_attention_dim))
        pooled, s, position = jnp.zeros((1, c.pooled_projection_dim)), jnp.zeros(1), jnp.zeros((1, len(c.axes_dims_rope)))
        arguments = (x, text, pooled, s, s if c.guidance_embeds else None, position, position)
    elif name == 'vae':
        side = module.config.downscale * PATCH
        arguments = (jnp.zeros((1, side, side, module.config.in_channels)),)
    else:
        arguments = (ids,)
    return lambda key: module.init(key, *arguments)['params']


def _abstract(name: str, pipeline: FluxPipeline) -> dict:
    return jax.eval_shape(_initialiser(name, pipeline), jax.random.key(0))


def _read_json(path: pathlib.Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; a FLUX folder holds {LAYOUT}')
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is not valid JSON: {error}') from None


def _write_json(path: pathlib.Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + '\n')
