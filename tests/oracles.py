"""What the torch oracles compute with: the same inputs on every CPU.

torch's float32 `exp` and `log` round their last bit differently from CPU to CPU. Where an oracle
multiplies that bit by a thousand, or truncates at it, the comparison would judge the machine and
not the network. These places get the correctly rounded value; all else stays the oracle's own.
"""

import importlib
import importlib.util

import pytest

# (module, object in it or '', attribute, the torch function that must be rounded correctly there)
_PLACES = (
    # Frequencies, which are multiplied by times of up to 1,000 and guidance of thousands.
    ('diffusers.models.embeddings', '', 'get_timestep_embedding', 'exp'),
    (
        'diffusers.models.transformers.transformer_z_image',
        'TimestepEmbedder',
        'timestep_embedding',
        'exp',
    ),
    # A logarithm that is truncated to an integer, which it is exactly at powers of two.
    ('transformers.models.t5.modeling_t5', 'T5Attention', '_relative_position_bucket', 'log'),
)


@pytest.fixture(scope='module', autouse=True)
def same_inputs():
    """Mends the oracles while a file's tests run. Does nothing where they are not installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, owner, attribute, function in _PLACES:
            if all(importlib.util.find_spec(each) for each in ('torch', name.partition('.')[0])):
                place = importlib.import_module(name)
                place = getattr(place, owner) if owner else place
                mended = rounded_correctly(getattr(place, attribute), function)
                patch.setattr(place, attribute, staticmethod(mended) if owner else mended)
        yield


def rounded_correctly(oracle, name):
    """`oracle`, during whose calls the function `name` of torch is rounded once, from float64."""
    import torch

    def mended(*args, **kwargs):
        plain = getattr(torch, name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, name, lambda x: plain(x.double()).to(x.dtype))
            return oracle(*args, **kwargs)

    return mended
