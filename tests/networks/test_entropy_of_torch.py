"""The probe of attention against Diffusers' transformers: the entropies of every layer's weights,
and what `probe_fn` makes of them.
"""

import dataclasses

import jax
import numpy as np
import pytest

from densegrpo_jax.networks.mmdit import path
from densegrpo_jax.pipelines.folder import load_pipeline
from densegrpo_jax.pipelines.inside import probe_fn
from tests import miniature

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

SIZE, GUIDANCE = (32, 48), 1.5


class Recorder:
    """Stands for torch's fused attention: the same product, from weights that are kept."""

    def __init__(self, module):
        self.weights, self._layer = {}, ''  # layer -> float64 [B, H, queries, keys]
        for name, part in module.named_modules():
            if name.endswith(('.attn', '.attn2')):
                part.register_forward_pre_hook(lambda *_, name=name: self._enter(name))

    def _enter(self, name):
        self._layer = name

    def __call__(self, query, key, value, **options):
        assert not any(options.values()) and self._layer not in self.weights
        logits = query.double() @ key.double().mT / query.shape[-1] ** 0.5
        self.weights[self._layer] = torch.softmax(logits, -1)
        return (self.weights[self._layer] @ value.double()).to(value.dtype)

    def entropies(self):
        """Layer -> [B, queries]: -sum A log A over log(keys), the mean over the heads."""
        of = lambda a: torch.special.entr(a).sum(-1).mean(1) / np.log(a.shape[-1])
        return {name: of(weights).numpy() for name, weights in self.weights.items()}


def flux_inputs(x, s, text, height, width):
    rows, columns = np.indices((height // 16, width // 16)).reshape(2, -1)
    return {
        'hidden_states': x,
        'encoder_hidden_states': text['context'],
        'pooled_projections': text['pooled'],
        'timestep': s,
        'guidance': np.full_like(s, GUIDANCE),
        'img_ids': np.stack([0 * rows, rows, columns], 1).astype(np.float32),
        'txt_ids': np.zeros((text['context'].shape[1], 3), np.float32),
    }


def sd3_inputs(x, s, text, height, width):
    return {
        'hidden_states': x.transpose(0, 3, 1, 2),
        'encoder_hidden_states': text['context'],
        'pooled_projections': text['pooled'],
        'timestep': 1000 * s,
    }


def joint_flux(rows, image):
    return rows  # text, then image


def joint_sd3(rows, image):
    """Diffusers has the image first here, and a second attention is the image's alone."""
    return np.concatenate([rows[:, image:], rows[:, :image]], 1)


CASES = {
    'flux': (
        lambda folder: miniature.random_flux(folder, double=2, single=2),
        'FluxTransformer2DModel',
        flux_inputs,
        joint_flux,
    ),
    # the first of three blocks has two attentions
    'sd3': (miniature.random_sd3, 'SD3Transformer2DModel', sd3_inputs, joint_sd3),
}


@pytest.mark.parametrize('case', CASES)
def test_entropies_of_every_layer_are_those_of_torch(case, tmp_path, monkeypatch):
    """Row by row, and the mean over the image's tokens and the layers."""
    write, name, inputs_of, joint = CASES[case]
    folder = write(tmp_path)
    module = getattr(diffusers, name).from_pretrained(folder / 'transformer').eval()
    pipeline, params = load_pipeline(folder, text_length=16)
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x, s = normal(2, *pipeline.latent_shape(*SIZE)), np.float32([0.9, 0.4])
    text = {k: normal(*a.shape) for k, a in pipeline.conditioning_shapes(2).items()}
    given = params['transformer'], None, text, GUIDANCE, *SIZE

    recorder = Recorder(module)
    inputs = {k: torch.from_numpy(a) for k, a in inputs_of(x, s, text, *SIZE).items()}
    with torch.no_grad():
        fused = module(**inputs).sample
        monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', recorder)
        explicit = module(**inputs).sample
    torch.testing.assert_close(explicit, fused, rtol=0, atol=1e-5 * float(fused.abs().max()))
    image = pipeline.image_tokens(*SIZE)
    torchs = {layer: joint(rows, image) for layer, rows in recorder.entropies().items()}

    sown = []
    network = dataclasses.replace(pipeline, sown=sown).velocity_fn(*given)

    def kept(x, s):
        network(x, s)
        return sown.pop()

    found = dict(jax.tree_util.tree_leaves_with_path(jax.jit(kept)(x, s)))
    ours = {jax.tree_util.keystr(at[:-2], simple=True, separator='/'): a for at, a in found.items()}
    assert set(ours) == {path(layer) for layer in torchs}
    for layer, rows in torchs.items():
        np.testing.assert_allclose(ours[path(layer)], rows, atol=1e-5, err_msg=layer)

    means = np.stack([rows[:, -image:].mean(1) for rows in torchs.values()])
    _, entropy = jax.jit(probe_fn(pipeline, *given))(x, s)
    np.testing.assert_allclose(entropy, means.mean(0), atol=1e-5)
    # Another layer, or the text's tokens too, would not have passed.
    apart = np.abs(means[:, None] - means).max(-1) + np.eye(len(means))
    whole = np.mean([rows.mean(1) for rows in torchs.values()], 0)
    assert apart.min() > 1e-3 and np.abs(whole - entropy).min() > 1e-3
