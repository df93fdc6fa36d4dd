"""Trainings played by a small script, for the tests of what runs and compares them."""

import functools
import textwrap

import pytest

from experiments import compare
from experiments.equal_cost import run as equal_cost
from experiments.reproduction import facts
from experiments.reproduction.sweep import Run

ONCE = functools.cache(facts.device)  # starts a process that imports JAX
FACTS = {'base': 'base-1', 'device': '1 x cpu', 'commit': 'abc'}

# Stands for densegrpo_jax.main: three evaluations whose level depends on the variant and which rise
# more at the learning rate 1e-4. The rule gae fails. A SIGUSR1 before the end: it exits with 75.
TRAINING = """
    import json, pathlib, signal, sys, time
    args = dict(a.lstrip('-').split('=', 1) for a in sys.argv[1:] if '=' in a)
    folder, seed = pathlib.Path(args['workdir']), int(args['config.seed'])
    if args.get('config.credit.rule') in ('fails', 'gae'):
        sys.exit(3)
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    while (folder.parent.parent / 'hold').exists():
        (folder / 'waiting').write_text('')
        time.sleep(0.02)
    sparse = args.get('config.credit.rule') == 'sparse' or args['config'].endswith('flow_grpo')
    rise = 0.2 if sparse else 0.3
    rise += 0.1 if args.get('config.optim.learning_rate') == '0.0001' else 0.0
    with open(folder / 'metrics.jsonl', 'w') as file:
        for step in (0, 1, 2):
            if step:
                row = {'step': step, 'train/nfe': 100.0 * step, 'train/kl': 0.1}
                row['train/seconds'] = 2.0 * step
                file.write(json.dumps(row) + chr(10))
            score = 0.5 + rise * step / 2 + 0.01 * seed
            row = {'step': step, 'eval/ocr': score, 'eval/standard_error': 0.02}
            file.write(json.dumps(row) + chr(10))
    (folder / 'summary.json').write_text(json.dumps({'updates': 2, 'score': 'ocr'}))
"""


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Runs of this test's folder start the script instead of a training."""
    for module in (compare, equal_cost):
        monkeypatch.setattr(module, 'device', ONCE)
    script = tmp_path / 'training.py'
    script.write_text(textwrap.dedent(TRAINING))
    command = Run.command.fget
    monkeypatch.setattr(
        Run, 'command', property(lambda run: ['python', str(script), *command(run)[3:]])
    )
