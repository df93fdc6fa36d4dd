"""Diffusers' transformer and decoder of FLUX or SD3.5 with random weights under torch.compile: what
the benchmarks compare with. A process of its own, so that neither holds the other's memory. A CPU
decodes with channels last, which is faster there.

    python -m benchmarks.torch_models < request.json

Reads component configurations, sizes and repeats as JSON and prints seconds as JSON. The update is
one microbatch: forward and backward through adapters of peft, with gradient checkpointing; without
peft it is left out.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import time


def run_torch(config, small: bool, repeat: int, *, compile: bool = True) -> dict:
    """{'torch': version, 'device': ..., phase: {'seconds': ..., 'compile_s': ...}} of the model of
    `config` at its size, batch and dtype. compile: with torch.compile, otherwise eager.

    Raises:
      subprocess.SubprocessError: it failed.
    """
    from benchmarks.bases import shapes_of  # imports jax, which the other process does not need
    from densegrpo_jax.pipelines.flux import FluxPipeline

    kind, _, parts = shapes_of(config.model.path, small)
    flux = issubclass(kind, FluxPipeline)
    guided = not flux and config.model.guidance > 1
    request = dict(
        kind='flux' if flux else 'sd3',
        transformer=parts['transformer'],
        vae=parts['vae'],
        height=config.model.height,
        width=config.model.width,
        dtype=config.model.dtype,
        batch=config.rollout.prompts_per_batch * config.rollout.group,
        copies=2 if guided else 1,
        text=config.model.t5_length + (0 if flux else 77),
        microbatch=config.optim.microbatch,
        checkpointing=config.model.remat != 'none',
        lora=dict(r=config.lora.rank, lora_alpha=config.lora.alpha),
        targets=list(config.lora.targets),
        repeat=repeat,
        compile=compile,
    )
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks.torch_models'],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def inputs_of(request: dict, config, rows: int) -> dict:
    """Random inputs of the network for `rows` samples."""
    import torch

    height, width, text = request['height'], request['width'], request['text']
    common = dict(
        encoder_hidden_states=torch.randn(rows, text, config.joint_attention_dim),
        pooled_projections=torch.randn(rows, config.pooled_projection_dim),
        return_dict=False,
    )
    if request['kind'] == 'sd3':
        latent = torch.randn(rows, config.in_channels, height // 8, width // 8)
        return dict(hidden_states=latent, timestep=torch.full((rows,), 700.0), **common)
    axes = torch.arange(height // 16.0), torch.arange(width // 16.0)
    grid = [axis.flatten() for axis in torch.meshgrid(*axes, indexing='ij')]
    ids = torch.stack([torch.zeros_like(grid[0]), *grid], 1)
    return dict(
        hidden_states=torch.randn(rows, len(ids), config.in_channels),
        timestep=torch.full((rows,), 0.7),
        guidance=torch.full((rows,), 3.5) if config.guidance_embeds else None,
        img_ids=ids,
        txt_ids=torch.zeros(text, 3),
        **common,
    )


def main() -> None:
    import diffusers
    import torch

    request = json.load(sys.stdin)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    classes = {'flux': 'FluxTransformer2DModel', 'sd3': 'SD3Transformer2DModel'}
    how = 'torch.compile' if request['compile'] else 'eager'
    result = {'torch': torch.__version__, 'device': device, 'how': how}
    with torch.device(device):
        torch.set_default_dtype(getattr(torch, request['dtype']))
        transformer = getattr(diffusers, classes[request['kind']])(**request['transformer'])
        known = {k: v for k, v in request['vae'].items() if not k.startswith('_')}
        vae = diffusers.AutoencoderKL(**known).eval()
        if device == 'cpu':
            vae = vae.to(memory_format=torch.channels_last)
        transformer.eval().requires_grad_(False)
        result.update(sampling(request, transformer, vae))
        del vae
        if importlib.util.find_spec('peft') is not None:
            torch.compiler.reset()
            result['update of a microbatch'] = update(request, transformer)
    print(json.dumps(result))


def sampling(request: dict, transformer, vae) -> dict:
    """Seconds of one velocity and of decoding the batch."""
    import torch

    compiled = torch.compile if request['compile'] else lambda function: function
    inputs = inputs_of(request, transformer.config, request['batch'] * request['copies'])
    channels, size = vae.config.latent_channels, (request['height'] // 8, request['width'] // 8)
    latents = torch.randn(request['batch'], channels, *size)
    network, decoder = compiled(transformer), compiled(vae.decode)
    with torch.inference_mode():
        return {
            'one velocity': timed(lambda: network(**inputs), request['repeat']),
            'decode': timed(lambda: decoder(latents), request['repeat']),
        }


def update(request: dict, transformer) -> dict:
    """Seconds of a microbatch, forward and backward through adapters, without the optimiser."""
    import peft
    import torch

    lora = peft.LoraConfig(target_modules=request['targets'], **request['lora'])
    transformer.add_adapter(lora)
    transformer.train()
    if request['checkpointing']:
        transformer.enable_gradient_checkpointing()
    inputs = inputs_of(request, transformer.config, request['microbatch'] * request['copies'])
    network = torch.compile(transformer) if request['compile'] else transformer

    def step():
        network(**inputs)[0].float().square().mean().backward()
        transformer.zero_grad(set_to_none=True)

    return timed(step, request['repeat'])


def timed(function, repeat: int) -> dict:
    """Seconds of the first call, which compiles, and the median of `repeat` calls after another."""
    import torch

    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    walls = []
    for _ in range(repeat + 2):
        start = time.perf_counter()
        function()
        synchronise()
        walls.append(time.perf_counter() - start)
    return {'compile_s': walls[0], 'seconds': statistics.median(walls[2:])}


if __name__ == '__main__':
    main()
