"""What is typed wrong is said in a line that names it and the way out, with status 2; options of
rewards are set by their names.
"""

import functools
import os
import pathlib
import re
import subprocess
import sys
import traceback

import pytest
from absl import app, flags
from jax.errors import JaxRuntimeError

from densegrpo_jax.config import command_line
from densegrpo_jax.config.schema import KEYS
from densegrpo_jax.rewards import build_reward
from densegrpo_jax.sampling import execution
from experiments import reproduce

ROOT = pathlib.Path(__file__).parents[2]
TINY = str(ROOT / 'configs' / 'tiny_ocr.py')

COMMANDS = sorted(
    f'{folder}.{p.stem}'
    for folder in ('densegrpo_jax', 'experiments', 'tools')
    for p in (ROOT / folder).glob('*.py')
    if '    run_main(main' in p.read_text()
)

# Flags are defined once in a process: one process imports what all commands need, and a copy of it
# runs each.
HELP = """
import importlib, os, runpy, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for name in sys.argv[1:]:
    print(f'### {name}', flush=True)
    if not os.fork():
        sys.argv = [name, '--help']
        runpy.run_module(name, run_name='__main__', alter_sys=True)
    os.wait()
"""


@pytest.mark.parametrize(
    'arguments, said',
    [
        (
            [f'--config={TINY}', '--config.rollout.banana=1'],
            "--config.rollout.banana=1: config.rollout has no key 'banana'; its keys: f",
        ),
        (
            [f'--config={TINY}', '--config.rolout.steps', '6'],
            "--config.rolout.steps: config has no key 'rolout'; did you mean 'rollout'?",
        ),
        (
            [f'--config={TINY}', '--config.learning_rate=1'],
            "no key 'learning_rate'; did you mean 'd2.learning_rate' or 'optim.learning_rate'?",
        ),
        (
            [f'--config={TINY}', '--noconfig.lora.ful'],
            "--noconfig.lora.ful: config.lora has no key 'ful'",
        ),
        (
            [f'--config={TINY}', '--config.rollout.steps.x=3'],
            '--config.rollout.steps.x=3: config.rollout.steps is a value (6)',
        ),
        (
            [f'--config={TINY}', '--config.rollout.steps=six'],
            '--config.rollout.steps=six: expected a whole number',
        ),
        (
            [f'--config={TINY}', '--config.reward.ocr.batch_sise=8'],
            "has no key 'batch_sise'; did you mean 'batch_size'? its keys: weight",
        ),
        (
            [f'--config={TINY}', '--config.reward.jpeg.weight=1'],
            "config.reward has no key 'jpeg'; rewards are chosen in the file or",
        ),
        ([f'--config={TINY[:-5]}c.py'], f"tiny_oc.py'; did you mean {TINY}?"),
        (
            ['--config=nowhere/some.py'],
            "--config=nowhere/some.py: there is no file 'nowhere/some.py'; the current folder is",
        ),
        (
            ['--config=tiny_orc.py'],
            "there is no file 'tiny_orc.py'; did you mean the recipe 'tiny_ocr'?",
        ),
        ([f'--config={ROOT / "README.md"}'], 'expected a Python file with a function get_config()'),
        (
            [f'--config={TINY.replace("tiny_ocr", "claims_ocr_96")}:devices=8'],
            "this configuration has no variants, its get_config() takes none; leave ':devices=8' "
            'out',
        ),
        (
            [f'--config={TINY.replace("tiny", "flux")}:devices=7'],
            'flux_ocr.py:devices=7: devices=7: an iteration of 48 prompts x 24',
        ),
        (
            ['--config=tiny_orc'],
            "there is no recipe 'tiny_orc'; did you mean 'tiny_ocr'? recipes: claims_",
        ),
        (
            ['--config=tiny_ocr:method=flow'],
            "--config=tiny_ocr:method=flow: method=flow is not known; did you mean 'flow_cps'?",
        ),
        (
            ['--config=tiny_ocr', '--config.credit.completion_solver=ab2'],
            "no key 'completion_solver'; it was removed, every run has 'euler' now: leave it out",
        ),
        (
            ['--config=tiny_ocr', '--config.calibration.tolerance=0.05'],
            "no key 'tolerance'; calibration.drift (0.2 is as 0.1 was) takes its place",
        ),
        ([f'--config={TINY}', '--workdri=x'], "Unknown command line flag 'workdri'"),
        (
            [f'--config={TINY}', '--iterations=4'],
            "'iterations'; did you mean --config.iterations or ",
        ),
        ([f'--config={TINY}', '--group=4'], "'group'; did you mean --config.rollout.group"),
    ],
)
def test_a_mistake_is_named(typed, arguments, said):
    status, printed, _ = typed(*arguments)
    assert status == 2 and said in printed and 'Traceback' not in printed


@pytest.mark.parametrize(
    'error', [app.UsageError('too many'), ValueError('too many'), FileNotFoundError('too many')]
)
def test_what_a_command_cannot_use_is_said_too(typed, error):
    def main(flag):
        raise error

    assert typed(f'--config={TINY}', main=main)[:2] == (2, 'error: too many\n')
    assert typed(f'--config={TINY}', main=lambda flag: 75)[0] == 75
    status, printed, _ = typed(f'--config={TINY}', 'more', main=main)
    assert status == 2 and "unexpected arguments ['more']; settings are given as" in printed
    with pytest.raises(RuntimeError):  # a fault of the program keeps its traceback
        typed(f'--config={TINY}', main=lambda flag: exec('raise RuntimeError'))


def test_an_unknown_figure_is_said(typed):
    flag = type(
        'Flags', (), dict(workdir='w', out='o', figure=['5'], psi='', config=TINY, seeds=['0'])
    )
    main = lambda _, extra: reproduce.main(flag, extra)
    status, printed, _ = typed(f'--config={TINY}', main=main, extra=True)
    assert status == 2 and printed.startswith('error: --figure=5 is not known; choose from 4, 6a')


def test_an_option_of_a_reward_need_not_stand_in_the_file(typed):
    status, printed, config = typed(
        f'--config={TINY}',
        '--config.reward.ocr.batch_size=8',
        '--config.reward.ocr.extra_text_penalty=0.5',
        '--config.rollout.steps=3',
    )
    assert status == 0, printed
    assert dict(config.reward.ocr) == {
        'weight': 1.0,
        'mode': 'recognise',
        'smooth': 0.0,
        'batch_size': 8,
        'extra_text_penalty': 0.5,
    }
    assert config.rollout.steps == 3 and config.is_locked
    build_reward(config.reward)
    _, _, config = typed(
        f'--config={TINY}',
        "--config.reward={'ocr': {'mode': 'recognise'}, 'jpeg': {'weight': 0.1}}",
    )
    assert {part.name for part, _ in build_reward(config.reward).parts} == {'ocr', 'jpeg'}


@pytest.mark.parametrize('name', ['workdir', 'out'])
def test_what_is_no_folder_is_refused(name, monkeypatch):
    """An unset variable of the shell would scatter a run over the current folder."""
    values = flags.FlagValues()
    for define in ('DEFINE', 'register_validator'):
        here = functools.partial(getattr(flags, define), flag_values=values)
        monkeypatch.setattr(flags, define, here)
    command_line.define_folder(name, None, 'A folder.')
    for folder in ('~/bucket/run', '.', 'a [b]*?'):
        values(['command', f'--{name}={folder}'])
        assert values[name].value == os.path.expanduser(folder)
    for folder, said in (
        ('gs://b/run', 'expected a folder of this machine; mount the bucket'),
        ('', 'it is empty: is a variable of the shell unset'),
        ('a\\b', 'has a backslash, which tensorstore takes for a slash'),
    ):
        with pytest.raises(flags.Error) as caught:
            values(['command', f'--{name}={folder}'])
        assert str(caught.value).startswith(f'flag --{name}={folder}: ') and said in str(
            caught.value
        )
    for command in COMMANDS:
        assert (
            f"flags.DEFINE_string('{name}'"
            not in (ROOT / f'{command.replace(".", "/")}.py').read_text()
        ), command


@pytest.mark.slow
def test_help_lists_the_flags_that_a_command_speaks_of():
    assert {'main', 'calibrate', 'evaluate'} < {
        name.removeprefix('densegrpo_jax.') for name in COMMANDS
    }
    assert {'experiments.probe', 'tools.pretrain'} < set(COMMANDS)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', HELP, *COMMANDS],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    pages = dict(page.split('\n', 1) for page in done.stdout.split('### ')[1:])
    assert list(pages) == COMMANDS, done.stderr
    for name, page in pages.items():
        description, listed = page.split('\nflags:\n')
        known = set(re.findall(r'^  --(?:\[no\])?(\w+):', listed, re.MULTILINE))
        spoken_of = {
            flag if flag in known else flag.removeprefix('no')
            for flag in re.findall(r'--(\w+)(?![\w.])', description)
        }
        assert spoken_of <= known and ('config' in spoken_of or 'config' not in known), (
            name,
            spoken_of - known,
        )


@pytest.mark.parametrize(
    ('touch', 'message'),
    [
        (lambda folder: (folder / 'file' / 'below').read_text(), 'file/below: Not a directory'),
        (lambda folder: folder.read_text(), ': Is a directory'),
        (lambda folder: (folder / ('n' * 300)).write_text(''), 'File name too long'),
        (lambda folder: (folder / 'loop').read_text(), 'loop: Too many levels of symbolic links'),
        (lambda folder: (folder / 'file').rename(folder / 'no' / 'x'), 'no/x: No such file'),
        (lambda folder: (folder / 'file').mkdir(), 'file: File exists'),
    ],
)
def test_what_the_system_refuses_is_a_line_with_the_file(typed, tmp_path, touch, message):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    status, error, _ = typed(main=lambda flag: touch(tmp_path))
    assert status == 2 and error.startswith('error: ') and message in error
    assert error.count('\n') == 1 and str(tmp_path) in error


@pytest.mark.parametrize(
    ('command', 'given', 'message'),
    [
        ('densegrpo_jax.sample', '--compare', '--compare is given without --workdir'),
        ('experiments.compare', '--seeds=0,0', 'different whole numbers below 2^32'),
    ],
)
def test_what_would_be_ignored_is_an_error(command, given, message):
    done = subprocess.run(
        [sys.executable, '-m', command, f'--config={TINY}', given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_what_helps_stands_after_the_traceback_of_a_full_device(typed, caplog):
    def main(flag):
        raise JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.')

    with pytest.raises(JaxRuntimeError) as told:
        typed(f'--config={TINY}', main=main)
    *_, last = traceback.format_exception(told.value)
    assert 'nvidia-smi' in last and 'densegrpo plan' in last
    assert 'optim.microbatch' in last and 'rollout.prompts_per_batch' in last
    assert {key for key in re.findall(r'[a-z]+\.[a-z_]+', last) if key != 'local.sh'} <= {*KEYS}
    for error in ('RESOURCE_EXHAUSTED', 'INTERNAL'):
        try:
            raise JaxRuntimeError(error)
        except JaxRuntimeError as raised:
            execution._report(raised)  # in one process of several
    assert caplog.text.count('nvidia-smi') == 1
