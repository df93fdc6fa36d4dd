"""Diffusers' FLUX transformer and decoder, random weights, torch.compile: what `bench_flux --torch`
compares with.

Reads its request as JSON from standard input (component configurations, side, batch, text tokens,
repeats) and prints seconds as JSON.
"""

import json
import statistics
import sys
import time

import diffusers
import torch


def main() -> None:
    request = json.load(sys.stdin)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    batch, text, tokens = request['batch'], request['text'], (request['side'] // 16) ** 2
    with torch.device(device), torch.inference_mode():
        torch.set_default_dtype(torch.bfloat16)
        transformer = diffusers.FluxTransformer2DModel(**request['transformer']).eval()
        vae = diffusers.AutoencoderKL(
            **{k: v for k, v in request['vae'].items() if not k.startswith('_')}
        ).eval()
        c = transformer.config
        rows, columns = torch.meshgrid(*(torch.arange(request['side'] // 16.0),) * 2, indexing='ij')
        ids = torch.stack([torch.zeros(tokens), rows.flatten(), columns.flatten()], 1)
        inputs = dict(
            hidden_states=torch.randn(batch, tokens, c.in_channels),
            encoder_hidden_states=torch.randn(batch, text, c.joint_attention_dim),
            pooled_projections=torch.randn(batch, c.pooled_projection_dim),
            timestep=torch.full((batch,), 0.7),
            guidance=torch.full((batch,), 3.5) if c.guidance_embeds else None,
            img_ids=ids,
            txt_ids=torch.zeros(text, 3),
            return_dict=False,
        )
        latents = torch.randn(batch, 16, request['side'] // 8, request['side'] // 8)
        network, decoder = torch.compile(transformer), torch.compile(vae.decode)
        seconds = {
            'one velocity': timed(lambda: network(**inputs), request['repeat']),
            'decode': timed(lambda: decoder(latents), request['repeat']),
        }
    print(json.dumps({'torch': torch.__version__, 'device': device, **seconds}))


def timed(function, repeat: int) -> float:
    """Median wall seconds of `repeat` calls, after two that compile and warm up."""
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    walls = []
    for _ in range(repeat + 2):
        start = time.perf_counter()
        function()
        synchronise()
        walls.append(time.perf_counter() - start)
    return statistics.median(walls[2:])


if __name__ == '__main__':
    main()
