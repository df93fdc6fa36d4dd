"""A reward for `densegrpo_jax.reward_server`: OCR that finds the lines of text in images of any
size. An example to copy.

    export REWARD_TOKEN=...
    python -m densegrpo_jax.reward_server --config=configs/reward_server.py \\
        --host=0.0.0.0 --token_env=REWARD_TOKEN

and in the configuration of the training run, whose environment holds the same token:

    c.reward = {'remote': {'urls': 'http://a:18100,http://b:18100', 'names': ('ocr',),
                           'range': (0.0, 1.0), 'token_env': 'REWARD_TOKEN'}}
    c.reward_workers = 8  # concurrent requests

It can serve any reward (densegrpo_jax/rewards/build.py lists them), also several as their weighted
sum. All servers of a run must serve the same reward: /info shows a fingerprint of its options and
the package's version.

Hardware: CPU cores, about one per scoring thread (--workers).
"""

from densegrpo_jax.config.schema import default_config


def get_config():
    c = default_config()
    c.reward = {'ocr': {'weight': 1.0, 'mode': 'detect'}}
    return c
