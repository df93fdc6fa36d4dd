"""examples/colab.ipynb: small and without outputs; its cells train, show, draw, export (slow)."""

import ast
import json
import pathlib

import pytest

from densegrpo_jax.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / 'examples' / 'colab.ipynb'
SMALL = [
    *('--config.rollout.prompts=4', '--config.rollout.group=4', '--config.rollout.steps=3'),
    *('--config.rollout.prompts_per_batch=4', '--config.optim.microbatch=16'),
    *('--config.eval.batch=8', '--config.eval.shown=4', '--config.data.eval_prompts=8'),
]


def cells(kind='code'):
    """The sources of the notebook's cells of a kind."""
    notebook = json.loads(NOTEBOOK.read_text(encoding='utf-8'))
    return [''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == kind]


def test_it_is_small_and_holds_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding='utf-8'))
    assert NOTEBOOK.stat().st_size < 20_000 and notebook['nbformat'] == 4
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            assert cell['outputs'] == [] and cell['execution_count'] is None
    ids = [cell['id'] for cell in notebook['cells']]
    assert len(ids) == len(set(ids))


def test_its_cells_are_python_and_call_commands_that_there_are():
    """No magics, so that they run anywhere."""
    calls = [
        node.args[0].value
        for source in cells()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'densegrpo'
    ]
    assert calls == ['train', 'report', 'sample', 'export'] and set(calls) <= set(COMMANDS)


@pytest.mark.slow
def test_it_runs_from_install_to_export(tmp_path, monkeypatch, capsys):
    """Every cell in one process, with two updates of a few samples."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    monkeypatch.chdir(tmp_path)
    names = {'__name__': '__main__'}
    for source in cells():
        source = source.replace('UPDATES = 10', 'UPDATES = 2')
        source = source.replace('SETTINGS = []', f'SETTINGS = {SMALL}')
        exec(compile(source, str(NOTEBOOK), 'exec'), names)
    run = tmp_path / 'runs' / 'notebook'
    assert names['UPDATES'] == 2 and (run / 'hello.png').is_file()
    assert (run / 'report' / 'index.html').is_file() and (run / 'page.html').is_file()
    assert (run / 'adapter' / 'README.md').is_file()
    assert list((run / 'adapter').glob('*.safetensors'))
    assert 'after 2 updates' in capsys.readouterr().out
