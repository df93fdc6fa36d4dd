import importlib
import subprocess
import sys

import pytest

FACE = ('sde_step', 'ode_rollout', 'dense_reward', 'grpo_loss')


@pytest.mark.parametrize('name', FACE)
def test_the_face_of_the_package_is_functions_and_stays_so(name):
    import densegrpo_jax

    importlib.import_module(f'densegrpo_jax.core.{name}')
    assert callable(getattr(densegrpo_jax, name)) and getattr(densegrpo_jax, name).__name__ == name
    assert name in dir(densegrpo_jax)


def test_import_from_after_importing_the_modules():
    code = (
        'import densegrpo_jax.core.sde_step, densegrpo_jax.core.grpo_loss; from densegrpo_jax '
        'import dense_reward, grpo_loss, ode_rollout, sde_step; assert all(type(f).__name__ == '
        '"function" for f in (dense_reward, grpo_loss, ode_rollout, sde_step))'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_unknown_names_are_attribute_errors():
    import densegrpo_jax

    with pytest.raises(AttributeError, match='ppo_loss'):
        _ = densegrpo_jax.ppo_loss
