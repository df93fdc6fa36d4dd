"""What is typed wrong is said in a line that names it and the way out, with status 2; options of
rewards are set by their names.
"""

import functools
import json
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


@pytest.fixture
def typed(monkeypatch, capsys):
    """(exit status, what was printed as an error, the configuration) of a command that was called
    with these arguments.
    """

    def typed(*arguments, main=None, extra=False, of_run=False, reads=''):
        values = flags.FlagValues()
        monkeypatch.setattr(flags, 'FLAGS', values)
        monkeypatch.setattr(sys, 'argv', ['command', *arguments])
        monkeypatch.setattr(app, 'run', lambda run, flags_parser: run(flags_parser(sys.argv)))
        flag = command_line.config_flags.DEFINE_config_file('config', None, flag_values=values)
        values['config'].parser = command_line._Configuration(of_run=of_run, reads=reads)
        flags.DEFINE_string('workdir', None, '', flag_values=values)
        with pytest.raises(SystemExit) as end:
            command_line.run_main(main or (lambda flag: 0), extra=extra)
        return end.value.code, capsys.readouterr().err, flag.value if end.value.code == 0 else None

    return typed


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


def test_a_label_tells_the_credit_and_the_reward_of_the_run(typed, tmp_path):
    recipe, credit = f'--config={TINY}', '--config.credit.rule=examples.own_method:rule'
    label = lambda *given: typed(*given)[2].label
    assert label(recipe, '--config.seed=3') == 'miniature FLUX, held-out OCR, dense credit'
    own = 'miniature FLUX, held-out OCR, credit examples.own_method:rule'
    assert label(recipe, credit) == own
    mine = f'{own}, but the reward is jpeg + mine'
    reward = "{'mine': {'kind': 'm:Mine'}, 'jpeg': {}}"
    assert label(recipe, credit, f'--config.reward={reward}') == mine
    assert label(recipe, credit, '--config.label=as given') == 'as given'
    assert label(f'{recipe}:method=gae', '--config.credit.rule=sparse').endswith(
        'OCR, gae, credit sparse'
    )
    file = tmp_path / 'own.yaml'
    file.write_text("recipe: tiny_ocr\nreward: {ocr: {kind: 'm:Mine'}}\ncredit: {rule: sparse}\n")
    of_file = 'miniature FLUX, held-out OCR, credit sparse, but the reward is m:Mine'
    assert label(f'--config={file}') == of_file
    assert label(f'--config={file}', '--config.credit.rule=gae').endswith(
        'but the reward is m:Mine, credit gae'
    )
    file.write_text('recipe: tiny_ocr\nlabel: Mine\ncredit: {rule: sparse}\n')
    assert label(f'--config={file}') == 'Mine'


def test_none_unsets_what_a_recipe_sets(typed, tmp_path):
    (tmp_path / 'own.yaml').write_text('recipe: tiny_ocr\nnoise.psi_path: psi.json\n')
    own = f'--config={tmp_path / "own.yaml"}'
    assert typed(own, '--config.label=x')[2].noise.psi_path == 'psi.json'
    _, _, config = typed(own, '--config.noise.psi_path=none', '--config.model.path=none')
    assert config.noise.psi_path == '' and config.model.path == 'none' and config.is_locked
    status, printed, _ = typed(own, '--config.noise.psi_path', ' ')
    assert status == 2 and '--config.noise.psi_path=none unsets' in printed
    assert typed(own, '--config.reward.ocr.mode=none')[2].reward.ocr.mode == 'none'  # as it is
    (tmp_path / 'own.yaml').write_text(
        'recipe: tiny_ocr\nreward: {remote: {urls: x, names: [a], token_env: TOKEN}}\n'
    )
    _, printed, config = typed(own, '--config.reward.remote.token_env=none')
    assert config.reward.remote.token_env == '', printed


def test_a_recipe_is_known_by_its_name_anywhere(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, given = (
        typed(f'--config={recipe}:method=flow_grpo', '--config.rollout.steps=4')
        for recipe in ('tiny_ocr', TINY)
    )
    assert named[:2] == given[:2] == (0, '') and named[2].is_locked
    assert named[2].to_json() == given[2].to_json() and named[2].credit.rule == 'sparse'
    # a file of one's own is found by its path alone
    (tmp_path / 'tiny_ocr').mkdir()
    assert typed('--config=tiny_ocr')[2].rollout.steps == 6


def test_without_a_recipe_a_command_takes_that_of_the_run(typed, tmp_path):
    run = lambda *arguments: typed(*arguments, of_run=True)
    (tmp_path / 'config.json').write_text('{"recipe": "tiny_ocr", "model": {"guidance": 2.5}}')
    key = '--config.model.width=64'
    for given in ([f'--workdir={tmp_path}', key], [key, '--workdir', str(tmp_path)]):
        code, said, config = run(*given)
        assert (code, config.model.guidance, config.model.width) == (0, 2.5, 64)
        assert f'it is that of the run, {tmp_path}/config.json' in said
    assert run(f'--workdir={tmp_path}', f'--config={TINY}')[2].model.guidance == 1.5
    code, said, _ = run(f'--workdir={tmp_path}/nowhere')
    assert code == 2 and f'there is no {tmp_path}/nowhere/config.json' in said
    code, said, _ = run(key)
    assert code == 2 and 'error: give --config=RECIPE, or --workdir=RUN, whose own' in said
    assert typed(f'--workdir={tmp_path}')[2] is None  # `train` begins with a recipe


def test_a_recipe_beside_a_run_is_told_from_the_run_s_own(typed, tmp_path):
    own = {'recipe': 'tiny_ocr', 'model.guidance': 2.5, 'model.width': 64, 'optim.eps': 1e-6}
    (tmp_path / 'config.json').write_text(json.dumps(own))
    run = lambda *given: typed(f'--workdir={tmp_path}', *given, of_run=True, reads='sample')[:2]
    code, said = run('--config=tiny_ocr', '--config.model.width=48')
    assert code == 0 and said == (
        'note: --config=tiny_ocr sets model.guidance=1.5, and the run has 2.5: leave --config out '
        "to take the run's\n"
    )
    code, said = run('--config.model.width=48')
    assert code == 0 and 'and the run has' not in said
    (tmp_path / 'config.json').write_text('damaged')
    assert run('--config=tiny_ocr') == (0, '')


def test_a_mistake_in_the_file_is_shown_where_it_is(typed, tmp_path):
    file = tmp_path / 'some.py'
    file.write_text(
        'from densegrpo_jax.config.schema import default_config\n\n\n'
        'def get_config():\n    c = default_config()\n    c.rollout.stepz = 3\n    return c\n'
    )
    status, printed, _ = typed(f'--config={file}')
    assert (
        status == 2
        and f'line 6 of {file}' in printed
        and 'c.rollout.stepz = 3' in printed
        and '"stepz" does not exist' in printed
    )


def test_options_without_a_default_take_any_value(typed, tmp_path):
    file = tmp_path / 'some.py'
    file.write_text(
        'from densegrpo_jax.config.schema import default_config\n'
        '\n'
        '\n'
        'def get_config():\n'
        '    c = default_config()\n'
        "    c.reward = {'asked': {'kind': 'judge'}}\n"
        '    return c\n'
    )
    options = ['urls=http://a:1', 'range=(0.0, 5.0)', 'timeout_s=7']
    status, printed, config = typed(
        f'--config={file}', *(f'--config.reward.asked.{option}' for option in options)
    )
    assert status == 0, printed
    expected = {'kind': 'judge', 'urls': 'http://a:1', 'range': (0.0, 5.0), 'timeout_s': 7.0}
    assert dict(config.reward.asked) == expected


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


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('def get_config():\n    pass\n', 'get_config() returned None; expected a configuration'),
        ('def get_config():\n    return {}\n', 'get_config() returned {}'),
        ('x = 1\ny = missing\n', "line 2 of {file}, 'y = missing': NameError"),
        ('def get_config():\n    return\n  1\n', "of {file}, '1': IndentationError"),
        ('def get_config():\n    a = {}\n    return a["b"]\n', 'KeyError: b'),
        (
            'import no_such_module\n',
            "line 1 of {file}, 'import no_such_module': ModuleNotFoundError",
        ),
        (
            'from configs.tiny_ocr import get_config as base\ndef get_config():\n'
            '    c = base()\n    c.rollout.steps = "six"\n    return c\n',
            'line 4 of {file}, ',
        ),
        (
            'import ml_collections\ndef get_config():\n'
            '    return ml_collections.ConfigDict({"dataset": "words"})\n',
            'the configuration has no key seed; start it from',
        ),
    ],
)
def test_a_mistake_in_a_configuration_file_is_a_line_of_it(typed, tmp_path, text, message):
    file = tmp_path / 'mine.py'
    file.write_text(text)
    status, error, _ = typed(f'--config={file}')
    assert status == 2 and message.replace('{file}', str(file)) in error, error
    assert 'Traceback' not in error


def test_a_line_is_named_where_the_path_is_relative_too(typed, tmp_path, monkeypatch):
    (tmp_path / 'mine.py').write_text('x = 1\ny = 1 / 0\n')
    monkeypatch.chdir(tmp_path)
    for name in ('mine.py', './mine.py'):
        status, error, _ = typed(f'--config={name}')
        assert status == 2 and "line 2 of mine.py, 'y = 1 / 0': ZeroDivisionError" in error
