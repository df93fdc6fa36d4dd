"""Small random CLIP folders, written by torch in the Transformers layout, and pictures that look a
little like photographs.
"""

import numpy as np
import pytest

from densegrpo_jax.pipelines.tokenizers import TOKENIZERS, load_tokenizers


def random_clip(folder, *, shards=False, seed=0, **changes):
    """Writes a CLIPModel of a few thousand parameters with the miniature's tokenizer and a
    preprocessor config; returns the folder.

    changes: to the image tower's config.
    """
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    torch.manual_seed(seed)
    tokenizer, _ = load_tokenizers(TOKENIZERS)
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        hidden_act='gelu',
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = (
        dict(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=28,
            patch_size=7,
        )
        | changes
    )
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    ).eval()
    with torch.no_grad():
        # the initial scale 0.02 would hide mistakes behind the norms
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, **({'max_shard_size': '30KB'} if shards else {}))
    side = vision['image_size']
    transformers.CLIPImageProcessorPil(
        size={'shortest_edge': side}, crop_size={'height': side, 'width': side}
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def photo(rng, height, width):
    """uint8 [H, W, 3]: smooth colours, hard edges and noise, with saturated places."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    picture = np.stack(
        [
            0.5 + 0.6 * np.sin(6 * x + 2 * y + phase) * np.cos(3 * y - phase)
            for phase in rng.uniform(0, 6, 3)
        ],
        -1,
    )
    for _ in range(10):
        centre_x, centre_y, radius = rng.uniform(0, 1, 3)
        picture[(x - centre_x) ** 2 + (y - centre_y) ** 2 < (0.2 * radius) ** 2] = rng.uniform(
            0, 1, 3
        )
    picture += 0.04 * rng.standard_normal(picture.shape)
    return np.uint8(np.round(np.clip(picture, 0, 1) * 255))
