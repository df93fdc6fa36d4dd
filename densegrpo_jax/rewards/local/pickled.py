"""Weights that are published only as a pickle, which nothing here opens."""

import pathlib

from densegrpo_jax.runtime.reading import missing


def safetensors_file(
    option: str, value: str, *, origin: str, entry: str = '', folder: bool = False
) -> pathlib.Path:
    """The path `value` of weights that are published only as a pickle, which is never opened here.

    Args:
      option: its configuration key. origin: the published file. entry: where in the pickle the
        tensors are.
      folder: whether a folder is accepted too.

    Raises:
      ValueError: not given, or a pickle; the message says how to make a safetensors file.
      FileNotFoundError: it does not exist.
    """
    path = pathlib.Path(value).expanduser()
    if value and path.suffix not in ('.pt', '.pth', '.bin', '.ckpt'):
        if not (path.is_file() or folder and path.is_dir()):
            raise missing(path, f'reward.{option}={value!r}')
        return path
    source = str(path) if value else origin.split(' of ')[0]
    raise ValueError(
        f'reward.{option} is {value!r}; expected a safetensors file. The published {origin} is a '
        'pickle, which could run any code; convert it with\n'
        '    python -c "import torch; from safetensors.torch import save_file; '
        f"save_file({{k: v.contiguous() for k, v in torch.load('{source}', map_location='cpu', "
        f'weights_only=True){entry}.items()}}, '
        f"'{pathlib.Path(source).with_suffix('.safetensors')}')\""
    )
