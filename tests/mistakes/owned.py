"""Outputs that would take the place of what others wrote, or of what the command reads: (maker of
the folder, [command, arguments ...], words that the message must hold)."""

from mistakes.found import PREFLIGHT, RUN, SEARCH, TINY
from mistakes.places import both, write
from mistakes.typed import CLAIMS, PRETRAIN

NOTHING = lambda folder: None
PLAIN = ['main', TINY, RUN]
NOT_OURS = 'which this command did not write: name another folder, or move that away'
REFINE = ['search.__main__', TINY, '--prompt=A "HI"', '--config.search.method=refine', '--out=o']
DRAW = ['sample', TINY, '--prompt=x', '--out=deep/x.png']
REPRODUCE = ['experiments.reproduce', CLAIMS, '--figure=4', '--workdir=w', '--out=o']
OWNED = [
    (write('run/config.json', '{"hidden_size": 1}'), PLAIN, f'run holds config.json, {NOT_OURS}'),
    (write('run/index.html'), PREFLIGHT, f'run holds index.html, {NOT_OURS}'),
    (
        write('o/images/mine.png'),
        ['evaluate', TINY, '--out=o', '--restart'],
        f'o holds images, {NOT_OURS}',
    ),
    (write('o/base.png'), ['evaluate', TINY, '--out=o'], f'o holds base.png, {NOT_OURS}'),
    (write('o/summary.md'), [*SEARCH, '--out=o'], f'o holds summary.md, {NOT_OURS}'),
    (write('o/images/a.png'), [*REFINE, '--from=o/images'], 'o/images and would overwrite it'),
    (
        both(write('run/.densegrpo.json', '["report"]'), write('run/report/mine.txt')),
        PLAIN,
        'run/report holds something else than a page of a run',
    ),
    (
        write('mine.html', '<html>'),
        ['report', RUN, '--one_file=mine.html'],
        'mine.html is there, and this command did not write it',
    ),
    (write('deep/x.png', 'a photo'), DRAW, 'x.png is there, and this command did not write it'),
    (write('deep/x_0000.png'), [*DRAW, '--single'], 'x_0000.png is there, and this command did'),
    (NOTHING, [*DRAW, '--config.model.path=nowhere'], "model.path='nowhere' is not a folder"),
    (
        write('package.json', '{"name": "app"}'),
        ['plan', TINY, '--topology=h100:8', '--out=package.json'],
        'package.json is there, and this command did not write it',
    ),
    (
        write('a.png'),
        ['calibrate', TINY, RUN, '--out=a.json'],
        'a.png is there, and this command did not write it',
    ),
    (
        NOTHING,
        ['calibrate', TINY, RUN, '--config.model.path=nowhere'],
        "model.path='nowhere' is not a folder",
    ),
    (write('w/flux/model_index.json'), PRETRAIN, f'w holds flux, {NOT_OURS}'),
    (
        write('w/flux/model_index.json'),
        [*PRETRAIN, '--config.stages.vae.init=w/flux'],
        'w/flux and would overwrite it',
    ),
    (write('o/README.md', '# Mine'), REPRODUCE, 'o/README.md is there, and this command did not'),
    (
        write('o/README.md', '# Mine'),
        ['experiments.guarded.__main__', '--workdir=w', '--out=o'],
        'o/README.md is there, and this command did not',
    ),
    (
        write('o/foretold.png'),
        ['experiments.foretell', CLAIMS, '--workdir=w', '--out=o'],
        'o/foretold.png is there, and this command did not',
    ),
    (NOTHING, [*REPRODUCE, '--', '--config.rolout.steps=3'], "did you mean 'rollout'?"),
    (NOTHING, [*REPRODUCE, '--', 'banana'], "'banana' after --: settings are given as"),
    (NOTHING, [*PRETRAIN, '--config.seed=-1'], 'seed=-1: expected a whole number at least 0'),
]
