"""The LAION aesthetic predictor: a small network on CLIP's image feature that guesses how people
rate an image, from 1 to 10.
"""

import jax
import jax.numpy as jnp
import numpy as np

from densegrpo_jax.rewards.local.clip_rewards import CLIP_L, ClipReward
from densegrpo_jax.rewards.local.pickled import safetensors_file

# The linear layers' indices in the published network (dropout lies between them, unused in scoring)
# and their widths.
LAYERS = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}


class AestheticReward(ClipReward):
    """Five linear layers on the image feature of unit length of CLIP ViT-L/14
    (christophschuhmann/improved-aesthetic-predictor, sac+logos+ava1-l14-linearMSE), raw: about 5 to
    6.5 for good images. The prompt plays no part. Images are cut as by OpenAI's
    CLIP, which its code uses.

    Args:
      path: CLIP ViT-L/14; only its image tower is loaded.
      head: the five layers as a safetensors file.
    """

    name = 'aesthetic'
    names = ('aesthetic',)

    def __init__(
        self, path: str = CLIP_L, *, head: str = '', dtype: str = 'float32', batch_size: int = 16
    ):
        from densegrpo_jax.networks.weight_rules import linear_rules
        from densegrpo_jax.pipelines.weights import files as weights

        file = safetensors_file(
            f'{self.name}.head', head, origin='sac+logos+ava1-l14-linearMSE.pth'
        )
        super().__init__(
            path, dtype=dtype, batch_size=batch_size, text=False, geometry='torchvision'
        )
        width, shapes = self.clip.vision.config.projection_dim, {}
        for place, out in LAYERS.items():
            shapes[f'layers_{place}'] = {'kernel': jax.ShapeDtypeStruct((width, out), np.float32)}
            shapes[f'layers_{place}']['bias'] = jax.ShapeDtypeStruct((out,), np.float32)
            width = out
        self._head = file, linear_rules('layers.{i:[02467]}', 'layers_{i}'), shapes
        weights.check_weights(*self._head)

    def scores(self, params, images, text):
        """See `ClipReward.scores`; ignores the text."""
        del text
        x = self.clip.image_features(params, images)
        for place in LAYERS:
            layer = params['head'][f'layers_{place}']
            x = jnp.matmul(x, layer['kernel'], precision='highest') + layer['bias']
        return x[:, 0]

    def shapes(self, count):
        """See `ClipReward.shapes`."""
        params, features = super().shapes(count)
        return {**params, 'head': self._head[2]}, features

    def weight_files(self):
        """See `Reward`."""
        return [*super().weight_files(), self._head[0]]

    def _loaded(self):
        from densegrpo_jax.pipelines.weights import files as weights

        if self._params is None:
            head = weights.load_weights(*self._head, dtype=np.float32, shardings=self._whole)
            self._params = {**super()._loaded(), 'head': head}
        return self._params
