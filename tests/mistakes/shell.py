"""Cases that go through processes of their own, as a shell starts them: (maker of the folder,
[module, arguments ...], environment, words that the message must hold).
"""

from mistakes.places import write

NOTHING = lambda folder: None
DISPATCHER = 'densegrpo_jax'
SERVER = ['densegrpo_jax.reward_server']
OWN = [*SERVER, '--config=own.py']


def reward(spec):
    """A file `own.py` that serves this reward."""
    return write(
        'own.py',
        'from ml_collections import ConfigDict\n\n\ndef get_config():\n'
        f'    return ConfigDict({{"reward": {spec}}})\n',
    )


def remote(urls):
    """A file `own.py` whose reward is computed by servers at these addresses."""
    return reward(f'{{"remote": {{"weight": 1.0, "names": ("a",), "urls": {urls}}}}}')


JPEG = reward('{"jpeg": {"weight": 1.0}}')

# These end before JAX is imported.
QUICK = [
    (NOTHING, [DISPATCHER], {}, 'no command given'),
    (NOTHING, [DISPATCHER, ''], {}, 'no command given'),
    (NOTHING, [DISPATCHER, 'trian'], {}, "unknown command 'trian'; did you mean 'train'?"),
    (NOTHING, [DISPATCHER, 'Sample'], {}, "unknown command 'Sample'; did you mean 'sample'?"),
    (NOTHING, [DISPATCHER, 'reward_server'], {}, "did you mean 'reward-server'?"),
    (NOTHING, [DISPATCHER, 'evalute', '--config=x'], {}, "did you mean 'evaluate'?"),
    (NOTHING, [DISPATCHER, '--config=tiny_ocr'], {}, "unknown command '--config=tiny_ocr'"),
    (NOTHING, [DISPATCHER, '--halp'], {}, "unknown command '--halp'"),
    (NOTHING, [DISPATCHER, 'größe'], {'PYTHONIOENCODING': 'ascii'}, "command 'gr\\xf6\\xdfe'"),
    (NOTHING, [DISPATCHER, 'export-lora'], {}, "did you mean 'export'?"),
    (NOTHING, SERVER, {}, '--config is missing'),
    (NOTHING, [*SERVER, '--config=reward_sever'], {}, "did you mean 'reward_server'?"),
    (NOTHING, [*SERVER, '--config=nowhere/a.py'], {}, "there is no file 'nowhere/a.py'"),
    (JPEG, [*OWN, 'banana'], {}, "unexpected arguments ['banana']"),
    (JPEG, [*OWN, '--banana=1'], {}, "Unknown command line flag 'banana'"),
    (JPEG, [*OWN, '--port=http'], {}, '--port=http'),
    (JPEG, [*OWN, '--drain_s=-1'], {}, '-1 is not a non-negative integer'),
    (JPEG, [*OWN, '--max_request_mb=0'], {}, '0 is not a positive integer'),
    (JPEG, [*OWN, '--token_env=TOKEN'], {'TOKEN': ''}, 'TOKEN'),
    (JPEG, [*OWN, '--config.reward.jpeg.banana=1'], {}, "has no key 'banana'"),
    (reward('{}'), OWN, {}, 'give at least one'),
    (reward('{"beauty": {"weight": 1.0}}'), OWN, {}, "unknown reward 'beauty'"),
    (reward('{"jpeg": {"weight": 0.0}}'), OWN, {}, 'give at least one'),
    (reward('{"jpeg": {"weight": float("inf")}}'), OWN, {}, 'expected a finite number'),
    (reward('{"jpeg": {"weight": "one"}}'), OWN, {}, "reward.jpeg.weight='one'"),
    (remote('""'), OWN, {}, 'has no servers'),
    (remote('"ftp://host:1"'), OWN, {}, 'ftp://host:1'),
    (remote('"http://host:99999"'), OWN, {}, 'http://host:99999'),
]

# A process of every command that imports JAX first, and kinds that forks try too.
TINY, RUN = '--config=tiny_ocr', '--workdir=run'
SLOW = [
    (write('own.py', 'import nowhere_at_all\n'), OWN, {}, "No module named 'nowhere_at_all'"),
    (write('own.py', 'def get_config(:\n'), OWN, {}, 'line 1 of own.py'),
    (write('own.py', 'def get_config():\n    return 1 / 0\n'), OWN, {}, 'line 2 of own.py'),
    (write('own.py', 'def get_config():\n    pass\n'), OWN, {}, 'get_config() returned None'),
    (write('own.py', b'\xff\xfe\x00'), OWN, {}, 'own.py'),
    (NOTHING, ['densegrpo_jax', 'train', TINY], {}, '--workdir is missing'),
    (NOTHING, ['densegrpo_jax.main', TINY, RUN, '--config.iterations=0'], {}, 'iterations=0'),
    (NOTHING, ['densegrpo_jax.sample', TINY], {}, 'nothing to draw: give --prompt'),
    (NOTHING, ['densegrpo_jax.search', TINY, '--count=-1'], {}, 'a whole number from 0'),
    (NOTHING, ['densegrpo_jax.evaluate', TINY, '--group=0'], {}, 'a whole number from 1'),
    (NOTHING, ['densegrpo_jax.calibrate', TINY, RUN, '--out=.'], {}, 'is a folder; name a file'),
    (NOTHING, ['densegrpo_jax.direction', TINY, '--workdir='], {}, 'is a variable of the shell'),
    (NOTHING, ['densegrpo_jax.export', TINY, RUN, '--out=o'], {}, 'No checkpoint folder'),
    (NOTHING, ['densegrpo_jax.plan', TINY, '--topology=h100:0'], {}, 'expected 1 to 100000'),
    (NOTHING, ['experiments.compare', TINY, RUN], {}, '--out is missing'),
    (NOTHING, ['experiments.reproduce', '--figure=99'], {}, '99'),
    (NOTHING, ['experiments.probe', TINY, RUN, '--prompts=0'], {}, 'a whole number from 1'),
    (NOTHING, ['tools.pretrain', '--config=tiny_pretrain', '--workdir= '], {}, 'it is empty'),
]
