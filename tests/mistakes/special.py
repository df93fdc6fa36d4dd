"""Pipes, sockets and devices where a file is expected: a pipe never begins, a device never ends.
(maker of the folder, [command, arguments ...], words that the message must hold)."""

import os
import socket

from mistakes.found import INIT, MODEL, PSI_PATH, RUN, TINY, TRAIN
from mistakes.places import both, model

SAID = 'where a file is needed'


def pipe(name):
    """A pipe that nobody writes to."""

    def make(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / name)

    return make


def device(name, target='/dev/zero'):
    """A link to a device."""

    def make(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def unix_socket(name):
    """A socket that nobody listens on."""

    def make(folder):
        here = os.getcwd()
        os.chdir(folder)  # its path may have 107 characters
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)
        os.chdir(here)

    return make


NOTHING = lambda folder: None
PLAIN = ['main', TINY, RUN]
DRAW = ['sample', TINY]
OUT = ['search.__main__', TINY, '--prompt=A "HI"', '--config.search.method=best_of_n', '--out=o']
FILES = [
    ('pipe', pipe, 'is a pipe'),
    ('device', device, 'is a device'),
    ('socket', unix_socket, 'is a socket'),
]
SPECIAL = [
    *((make('x.txt'), [*DRAW, '--prompts=x.txt'], f'{words}, {SAID}') for _, make, words in FILES),
    (NOTHING, [*DRAW, '--prompts=/dev/null'], f'/dev/null is a device, {SAID}'),
    (pipe('x.jsonl'), [*DRAW, '--prompts=x.jsonl'], f'x.jsonl is a pipe, {SAID}'),
    (pipe('x.csv'), [*DRAW, '--prompts=x.csv'], f'x.csv is a pipe, {SAID}'),
    (pipe('x.txt'), [*TRAIN[:3], '--config.data.train=x.txt'], f'x.txt is a pipe, {SAID}'),
    (pipe('x.py'), ['main', '--config=x.py', RUN], f'x.py is a pipe, {SAID}'),
    (NOTHING, ['main', '--config=/dev/zero', RUN], f'/dev/zero is a device, {SAID}'),
    (pipe('flags'), ['sample', '--flagfile=flags'], f'--flagfile flags is a pipe, {SAID}'),
    (pipe('flags'), ['watch', '--flagfile', 'flags'], f'--flagfile flags is a pipe, {SAID}'),
    (pipe('x.json'), [*TRAIN[:3], PSI_PATH.replace('psi.json', 'x.json')], 'x.json is a pipe'),
    (pipe('lora.safetensors'), INIT, f'lora.safetensors is a pipe, {SAID}'),
    (device('lora.safetensors'), INIT, f'lora.safetensors is a device, {SAID}'),
    (
        pipe('f'),
        [*PLAIN, '--config.model.transformer_file=f'],
        f"transformer_file='f' is a pipe, {SAID}",
    ),
    *(
        (both(model('README.md', ''), make(f'model/{name}')), MODEL, f'{name} {words}, {SAID}')
        for _, make, words in FILES[:2]
        for name in (
            'model_index.json',
            'scheduler/scheduler_config.json',
            'text_encoder/config.json',
            'tokenizer_2/tokenizer.json',
            'transformer/diffusion_pytorch_model.safetensors',
        )
    ),
    (pipe('run/config.json'), ['report', RUN], 'config.json is a pipe'),
    (pipe('run/metrics.jsonl'), PLAIN, 'metrics.jsonl is a pipe, and this command writes a file'),
    (pipe('run'), PLAIN, 'run is a pipe, where a folder is needed'),
    (pipe('o/search.jsonl'), OUT, 'search.jsonl is a pipe'),
]

CONFIGS = ['transformer', 'vae', 'text_encoder', 'text_encoder_2', 'scheduler']
FORMS = [
    *(
        (model(f'{name}/{file}', content), MODEL, f'{file} {words}')
        for name in CONFIGS
        for file in [f'{"scheduler_" if name == "scheduler" else ""}config.json']
        for content, words in [
            ('{}', f'has no {"model_type or" if "text" in name else "_class_name,"}'),
            ('[]', 'holds []; expected an object'),
            ('"x"', "holds 'x'; expected an object"),
        ]
    ),
    (model('tokenizer/tokenizer_config.json', '{}'), MODEL, 'has no model_max_length of at most'),
    (model('tokenizer/tokenizer_config.json', '[]'), MODEL, 'holds []; expected an object'),
    (model('tokenizer/tokenizer.json', '{}'), MODEL, "tokenizer.json has no 'model'"),
    (model('tokenizer_2/tokenizer.json', '5'), MODEL, 'tokenizer.json holds 5; expected an object'),
]
