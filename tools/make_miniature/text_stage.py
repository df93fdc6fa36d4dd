"""Text stage: both text encoders learn to represent a prompt's content, so that the flow starts
from readable conditioning.

At every token T5 predicts the token's place inside the quotes, the character and the length of the
word; CLIP's pooled vector predicts the scene (the prompt with the word removed). The linear
read-out heads are discarded.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from densegrpo_jax.data.prompts import SCENES, scene_prompt
from densegrpo_jax.data.words import train_word

MAX_LETTERS = 8


def quote_ids(pipeline) -> tuple[int, ...]:
    """T5 ids that stand for a straight double quote, opening or closing."""
    tokenizer = pipeline.tokenizers[1]
    return tuple(i for i in range(len(tokenizer)) if '"' in tokenizer.convert_ids_to_tokens(i))


def batch_fn(seed: int, batch: int, pipeline, quotes: tuple[int, ...]):
    """`step -> dict` of token ids and labels; texts only, nothing is rendered.

    Labels: place [B, L] within the quotes (0 = outside), length [B] of the word, scene [B]; the
    character labels are the tokens.
    """
    scenes = tuple(SCENES)

    def build(step: int) -> dict:
        rng = np.random.default_rng([seed, step])
        scene = rng.integers(len(scenes), size=batch)
        words = [train_word(rng) for _ in range(batch)]
        prompts = [scene_prompt(scenes[i], word).text for i, word in zip(scene, words)]
        clip_ids, t5_ids = pipeline.tokenize(prompts)
        is_quote = np.isin(t5_ids, quotes)
        inside = (np.cumsum(is_quote, axis=1) == 1) & ~is_quote
        place = np.where(inside, np.cumsum(inside, axis=1), 0).clip(0, MAX_LETTERS)
        length = np.array([len(word) for word in words])
        ids = {'clip_ids': clip_ids, 't5_ids': t5_ids}
        return {
            **ids,
            **{
                k: v.astype(np.int32)
                for k, v in (('place', place), ('length', length), ('scene', scene))
            },
        }

    return build


def init_heads(key: jax.Array, t5_dim: int, clip_dim: int, vocabulary: int) -> dict:
    """Linear read-outs, float32 [features, classes] each."""
    sizes = {
        'place': (t5_dim, MAX_LETTERS + 1),
        'char': (t5_dim, vocabulary),
        'length': (t5_dim, MAX_LETTERS + 1),
        'scene': (clip_dim, len(SCENES)),
    }
    return {
        n: jax.random.normal(jax.random.fold_in(key, i), s) / np.sqrt(s[0])
        for i, (n, s) in enumerate(sizes.items())
    }


def make_loss(pipeline):
    """Sum of the four mean cross-entropies; params = {'text_encoder', 'text_encoder_2',
    'heads'}.
    """

    def loss_fn(params, batch, key):
        del key
        conditioning = pipeline.encode(params, batch['clip_ids'], batch['t5_ids'])
        hidden, pooled = conditioning['context'], conditioning['pooled']
        inside = (batch['place'] > 0).astype(jnp.float32)
        cross = optax.softmax_cross_entropy_with_integer_labels
        heads = params['heads']
        on_letters = lambda values: jnp.sum(values * inside) / jnp.maximum(jnp.sum(inside), 1.0)
        place = jnp.mean(cross(hidden @ heads['place'], batch['place']))
        char = on_letters(cross(hidden @ heads['char'], batch['t5_ids']))
        length = on_letters(
            cross(
                hidden @ heads['length'],
                jnp.broadcast_to(batch['length'][:, None], batch['place'].shape),
            )
        )
        scene = jnp.mean(cross(pooled @ heads['scene'], batch['scene']))
        return place + char + length + scene, {
            'place': place,
            'char': char,
            'length': length,
            'scene': scene,
        }

    return loss_fn
