"""Rollout and update of FLUX.1-dev and SD3.5-M at full size, compiled ahead of time for eight devices from shapes alone (slow)."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / 'tests'), str(ROOT / 'configs')]

import flux_ocr  # noqa: E402
import sd35_ocr  # noqa: E402

from densegrpo_jax.core.rollout import Transitions  # noqa: E402
from densegrpo_jax.models.flux_pipeline import FluxPipeline  # noqa: E402
from densegrpo_jax.models.pipeline import NEGATIVE, Conditioning  # noqa: E402
from densegrpo_jax.models.pipeline_folder import build_pipeline  # noqa: E402
from densegrpo_jax.models.sd3_pipeline import Sd3Pipeline  # noqa: E402
from densegrpo_jax.parallel.mesh import batch_sharding, make_mesh  # noqa: E402
from densegrpo_jax.parallel.sharding import shardings, with_shardings  # noqa: E402
from densegrpo_jax.training.sampling import make_rollout, make_schedule  # noqa: E402
from densegrpo_jax.training.state import init_state, lora_config, optimiser  # noqa: E402
from densegrpo_jax.training.update import make_update  # noqa: E402

VAE = dict(in_channels=3, out_channels=3, latent_channels=16, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
           norm_num_groups=32, use_quant_conv=False, use_post_quant_conv=False, down_block_types=['DownEncoderBlock2D'] * 4,
           up_block_types=['UpDecoderBlock2D'] * 4)  # fmt: skip
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, eos_token_id=2, projection_dim=768)
CLIP_G = CLIP_L | dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act='gelu',
                       projection_dim=1280)  # fmt: skip
T5 = dict(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj='gated-gelu')
SD35_M = dict(sample_size=128, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384,
              dual_attention_layers=list(range(13)), qk_norm='rms_norm')  # fmt: skip
DYNAMIC = dict(base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15, shift=3.0, use_dynamic_shifting=True)
CASES = {
    'flux': (flux_ocr, FluxPipeline, DYNAMIC, dict(transformer=dict(guidance_embeds=True), vae=VAE | dict(scaling_factor=0.3611,
             shift_factor=0.1159), text_encoder=CLIP_L, text_encoder_2=T5), 11.9, 768, 128),
    'sd35': (sd35_ocr, Sd3Pipeline, dict(shift=3.0), dict(transformer=SD35_M, vae=VAE | dict(scaling_factor=1.5305, shift_factor=0.0609),
             text_encoder=CLIP_L, text_encoder_2=CLIP_G, text_encoder_3=T5), 2.47, 2048, 77 + 128),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_compiles_for_eight_devices(name):
    module, kind, scheduler, configs, billions, pooled, length = CASES[name]
    config = module.get_config('devices=8')
    config.mesh.update(data=1, fsdp=8)
    dtype, mesh = jnp.bfloat16, make_mesh(config.mesh)
    options = dict(t5_length=128, lora=lora_config(config), scan=True, remat='full', dtype=dtype)
    pipeline = build_pipeline(configs, scheduler, (None,) * len(kind.TOKENIZERS), kind=kind, **options)
    shapes = {n: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), t) for n, t in pipeline.abstract_params().items()}
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes['transformer'])) / 1e9 == pytest.approx(billions, rel=5e-3)
    params = {n: with_shardings(shapes[n], shardings(shapes[n], mesh)) for n in ('transformer', 'vae')}
    row = lambda *shape, d=jnp.float32: jax.ShapeDtypeStruct(shape, d, sharding=batch_sharding(mesh))
    whole = lambda *shape, d=jnp.float32: jax.ShapeDtypeStruct(shape, d)
    if kind is Sd3Pipeline:
        params[NEGATIVE] = Conditioning(whole(1, length, 4096, d=dtype), whole(1, pooled))
    tx, schedule = optimiser(config), make_schedule(pipeline, config)
    state = jax.eval_shape(lambda base: init_state(pipeline, tx, jax.random.key(0), base), shapes['transformer'])
    state = with_shardings(state, shardings(state, mesh))
    r = config.rollout
    conditioning = Conditioning(whole(r.prompts_per_batch, length, 4096, d=dtype), whole(r.prompts_per_batch, pooled))
    key = jax.eval_shape(lambda: jax.random.key(0))
    rollout = make_rollout(pipeline, config, schedule, mesh).lower(
        params, state.policy, conditioning, key, whole(r.prompts_per_batch, d=jnp.int32)
    )
    report('rollout', name, rollout.compile())

    m = int(schedule.plan.trained.sum()) * r.prompts * r.group
    latent = pipeline.latent_shape(config.model.height, config.model.width)
    fields = dict(x=row(m, *latent), x_next=row(m, *latent), mask=row(m, d=jnp.bool), prompt_id=row(m, d=jnp.int32),
                  segment_id=row(m, d=jnp.int32))  # fmt: skip
    batch = Transitions(**{f: fields.get(f, row(m)) for f in Transitions._fields})
    everyone = Conditioning(whole(r.prompts, length, 4096, d=dtype), whole(r.prompts, pooled))
    update = make_update(pipeline, config, tx, mesh).lower(state, params, everyone, batch)
    report('update', name, update.compile())


def report(phase, name, compiled):
    """One line with what a device holds; the arguments must be a fraction of the whole."""
    memory = compiled.memory_analysis()
    gib = {k: np.round(getattr(memory, f'{k}_size_in_bytes') / 2**30, 2) for k in ('argument', 'temp', 'output')}
    print(f'{name} {phase}: per device {gib} GiB (temporaries as the CPU compiler lays them out)')
    assert gib['argument'] < 24 / 4
