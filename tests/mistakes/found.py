"""Cases in what a command finds on the disk: (maker of the folder, [command, arguments ...], words
that the message must hold)."""

import json
import struct

from mistakes.places import both, config, link, model, without, write

TINY, RUN, SCENE = '--config=tiny_ocr', '--workdir=run', '--config=tiny_scene'
OWN = ['main', '--config=own.py', RUN]
MODEL = ['main', TINY, RUN, '--config.model.path=model']
TRAIN = ['main', TINY, RUN, '--config.data.train=p.txt', '--config.rollout.prompts=1']
TRAIN += ['--config.rollout.prompts_per_batch=1', '--config.optim.microbatch=6']
SHAPES = ['main', '--config=tiny_geneval', RUN, '--config.data.train=p.jsonl']
DRAW = ['sample', TINY, '--prompts=p.txt']
TABLE = [*DRAW[:-1], '--prompts=p.csv']
INIT = ['main', TINY, RUN, '--config.lora.init_from=lora.safetensors']
SEARCH = ['search.__main__', TINY, '--prompt=A "HI"', '--config.search.method=best_of_n']
PREFLIGHT = ['preflight.__main__', TINY, RUN, '--prompts=4', '--group=8']
PSI = {'format': 1, 'finished': True, 'psi': [0.1], 'history': [], 'geometry': {'kernel': 'sde'}}
PSI_PATH = '--config.noise.psi_path=psi.json'


def tensors(header, data=b''):
    """The bytes of a safetensors file."""
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def one(dtype, shape, size, name='weight'):
    """A safetensors file with one tensor of `size` zero bytes."""
    entry = {'dtype': dtype, 'shape': shape, 'data_offsets': [0, size]}
    return tensors({name: entry}, bytes(size))


WRONG_SCORES = """from densegrpo_jax.rewards import Scores
class Red:
    name, names, range = 'red', ('red',), (0.0, 1.0)
    check = lambda *_: None
    __call__ = lambda self, images, *_: Scores({'red': images.mean()}, images.any((1, 2, 3)))
"""


def wrong(*lines):
    """A recipe with these lines, where RED names WRONG_SCORES."""
    lines = ["__import__('sys').path.insert(0, '')", *lines]
    body = '\n'.join(lines).replace('RED', "'kind': 'wrong_scores:Red'")
    return both(write('wrong_scores.py', WRONG_SCORES), config(body))


WRONG = wrong("c.reward = {'red': {'weight': 1.0, RED}}")
TRIED = "reward 'red': score 'red' has shape (); expected (2,) (tried on 2 images of noise)"

RECIPES = [
    (write('own.py', 'def get_config():\n    pass\n'), OWN, 'get_config() returned None'),
    (write('own.py', 'def get_config():\n    return {"a": 1}\n'), OWN, "returned {'a': 1}"),
    (
        write('own.py', 'def get_config():\n    return 1 / 0\n'),
        OWN,
        "line 2 of own.py, 'return 1 / 0'",
    ),
    (write('own.py', 'def get_config(:\n'), OWN, 'line 1 of own.py'),
    (write('own.py', 'import nowhere_at_all\n'), OWN, "No module named 'nowhere_at_all'"),
    (write('own.py', 'x = 1\n'), OWN, 'the file has no function get_config()'),
    (write('own.py', b'\xff\xfe\x00'), OWN, 'own.py'),
    (write('own.py', ''), OWN, 'the file has no function get_config()'),
    (config('c.rollout.banana = 1'), OWN, 'banana'),
    (config('c.rollout = 5'), OWN, 'rollout'),
    (config("c.optim.learning_rate = 'fast'"), OWN, 'learning_rate'),
    (config('c.iterations = True'), OWN, 'iterations=True: expected a whole number'),
    (config('c.reward = {}'), OWN, 'reward'),
    (config("c.reward = {'ocr': 5}"), OWN, 'ocr'),
    (config("c.reward = {'beauty': {'weight': 1.0}}"), OWN, 'beauty'),
    (config("c.reward.ocr.weight = 'one'"), OWN, 'weight'),
    (config('c.reward.ocr.weight = 0.0'), OWN, 'weight'),
    (
        config("c.reward = {'mine': {'weight': 1.0, 'kind': 'nowhere_at_all:R'}}"),
        OWN,
        'nowhere_at_all',
    ),
    (config("c.reward = {'remote': {'weight': 1.0, 'urls': []}}"), OWN, 'remote'),
    (WRONG, OWN, TRIED),
    (wrong("c.eval.panel = {'red': {RED}}", 'c.guard.on = True'), OWN, TRIED),
    (WRONG, ['search.__main__', OWN[1], *SEARCH[2:], '--prompt=A "NO"'], TRIED),
    (WRONG, [PREFLIGHT[0], *OWN[1:], *PREFLIGHT[3:]], TRIED),
    (
        write(
            'own.py', 'def get_config():\n    return __import__("ml_collections").ConfigDict()\n'
        ),
        OWN,
        'default_config()',
    ),
    (write('dir/x'), ['main', '--config=dir', RUN], 'dir'),
    (write('a.yaml', 'recipe: a.yaml'), ['main', '--config=a.yaml', RUN], 'a.yaml names itself'),
    (
        both(write('a.yaml', 'recipe: b.json'), write('b.json', '{"recipe": "a.yaml"}')),
        ['main', '--config=a.yaml', RUN],
        'a.yaml names itself, directly or by way of another file',
    ),
    (write('a.json', '[' * 100_000), ['main', '--config=a.json', RUN], 'nested too deeply'),
    (
        write('a.json', '{"recipe": "tiny_ocr", "optim.eps": 1' + '0' * 400 + '}'),
        ['main', '--config=a.json', RUN],
        'expected a finite number above 0',
    ),
    (
        write('own.py', 'import sys\n\n\ndef get_config():\n    sys.exit(3)\n'),
        OWN,
        "line 5 of own.py, 'sys.exit(3)': SystemExit: 3",
    ),
    (config("c.reward = {'ocr': {'kind': None}}"), OWN, 'the kind of a reward is None'),
    (
        write(
            'own.py',
            'from ml_collections import ConfigDict as C\n'
            'def get_config():\n    return C({"a": 1})\n',
        ),
        ['reward_server', '--config=own.py'],
        'this configuration has no `reward`',
    ),
]

FOLDERS = [
    (write('run'), ['main', TINY, RUN], 'run is a file, where a folder is needed'),
    (link('run', 'run'), ['main', TINY, RUN], 'a link to nothing, where a folder is needed'),
    (link('run', 'nowhere'), ['main', TINY, RUN], 'a link to nothing, where a folder is needed'),
    (
        write('run'),
        ['main', TINY, '--workdir=run/deep/er'],
        'run is a file, where a folder is needed',
    ),
    (write('f'), ['main', TINY, RUN, '--config.text_cache=f'], 'text_cache: '),
    (write('f'), ['evaluate', TINY, '--out=f'], 'f is a file, where a folder is needed'),
    (
        write('f'),
        ['search.__main__', TINY, '--out=f', '--prompt=x'],
        'f is a file, where a folder is',
    ),
    (write('f'), ['export', TINY, RUN, '--out=f'], 'f is a file, where a folder is needed'),
    (write('run/checkpoints/x'), ['export', TINY, RUN, '--out=o'], 'run'),
    (write('run/checkpoints'), ['sample', TINY, '--prompt=x', RUN], 'run'),
    *(
        (
            write(f'run/{name}'),
            ['main', TINY, RUN],
            f'run/{name} is a file, and this command writes',
        )
        for name in ('samples', 'tensorboard', 'text', 'checkpoints')
    ),
    *(
        (
            write(f'run/{name}/x'),
            ['main', TINY, RUN],
            f'{name} is a folder, and this command writes',
        )
        for name in ('summary.json', 'metrics.jsonl', 'reward_curve.png')
    ),
    (write('run/psi.json', '{}'), ['calibrate', TINY, RUN], 'not a psi file'),
    (write('run', 'x'), ['preflight.__main__', TINY, RUN], 'run is a file'),
    (write('psi.json', json.dumps(PSI)), ['calibrate', TINY, RUN, PSI_PATH], 'leave the key out'),
    *(
        (write(f'run/{name}'), ['main', TINY, RUN], f'run/{name} is a file, and this command')
        for name in ('groups', 'guard', 'report', 'profile')
    ),
    (write('o/images'), ['evaluate', TINY, '--out=o'], 'o/images is a file, and this command'),
    (write('o/scores.csv/x'), ['evaluate', TINY, '--out=o'], 'o/scores.csv is a folder, and this'),
    (write('o/images'), [*SEARCH, '--out=o'], 'o/images is a file, and this command writes'),
    (write('o/summary.md/x'), [*SEARCH, '--out=o'], 'o/summary.md is a folder, and this command'),
    (write('run/images'), [*PREFLIGHT], 'run/images is a file, and this command writes'),
    (write('run/preflight.json/x'), [*PREFLIGHT], 'run/preflight.json is a folder, and this'),
    (
        write(
            'o/scores.jsonl',
            '{"settings": {}}\n{"policy": "base", "set": "eval", "prompt": 0, "scores": null}\n',
        ),
        ['evaluate', TINY, '--out=o'],
        'scores.jsonl:2 is damaged (the line: scores is None; expected an object)',
    ),
    (write('run/config.json', '{"seed": 42,'), ['report', RUN], 'config.json is not valid JSON'),
    (write('run/config.json', b'\xe9'), ['report', RUN], 'config.json, line 1: byte 0xe9'),
    (write('run/config.json', '[' * 100_000), ['report', RUN], 'brackets nested too deeply'),
    (write('run/config.json', '{"iterations": "x"}'), ['report', RUN], "iterations='x': expected"),
    (
        write('run/config.json', '{"iterations": 1, "rollout": {"group": []}}'),
        ['report', RUN],
        'rollout.group=[]: expected a whole number',
    ),
    (write('run/config.json', '{}'), ['report', RUN], 'config.json has no iterations'),
    (
        write('run/config.json', '{"iterations": 1, "rollout": 5}'),
        ['report', RUN],
        'rollout.prompts=5: expected',
    ),
    (write('d.npz', 'x'), ['direction', SCENE, RUN, '--out=d.npz'], 'd.npz cannot be read'),
    (write('d.npz/x'), ['direction', SCENE, RUN, '--out=d.npz'], 'is a folder; name a file in it'),
]

PROMPTS = [
    (write('p.txt', ''), TRAIN, 'p.txt: the file holds no prompt'),
    (write('p.txt', '\n \n\t\n'), TRAIN, 'p.txt: the file holds no prompt'),
    (
        write('p.txt', 'A sign\n'),
        TRAIN,
        'p.txt:1: expected a target between straight double quotes',
    ),
    (write('p.txt', 'A "ok"\nA sign “so”\n'), TRAIN, 'p.txt:2: expected a target'),
    (write('p.txt', 'A sign " "\n'), TRAIN, 'p.txt:1: expected a target'),
    (write('p.txt', 'A sign "café"\n'.encode('latin-1')), TRAIN, 'line 1: byte 0xe9 is not UTF-8'),
    (write('p.txt', 'A sign "x"\0\n'), TRAIN, 'line 1: a NUL character'),
    (
        write('p.txt', 'A sign ' + 'very ' * 60 + '"HI"\n'),
        TRAIN,
        'tokens that the text encoders read',
    ),
    (
        both(
            write('p.txt', 'A sign ' + 'very ' * 60 + '"HI"\n'),
            config("c.eval.panel.ocr = {'mode': 'recognise'}\nc.eval.panel_prompts = 'p.txt'"),
        ),
        ['evaluate', OWN[1]],
        'eval.panel_prompts: the targets of 1 of 1 prompts lie beyond',
    ),
    (write('p.txt', 'A "HI" ' + 'very ' * 9000), TRAIN, 'p.txt:1: a prompt of 45006 characters'),
    (write('p.txt', ''), DRAW, 'p.txt: the file holds no prompt'),
    (write('p.txt', 'word ' * 10000), DRAW, 'p.txt:1: a prompt of'),
    (
        write('p.csv', 'text,n\nA "HI",1\n'),
        [*DRAW[:-1], '--prompts=p.csv'],
        "p.csv: there is no column 'prompt'; its columns: 'text', 'n'",
    ),
    (
        write('p.txt'),
        [*TRAIN[:3], '--config.data.train=hf:ada'],
        "'hf:ada' names no data set of the Hub",
    ),
    (write('p.txt/x'), DRAW, 'p.txt is a folder, where a file is needed'),
    (link('p.txt', 'p.txt'), DRAW, 'p.txt'),
    (write('p.jsonl', '{"prompt": 5}\n'), SHAPES, 'p.jsonl:1: not a GenEval prompt: tag is None'),
    (write('p.jsonl', '{"x": "a"}\n'), SHAPES, 'p.jsonl:1: not a GenEval prompt: unknown key x'),
    (write('p.jsonl', '{"prompt": "a"\n'), SHAPES, 'p.jsonl:1 is not valid JSON'),
    (write('p.jsonl', '[1]\n'), SHAPES, 'p.jsonl:1'),
    (write('p.jsonl', '[' * 100_000), SHAPES, 'brackets nested too deeply'),
    (write('p.jsonl', '\n'), SHAPES, 'p.jsonl: the file holds no prompt'),
    (
        write(
            'p.jsonl',
            '{"tag": "single_object", "include": [{"class": "cat", "count": 1}], '
            '"prompt": "a \\ud800"}\n',
        ),
        SHAPES,
        "p.jsonl:1: the character 3 of the prompt 'a \\ud800' is not text",
    ),
    (
        write('p.json', '["A \\"HI\\""]\n'),
        [*DRAW[:-1], '--prompts=p.json'],
        'files of the kind .json',
    ),
    (write('p.tsv', 'prompt\nA\n'), [*DRAW[:-1], '--prompts=p.tsv'], 'expected .txt or no suffix'),
    (write('p.JSONL', '["A"]\n'), [*DRAW[:-1], '--prompts=p.JSONL'], 'p.JSONL:1 holds'),
    (write('p.csv', 'prompt;n\nA;1\n'), TABLE, "commas between the values, not ';'"),
    (write('p.csv', 'prompt\tn\nA\t1\n'), TABLE, "commas between the values, not '\\t'"),
    (write('p.csv', ',text\nA,B\n'), TABLE, 'Name one after a colon, as p.csv:text'),
    (write('p.txt'), [*DRAW[:-1], '--prompts=/dev/zero'], '/dev/zero is a device'),
    (write('p.txt'), [*DRAW[:-1], '--prompts=/proc/self/mem'], '/proc/self/mem: Input/output'),
]

INDEX, SCHEDULER = 'model_index.json', 'scheduler/scheduler_config.json'
NETWORK, WEIGHTS = 'transformer/config.json', 'transformer/diffusion_pytorch_model.safetensors'
TOKENS = 'tokenizer/tokenizer.json'


def set_to(key, value):
    """Changes a key of a parsed file."""
    return lambda parsed: parsed.update({key: value})


def all_set(values):
    """Changes keys of a parsed file."""
    return lambda parsed: parsed.update(values)


MODELS = [
    (write('model'), MODEL, "model.path='model' is not a folder"),
    (write('model/x'), MODEL, 'model_index.json does not exist'),
    (model(INDEX, '{"_class_name": '), MODEL, 'model_index.json is not valid JSON: line 1'),
    (model(INDEX, '[1]'), MODEL, 'model_index.json holds [1]; expected an object'),
    (model(INDEX, '[' * 100_000), MODEL, 'brackets nested too deeply'),
    (model(INDEX, b'\xff\xfe{'), MODEL, 'model_index.json'),
    (
        model(INDEX, set_to('_class_name', 'PixArtSigmaPipeline')),
        MODEL,
        "is 'PixArtSigmaPipeline', expected one of",
    ),
    (model(INDEX, set_to('_class_name', None)), MODEL, '_class_name'),
    (model(SCHEDULER, '[]'), MODEL, 'scheduler_config.json holds []; expected an object'),
    (model(SCHEDULER), MODEL, 'scheduler_config.json'),
    (model(SCHEDULER, set_to('shift', 'three')), MODEL, 'shift'),
    (model(SCHEDULER, set_to('_class_name', 'DDPMScheduler')), MODEL, 'DDPMScheduler'),
    (model(NETWORK, 'null'), MODEL, 'expected an object'),
    (model(NETWORK, set_to('num_layers', -1)), MODEL, 'num_layers'),
    (model(NETWORK, set_to('num_layers', 'two')), MODEL, 'num_layers'),
    (model(NETWORK, set_to('banana', 1)), MODEL, 'banana'),
    (model(WEIGHTS), MODEL, 'transformer'),
    (model(WEIGHTS, 'hello'), MODEL, 'is not a complete safetensors file'),
    (model(WEIGHTS, one('I64', [2], 16, 'proj_out.bias')), MODEL, 'transformer'),
    (model('vae/config.json', set_to('block_out_channels', 4)), MODEL, 'block_out_channels'),
    (model('vae/config.json', set_to('shift_factor', '0.1')), MODEL, 'shift_factor'),
    (model(NETWORK, set_to('guidance_embeds', 'yes')), MODEL, 'guidance_embeds'),
    (model(NETWORK, set_to('axes_dims_rope', [16, '56'])), MODEL, 'axes_dims_rope'),
    (model(SCHEDULER, set_to('use_dynamic_shifting', 'false')), MODEL, 'use_dynamic_shifting'),
    (model(SCHEDULER, set_to('max_shift', float('nan'))), MODEL, 'max_shift'),
    (model(SCHEDULER, set_to('shift', 10**400)), MODEL, 'shift is 1000'),
    (model('vae/config.json', set_to('scaling_factor', 10**400)), MODEL, 'scaling_factor is 1000'),
    (
        model(
            SCHEDULER,
            all_set({'use_dynamic_shifting': True, 'base_shift': 1000, 'max_shift': 1001}),
        ),
        MODEL,
        'noise levels that do not fall from 1 to 0',
    ),
    (
        model(SCHEDULER, all_set({'use_dynamic_shifting': True, 'max_image_seq_len': 256})),
        MODEL,
        'base_image_seq_len and max_image_seq_len are both 256',
    ),
    (model('vae/config.json', set_to('scaling_factor', 'inf')), MODEL, 'scaling_factor'),
    (model('text_encoder/config.json', set_to('vocab_size', 5)), MODEL, 'vocab_size'),
    (model(TOKENS, '{'), MODEL, 'tokenizer'),
    (model(TOKENS), MODEL, 'tokenizer'),
    (without('tokenizer_2'), MODEL, 'tokenizer_2'),
    (
        both(model('tokenizer_2/tokenizer.json'), write('model/tokenizer_2/spiece.model')),
        MODEL,
        'pip install sentencepiece',
    ),
    # links of Hugging Face's cache to files that are gone
    (both(model(WEIGHTS), link(f'model/{WEIGHTS}', 'blobs/1')), MODEL, f'{WEIGHTS} is a link to'),
    (both(model(TOKENS), link(f'model/{TOKENS}', 'blobs/1')), MODEL, 'Delete the link and fetch'),
    (both(model(INDEX), link(f'model/{INDEX}', 'blobs/1')), MODEL, f'{INDEX} is a link to'),
    (without('vae'), MODEL, 'vae'),
    (
        both(model('x', ''), write('model/model_index.json.bak')),
        ['main', TINY, RUN, '--config.model.path=model', '--config.model.transformer_file=model/x'],
        'x',
    ),
]

LORA = [
    (write('lora.safetensors', 'hello'), INIT, 'lora.safetensors'),
    (write('lora.safetensors'), INIT, 'is not a complete safetensors file'),
    (write('lora.safetensors', tensors({})), INIT, 'lora.safetensors'),
    (write('lora.safetensors', one('F32', [2], 8)), INIT, 'lora.safetensors'),
    (
        write('lora.safetensors', one('F32', [2, 2], 16, 'base_model.model.x.lora_A.weight')),
        INIT,
        'adapter_config.json',
    ),
    (
        write('lora.safetensors', one('F32', [2, 2], 16, 'text_encoder.x.lora_A.weight')),
        INIT,
        'text',
    ),
    (write('lora.safetensors/x'), INIT, 'lora.safetensors'),
    (link('lora.safetensors', 'nowhere'), INIT, 'lora.safetensors'),
    (
        both(
            write('lora.safetensors/adapter_config.json', '[]'),
            write(
                'lora.safetensors/adapter_model.safetensors',
                one('F32', [2, 2], 16, 'base_model.model.x.lora_A.weight'),
            ),
        ),
        INIT,
        'adapter_config.json',
    ),
    (
        write('f.safetensors', 'hello'),
        ['main', TINY, RUN, '--config.model.transformer_file=f.safetensors'],
        'is not a complete safetensors file',
    ),
    (
        write('d/x'),
        ['main', TINY, RUN, '--config.model.transformer_file=d'],
        "transformer_file='d'",
    ),
    (write('psi.json', json.dumps(PSI)), [*TRAIN[:3], PSI_PATH], 'psi.json is damaged'),
    (
        write('psi.json', json.dumps({**PSI, 'history': [[None]]})),
        [*TRAIN[:3], PSI_PATH],
        'psi.json is damaged: history[0][0] is None; expected a number',
    ),
    (write('psi.json/x'), [*TRAIN[:3], PSI_PATH], 'psi.json'),
    (write('psi.json', '{'), ['main', TINY, RUN, '--config.noise.psi_path=psi.json'], 'psi.json'),
    (write('psi.json', '[]'), ['main', TINY, RUN, '--config.noise.psi_path=psi.json'], 'psi.json'),
    (
        write('psi.json', '{"psi": "x"}'),
        ['main', TINY, RUN, '--config.noise.psi_path=psi.json'],
        'psi.json',
    ),
]
