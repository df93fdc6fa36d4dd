"""The config.json of Stable Diffusion 1's U-Net."""

import dataclasses

from densegrpo_jax.networks.config_json import check_positive, read_config

CLASS_NAME = 'UNet2DConditionModel'
ATTENTION_DOWN, PLAIN_DOWN = 'CrossAttnDownBlock2D', 'DownBlock2D'
ATTENTION_UP, PLAIN_UP = 'CrossAttnUpBlock2D', 'UpBlock2D'


@dataclasses.dataclass(frozen=True)
class UnetConfig:
    """The network's config.json: the fields that Stable Diffusion 1 uses, with Diffusers' names and
    defaults.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (ATTENTION_DOWN, ATTENTION_DOWN, ATTENTION_DOWN, PLAIN_DOWN)
    up_block_types: tuple[str, ...] = (PLAIN_UP, ATTENTION_UP, ATTENTION_UP, ATTENTION_UP)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    # the number of heads: a misnomer that Diffusers keeps for old files
    attention_head_dim: int = 8

    def __post_init__(self):
        for name in ('down_block_types', 'up_block_types', 'block_out_channels'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_positive(self, 'unet config')
        count = len(self.block_out_channels)
        if len(self.down_block_types) != count or len(self.up_block_types) != count:
            raise ValueError(
                f'unet config: {count} block_out_channels need as many down_block_types and '
                f'up_block_types, found {self.down_block_types} and {self.up_block_types}'
            )
        for name, allowed in (
            ('down_block_types', (ATTENTION_DOWN, PLAIN_DOWN)),
            ('up_block_types', (ATTENTION_UP, PLAIN_UP)),
        ):
            if unknown := set(getattr(self, name)) - set(allowed):
                raise ValueError(
                    f'unet config: {name} has {sorted(unknown)}, supported are {allowed}'
                )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups or channels % self.attention_head_dim:
                raise ValueError(
                    f'unet config: block_out_channels={self.block_out_channels} must be multiples '
                    f'of norm_num_groups={self.norm_num_groups} and of '
                    f'attention_head_dim={self.attention_head_dim} heads; {channels} is not'
                )

    @property
    def downscale(self) -> int:
        """The sides of a latent must be multiples of this."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, config: dict) -> 'UnetConfig':
        """Reads a parsed config.json; an unknown key or an unsupported value is a ValueError that
        names it.
        """
        off = [None, False]
        only = {
            '_class_name': [CLASS_NAME],
            'act_fn': ['silu'],
            'center_input_sample': [False],
            'flip_sin_to_cos': [True],
            'freq_shift': [0],
            'downsample_padding': [1],
            'mid_block_scale_factor': [1],
            'mid_block_type': ['UNetMidBlock2DCrossAttn'],
            'transformer_layers_per_block': [1],
            'time_embedding_type': ['positional'],
            'resnet_time_scale_shift': ['default'],
            'resnet_out_scale_factor': [1.0],
            'conv_in_kernel': [3],
            'conv_out_kernel': [3],
            'attention_type': ['default'],
            'dropout': [0.0],
            'resnet_skip_time_act': off,
            **dict.fromkeys(
                (
                    'use_linear_projection',
                    'dual_cross_attention',
                    'only_cross_attention',
                    'upcast_attention',
                    'class_embeddings_concat',
                ),
                off,
            ),
            **dict.fromkeys(
                (
                    'class_embed_type',
                    'addition_embed_type',
                    'encoder_hid_dim',
                    'encoder_hid_dim_type',
                    'num_class_embeds',
                    'time_cond_proj_dim',
                    'time_embedding_act_fn',
                    'time_embedding_dim',
                    'timestep_post_act',
                    'mid_block_only_cross_attention',
                    'num_attention_heads',
                    'reverse_transformer_layers_per_block',
                    'addition_time_embed_dim',
                    'cross_attention_norm',
                    'projection_class_embeddings_input_dim',
                ),
                [None],
            ),
        }
        return read_config(
            cls,
            'unet config',
            config,
            only=only,
            ignored=('addition_embed_type_num_heads',),
            defaults={'cross_attention_dim': 1280},
        )
