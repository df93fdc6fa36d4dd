"""What Diffusers' pipelines make of a folder, and how ours is compared with it."""

import numpy as np
import pytest


def opened(name, folder, **options):
    """Diffusers' pipeline of this name, in float32, on one thread."""
    torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
    torch.set_num_threads(1)
    options = {'torch_dtype': torch.float32, **options}
    pipe = getattr(diffusers, name).from_pretrained(str(folder), **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe, prompts, height, width, steps, guidance, noise, **options):
    """(latents float32, images uint8) that it makes of this noise, [B, h, w, C] or [B, N, C]; the
    latents have the noise's layout.
    """
    import torch

    move = lambda x, *axes: x.permute(*axes) if x.ndim == 4 else x
    call = dict(
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=move(torch.tensor(noise), 0, 3, 1, 2),
        **options,
    )
    # a new list each time: Z-Image's pipeline writes into it
    draw = lambda kind: pipe(prompt=list(prompts), **call, output_type=kind).images
    latents = move(draw('latent'), 0, 2, 3, 1).numpy()
    return latents, np.round(draw('np') * 255).astype(np.uint8)


def check_latents(latents, expected):
    """They are within 1e-4 of the largest one."""
    assert np.abs(latents - expected).max() <= 1e-4 * np.abs(expected).max()


def check_images(images, expected):
    """Their peak signal-to-noise ratio is 50 dB or more, and they are not blank."""
    images = np.asarray(images, np.float64)
    error = np.mean((images - expected) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 50
    assert images.std() > 5
