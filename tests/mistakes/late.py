"""Cases that are refused only once prompts were read or networks traced, seconds after the start;
most have siblings in the other tables. (maker of the folder, [command, arguments ...], words that
the message must hold)."""

import json

from mistakes.found import MODEL, NETWORK, OWN, PREFLIGHT, RUN, SEARCH, TINY, WEIGHTS, one, set_to
from mistakes.places import ROOT, both, config, link, model, ours, write

NOTHING = lambda folder: None
PLAIN = ['main', TINY, RUN]
# Fewer than the weights have; all else at the defaults of a large network.
FEW = {'_class_name': 'FluxTransformer2DModel', 'num_layers': 1, 'num_single_layers': 1}
SEARCHES = ['experiments.search', '--workdir=w', '--tasks=ocr']
SMC = ['search.__main__', TINY, '--config.search.method=smc']
CONFIGS = link('configs', ROOT / 'configs')
PANEL = both(
    write('p.txt', 'A sign ' + 'very ' * 60 + '"HI"\n'),
    config("c.eval.panel.ocr = {'mode': 'recognise'}\nc.eval.panel_prompts = 'p.txt'"),
)
BEYOND = 'the targets of 1 of 1 prompts lie beyond'
LATE = [
    (PANEL, [*SEARCH[:2], '--prompts=p.txt', SEARCH[-1]], f'--prompts: {BEYOND}'),
    (PANEL, [*OWN, '--config.guard.on=True'], f'eval.panel_prompts: {BEYOND}'),
    (NOTHING, ['search.__main__', TINY, '--config.search.nfe=1'], 'search.nfe'),
    (ours('o/search.jsonl', '[1]\n'), [*SEARCH, '--out=o'], 'search.jsonl:1 is damaged'),
    (
        ours('o/search.jsonl', '{"settings": {}}\n{"a": 1}\n'),
        [*SEARCH, '--out=o'],
        'search.jsonl:2 is damaged (it holds a); start anew with --restart',
    ),
    (
        write('o/search.jsonl', '{"settings": {}}\n{"spread": "x"}\n'),
        [*SEARCH, '--out=o'],
        "search.jsonl:2 is damaged (the line: spread is 'x'; expected a number)",
    ),
    (
        ours('o/scores.jsonl', '{"settings": {}}\n{"policy": "base"}\n'),
        ['evaluate', TINY, '--out=o'],
        'scores.jsonl:2 is damaged (it holds policy)',
    ),
    (NOTHING, [*SMC, '--config.search.gradient=True'], "the reward 'ocr' has no gradient"),
    (CONFIGS, [*SEARCHES, '--budgets=3'], 'search.nfe'),
    (CONFIGS, [*SEARCHES, '--policy=nowhere'], 'No checkpoint folder'),
    (NOTHING, [*PLAIN, '--config.optim.microbatch=7'], 'optim.microbatch'),
    (NOTHING, [*PLAIN, '--config.rollout.prompts=30000'], 'the number of prompts in the set'),
    (
        ours('run/rewards.jsonl', '{"settings": {"seed": 1}}\n'),
        ['preflight.__main__', TINY, RUN],
        'give another --workdir',
    ),
    (
        ours('run/rewards.jsonl', '{"settings": {}}\n{"prompt": 1}\n'),
        PREFLIGHT,
        'rewards.jsonl:2 is damaged (it holds prompt); give another --workdir',
    ),
    (model(NETWORK, set_to('num_layers', 3)), MODEL, WEIGHTS.rpartition('/')[0]),
    (
        model(NETWORK, json.dumps(FEW)),
        MODEL,
        'the weights in model/transformer do not fit this network',
    ),
    (model(WEIGHTS, one('F32', [2], 8)), MODEL, 'weight'),
    (model('vae/config.json', set_to('latent_channels', 7)), MODEL, 'vae'),
]
