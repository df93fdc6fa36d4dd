"""What the pipelines of all families have in common: networks, tokenizers and a scheduler, behind
one interface.

The rest of the package uses `Pipeline` only; one module per family says how it encodes and
predicts. `folder` lists the families, and opens and writes folders.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.core.classifier_free import ALWAYS, guided_velocity
from densegrpo_jax.core.schedules import sigmas_from_scheduler
from densegrpo_jax.networks import vae
from densegrpo_jax.networks.attention import PROBE, Attend
from densegrpo_jax.networks.lora import COLLECTION
from densegrpo_jax.networks.network import Network, sharding_rules
from densegrpo_jax.pipelines.packing import token_grid
from densegrpo_jax.pipelines.text_encoder import TextEncoder
from densegrpo_jax.pipelines.weights import originals
from densegrpo_jax.runtime.sharding import ShardingRule

# What the transformer gets of B prompts, by name; every pipeline declares its own arrays
# (`Pipeline.conditioning_shapes`). 'context' [B, L, D]: the states of the text encoders' tokens.
# 'pooled' float32 [B, D']: one vector per prompt. 'mask' bool [B, L]: which tokens of the context
# belong to the prompt, for networks that ignore padding; other networks get no mask.
Conditioning = dict[str, jax.Array | np.ndarray]

# (component, class and networks of a pipeline) -> shapes of the component's parameters: tracing a
# large network takes seconds.
_SHAPES: dict[tuple, dict] = {}


def repeat_rows(conditioning: Conditioning, copies: int) -> Conditioning:
    """Repeats every prompt `copies` times in a row: prompt-major groups, [B * copies, ...]."""
    return {name: jnp.repeat(a, copies, axis=0) for name, a in conditioning.items()}


def take_rows(conditioning: Conditioning, rows) -> Conditioning:
    """The prompts of the given rows (int [n] or a slice), [n, ...]."""
    return {name: a[rows] for name, a in conditioning.items()}


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: a key of compiled programs
class Pipeline:
    """Networks and settings without weights; the weights are a dict with the keys of `modules`.

    Attributes:
      modules: component ('transformer', 'vae', 'text_encoder', ...) -> network.
      tokenizers: in the order of the text encoders.
      scheduler: scheduler_config.json.
      text_length: tokens per prompt of the encoder whose length can be chosen
        (`TextEncoder.chosen_length`), the configuration's `model.t5_length`.
      configs: the config.json of every component, as read, and at 'pipeline' the options in
        model_index.json.
      cfg_normalization, cfg_truncation: of classifier-free guidance, see
        `core.classifier_free.guided_velocity`.
      sown: collects what the transformer sows in every evaluation; None: nothing is sown.
      sows: the collection: PROBE, of the attention's entropies, or HIDDEN, of the last states.
    """

    modules: dict[str, Network]
    tokenizers: tuple[Any, ...]
    scheduler: dict
    text_length: int
    configs: dict[str, dict]
    cfg_normalization: float = 0.0
    cfg_truncation: float = ALWAYS
    sown: list[dict] | None = None
    sows: str = PROBE

    CLASS_NAME: ClassVar[str]  # in model_index.json
    # component -> (library, class), for model_index.json
    INDEX: ClassVar[dict[str, tuple[str, str]]]
    # the folder of the denoising network, which is always called 'transformer' here
    DENOISER: ClassVar[str] = 'transformer'
    SCHEDULER: ClassVar[str] = 'FlowMatchEulerDiscreteScheduler'
    TEXT_ENCODERS: ClassVar[tuple[TextEncoder, ...]]
    # names of the transformer's layers in the original single files; None: Diffusers' names alone
    ORIGINAL: ClassVar[originals.Original | None] = None
    # keys of model_index.json that are no components, with the values of absent ones
    OPTIONS: ClassVar[dict[str, Any]] = {}
    # released checkpoints: Hugging Face id -> (scheduler_config.json, config.json of every
    # component), without values that equal a class's default; a subclass has only its own
    RELEASED: ClassVar[dict[str, tuple[dict, dict[str, dict]]]] = {}
    # what `guidance` means: 'embedding' (an input of the network) or 'cfg' (classifier-free)
    GUIDANCE: ClassVar[str]

    @property
    def transformer(self) -> Network:
        return self.modules['transformer']

    @property
    def sharding_rules(self) -> tuple[ShardingRule, ...]:
        """The placement of the parameters of all its networks, and of states made of them."""
        return sharding_rules(self.modules.values())

    @property
    def vae(self) -> vae.AutoencoderKL:
        return self.modules['vae']

    @property
    def options(self) -> dict[str, Any]:
        """The values of OPTIONS."""
        return {**self.OPTIONS, **self.configs.get('pipeline', {})}

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The component names of the text encoders."""
        return tuple(encoder.component for encoder in self.TEXT_ENCODERS)

    @property
    def token_lengths(self) -> tuple[int, ...]:
        """Tokens per prompt of every text encoder, special ones included."""
        return tuple(
            self.text_length if encoder.chosen_length else tokenizer.model_max_length
            for encoder, tokenizer in zip(self.TEXT_ENCODERS, self.tokenizers)
        )

    @classmethod
    def build_modules(
        cls, configs: dict[str, dict], *, lora, scan: bool, remat: str, dtype: Any, attend: Attend
    ) -> dict[str, Network]:
        """Networks of the given component configurations."""
        raise NotImplementedError

    @classmethod
    def folder(cls, component: str) -> str:
        """The subfolder of a component in a pipeline folder."""
        return cls.DENOISER if component == 'transformer' else component

    def initial_scale(self, sigmas: np.ndarray) -> float:
        """Standard deviation of a grid's initial latents (1 at pure noise)."""
        return 1.0

    @property
    def end_scale(self) -> float:
        """Factor that takes an exactly clean latent x_0 to the coordinates that `decode` reads,
        those of a grid's end; 1 if grids end in x_0 itself.
        """
        return 1.0

    def sigmas(self, num_steps: int, height: int, width: int) -> np.ndarray:
        """Grid [num_steps + 1] that the Diffusers pipeline uses for this size."""
        tokens = math.prod(token_grid(height, width))
        return sigmas_from_scheduler(self.scheduler, num_steps, tokens)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one image's latents."""
        raise NotImplementedError

    @property
    def text_tokens(self) -> int:
        """Length of the text conditioning: that of the encoder whose length can be chosen,
        unless the family says otherwise.
        """
        return self.text_length

    def conditioning_shapes(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and dtypes of the conditioning of `batch` prompts, both as stored and as
        the programs of a run take it.
        """
        _, text, pooled, *_ = self.example_inputs('transformer')
        return {
            'context': jax.ShapeDtypeStruct(
                (batch, self.text_tokens, text.shape[-1]), self.transformer.dtype
            ),
            'pooled': jax.ShapeDtypeStruct((batch, pooled.shape[-1]), jnp.float32),
        }

    def takes_negative(self, guidance: float) -> bool:
        """Whether sampling at this guidance needs the conditioning of the empty prompt."""
        return self.GUIDANCE == 'cfg' and guidance != 1

    def distilled(self, guidance: float, steps: int) -> bool:
        """Whether the model is one of few steps, as its files, or such rollouts of it, tell."""
        return False

    def tokenize(self, prompts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """The input of `encode` for B prompts, as the Diffusers pipeline makes it: what each text
        encoder reads (`TextEncoder.tokenize`), one after the other.
        """
        rows = zip(self.TEXT_ENCODERS, self.tokenizers, self.token_lengths)
        return tuple(
            array
            for encoder, tokenizer, length in rows
            for array in encoder.tokenize(tokenizer, prompts, length)
        )

    def reads(self, texts: Sequence[str]) -> np.ndarray:
        """bool [B], whether some text encoder reads a prompt that begins with each text to the end
        of it.
        """
        read = np.zeros(len(texts), bool)
        rows = zip(self.TEXT_ENCODERS, self.tokenizers, self.token_lengths)
        # the longest first: of thousands of texts it leaves few to tokenise for the others
        for encoder, tokens, length in sorted(rows, key=lambda row: -row[2]):
            left = np.flatnonzero(~read)
            read[left] = encoder.reads(tokens, [texts[i] for i in left], length)
        return read

    def encode(self, params: dict, *ids: jax.Array) -> Conditioning:
        """Conditioning of tokenised prompts; the names are those of `conditioning_shapes`."""
        raise NotImplementedError

    def network_fn(
        self,
        base: dict,
        adapters: dict | None,
        conditioning: Conditioning,
        guidance: jax.Array | float,
        height: int,
        width: int,
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """One evaluation of the network: `v(x [B, ...], s [B]) -> [B, ...]` float32."""
        raise NotImplementedError

    def apply_transformer(
        self, base: dict, adapters: dict | None, *inputs: jax.Array | None
    ) -> jax.Array:
        """The transformer's prediction for `inputs`, float32: the policy's, or without adapters the
        reference's.
        """
        given = {'params': base} if adapters is None else {'params': base, COLLECTION: adapters}
        if self.sown is None:
            return self.transformer.apply(given, *inputs)
        v, found = self.transformer.apply(given, *inputs, mutable=[self.sows])
        self.sown.append(found[self.sows])
        return v

    def spatial(self, latents: jax.Array, height: int, width: int) -> jax.Array:
        """Latents in the autoencoder's layout, [B, height / 8, width / 8, C]."""
        return latents

    def from_spatial(self, z: jax.Array, height: int, width: int) -> jax.Array:
        """The inverse of `spatial`."""
        return z

    def to_vae(self, params: dict, latents: jax.Array, height: int, width: int) -> jax.Array:
        """Latents at the end of a grid as the autoencoder decodes them: in its layout and scale."""
        config = self.vae.config
        return self.spatial(latents, height, width) / config.scaling_factor + (
            config.shift_factor or 0.0
        )

    def from_vae(self, params: dict, z: jax.Array, height: int, width: int) -> jax.Array:
        """The inverse of `to_vae`."""
        config = self.vae.config
        z = (z - (config.shift_factor or 0.0)) * config.scaling_factor
        return self.from_spatial(z, height, width)

    def weight_rules(self) -> dict[str, list]:
        """The conversion table of every component."""
        return {name: module.weight_rules() for name, module in self.modules.items()}

    def original_layout(self, tensors: dict) -> dict:
        """Tensors of a single-file checkpoint of the transformer, by the names in its table."""
        if self.ORIGINAL is None or not originals.is_original(tensors, self.ORIGINAL):
            return tensors
        return originals.as_diffusers(tensors, self.ORIGINAL)

    def adapter_names(self) -> dict[str, str]:
        """Checkpoint name -> path of every layer of the transformer that may carry an adapter."""
        return self.transformer.module_paths()

    def example_inputs(self, name: str) -> tuple:
        """Blank arguments that initialise a component; their sizes do not matter. Every family has
        its own for the transformer.
        """
        if name == 'vae':
            side = 2 * self.vae.config.downscale
            return (jnp.zeros((1, side, side, self.vae.config.in_channels)),)
        (encoder,) = (e for e in self.TEXT_ENCODERS if e.component == name)
        ids, mask = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)
        return (ids,) if encoder.thinking is None else (ids, mask)

    def velocity_fn(
        self,
        base: dict,
        policy: dict | None,
        conditioning: Conditioning,
        guidance: jax.Array | float,
        height: int,
        width: int,
        *,
        negative: Conditioning | None = None,
        both: bool = False,
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The velocity `v(x [B, ...], s [B]) -> [B, ...]` float32 that core/ works with.

        Args:
          base: the transformer's parameters.
          policy: a LoRA collection or, if the transformer carries no adapters, all of its
            parameters. None: the base alone, which is the reference policy.
          conditioning: B rows.
          guidance: scalar or [B]. Input of the guidance embedding if the network has one; else the
            scale w of classifier-free guidance (`core.classifier_free`), which needs `negative`.
          negative: conditioning of the empty prompt, 1 or B rows; None: no classifier-free
            guidance.
          both: with `negative`, the function returns the pair (prediction of the prompt alone,
            guided prediction).
        """
        whole = policy is not None and self.transformer.lora is None
        base, adapters = (policy, None) if whole else (base, policy)
        if negative is None:
            return self.network_fn(base, adapters, conditioning, guidance, height, width)
        # Both predictions in one call: one body to compile, and larger products.
        beside = lambda c, n: jnp.concatenate([c, jnp.broadcast_to(n, c.shape).astype(c.dtype)])
        joint = {name: beside(c, negative[name]) for name, c in conditioning.items()}
        network = self.network_fn(base, adapters, joint, guidance, height, width)

        def velocity(x, s):
            positive, negative = jnp.split(
                network(jnp.concatenate([x, x]), jnp.concatenate([s, s])), 2
            )
            guided = guided_velocity(
                positive,
                negative,
                s,
                guidance,
                normalization=self.cfg_normalization,
                truncation=self.cfg_truncation,
            )
            return (positive, guided) if both else guided

        return velocity

    def diffusers_guidance(self, guidance: float) -> float:
        """The `guidance_scale` of `CLASS_NAME` in Diffusers that means the same."""
        return guidance

    def image_tokens(self, height: int, width: int) -> int:
        """Tokens of an image in the transformer; they follow those of the text."""
        from densegrpo_jax.pipelines.folder import PIPELINES  # imports this module

        own = [name for name, of in PIPELINES.items() if of.image_tokens != Pipeline.image_tokens]
        raise ValueError(
            f'the attention of {self.CLASS_NAME} cannot be probed; that of {", ".join(own)} can'
        )

    def decode(
        self, params: dict, latents: jax.Array, height: int, width: int
    ) -> tuple[jax.Array, jax.Array]:
        """Images of latents [B, ...] at the end of a grid (see `end_scale`), rounded as Diffusers'
        image processor does.

        Returns:
          uint8 [B, height, width, 3], and bool [B]: False where an image holds NaN or infinity
          (drawn black).
        """
        unit, finite = self.decode_float(params, latents, height, width)
        return jnp.round(unit * 255).astype(jnp.uint8), finite

    def encode_images(self, params: dict, images: jax.Array, height: int, width: int) -> jax.Array:
        """Clean latents [B, ...] of images uint8 [B, height, width, 3]: the mean of the
        autoencoder's posterior.
        """
        signed = images.astype(jnp.float32) / 127.5 - 1
        mean, _ = self.vae.apply({'params': params['vae']}, signed, method='encode')
        return self.from_vae(params, mean, height, width)

    def decode_float(
        self, params: dict, latents: jax.Array, height: int, width: int
    ) -> tuple[jax.Array, jax.Array]:
        """As `decode`, before rounding: float32 in [0, 1], differentiable in the latents."""
        z = self.to_vae(params, latents, height, width)
        images = self.vae.apply({'params': params['vae']}, z, method='decode')
        finite = jnp.isfinite(images).all((1, 2, 3))
        return jnp.where(
            finite[:, None, None, None], jnp.clip(images / 2 + 0.5, 0.0, 1.0), 0.0
        ), finite

    def abstract_params(self, components: Sequence[str] | None = None) -> dict:
        """Shapes of the parameters of the named components (None: all): a tree of
        jax.ShapeDtypeStruct, float32.
        """
        names = self.modules if components is None else components
        networks = type(self), *self.modules.items()
        for name in names:
            if (name, networks) not in _SHAPES:
                shapes = jax.eval_shape(self._initialiser(name), jax.random.key(0))
                _SHAPES[name, networks] = shapes
        return {name: _SHAPES[name, networks] for name in names}

    def init_params(self, key: jax.Array) -> dict:
        """Fresh float32 parameters of every component."""
        return {name: jax.jit(self._initialiser(name))(key) for name in self.modules}

    def _initialiser(self, name: str) -> Callable[[jax.Array], dict]:
        module, arguments = self.modules[name], self.example_inputs(name)
        return lambda key: module.init(key, *arguments)['params']
