"""What a command does before its imports: Ctrl-C is one line, texts are UTF-8 in any locale."""

import ast
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from densegrpo_jax.runtime import entry

ROOT = pathlib.Path(__file__).parents[2]
ASCII = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONIOENCODING': 'ascii'}


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding='utf-8',
        env={**os.environ, **environment},
        # what a shell starts with & ignores SIGINT, and so do its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    'command',
    [
        ['densegrpo_jax', 'train'],
        ['densegrpo_jax.main'],
        ['densegrpo_jax.search'],
        ['densegrpo_jax.reward_server'],
        ['experiments.compare'],
        ['tools.pretrain'],
    ],
    ids=lambda command: command[0],
)
def test_ctrl_c_during_the_imports_is_one_line(command):
    # -X importtime names every module on stderr when its import is complete
    with start('-X', 'importtime', '-m', *command, '--config=tiny_ocr') as process:
        late = threading.Timer(60, process.kill)  # what goes on for so long was not stopped
        late.start()
        for line in process.stderr:
            if line.rpartition('|')[2].strip() == 'absl.flags':
                break
        else:
            pytest.fail(f'absl.flags was not imported: {process.wait()}')
        process.send_signal(signal.SIGINT)
        said = [line for line in process.stderr if not line.startswith('import time:')]
        assert said == ['stopped by SIGINT before any work\n']
        assert process.wait() == entry.INTERRUPTED and not process.stdout.read()
        late.cancel()


@pytest.mark.parametrize('module', ['', 'theirs.command'])
def test_importing_the_package_leaves_ctrl_c_alone(module, tmp_path):
    look = 'import densegrpo_jax, signal\nprint(signal.getsignal(2) is signal.default_int_handler)'
    (tmp_path / 'theirs').mkdir()
    for name in ('__init__', 'command'):  # python -m imports both, the first with argv ['-m']
        (tmp_path / 'theirs' / f'{name}.py').write_text(look, encoding='utf-8')
    how = ['-m', module] if module else ['-c', look]
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    out, _ = start(*how, PYTHONPATH=path).communicate()
    assert out.split() == ['True'] * (2 if module else 1)


def test_ctrl_c_in_work_cleans_up_and_is_one_line(capsys):
    cleaned, before = [], signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end, entry.interruptible():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                cleaned.append(True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert cleaned and end.value.code == entry.INTERRUPTED
    assert capsys.readouterr().err == 'stopped by SIGINT\n'


def test_texts_and_paths_in_an_ascii_locale(tmp_path):
    """The process starts itself anew: names on the disk are UTF-8, as they are elsewhere."""
    recipe = tmp_path / 'größe [1]' / 'プロンプト.py'
    recipe.parent.mkdir()
    recipe.write_text("def get_config():\n    print('größe', '\\udcff')\n", encoding='utf-8')
    process = start('-m', 'densegrpo_jax.reward_server', f'--config={recipe}', **ASCII)
    out, said = process.communicate()
    assert process.returncode == 2 and 'Traceback' not in said
    shown = str(recipe).encode('ascii', 'backslashreplace').decode()
    assert f'error: --config={shown}: get_config() returned None' in said
    assert out == 'gr\\xf6\\xdfe \\udcff\n'


def test_every_file_is_opened_in_utf_8():
    unnamed = []
    for room in ('densegrpo_jax', 'experiments', 'tools'):
        for path in (ROOT / room).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
                if isinstance(node, ast.Call) and in_text_mode(node):
                    unnamed.append(f'{path}:{node.lineno}')
    assert not unnamed, f'without encoding=: {unnamed}'


def in_text_mode(call):
    """Whether a call opens a file as text without naming an encoding."""
    if any(keyword.arg == 'encoding' for keyword in call.keywords):
        return False
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ('read_text', 'write_text')
    if getattr(call.func, 'id', '') != 'open':
        return False
    mode = [ast.literal_eval(argument) for argument in call.args[1:2]]
    return not any('b' in name for name in mode)
