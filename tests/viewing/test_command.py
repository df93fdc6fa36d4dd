"""The command that started a run, and the one that goes on with it."""

import shlex

import pytest

from densegrpo_jax.runtime.files import lock
from densegrpo_jax.viewing.command import COMMAND, NEWEST, continuing, started_by
from densegrpo_jax.viewing.run_data import LONGEST, read_run
from tests.viewing.made_run import make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / 'run')


@pytest.fixture
def own(run):
    return f'densegrpo train --config={run}/config.json --workdir={run}'


@pytest.mark.parametrize(
    ('recorded', 'shown'),
    [
        ('densegrpo train --config=a\n', 'densegrpo train --config=a'),
        ('densegrpo train --config=a\n# in /home/a b\n', 'densegrpo train --config=a'),
        ('\udce9', ''),
    ],
)
def test_the_command_is_shown_if_it_is_on_record(run, recorded, shown):
    assert read_run(run)['command'] == ''
    (run / COMMAND).write_text(recorded, errors='surrogateescape')
    assert read_run(run)['command'] == shown


@pytest.mark.parametrize(
    ('given', 'kept'),
    [
        ('--config=tiny_ocr --workdir=runs/run --device=gpu', ' --device=gpu'),
        ('--config tiny_ocr --workdir runs/run --cpu_devices 2', ' --cpu_devices 2'),
        ('--config=a --config.seed=3 --config.noise.a -0.5 --noconfig.guard.on --x=1', ' --x=1'),
        (
            "--distributed=off -heartbeat=9 --config=a --config.label='a --device=b'",
            ' --distributed=off -heartbeat=9',
        ),
        ('--config=a --distributed=on --device=cuda', ' --device=cuda'),  # Slurm gave one process
        ('--config=a --device="gpu', ''),  # damaged
    ],
)
def test_a_run_goes_on_by_its_own_configuration_with_the_other_flags(run, own, given, kept):
    (run / COMMAND).write_text(f'densegrpo train {given}\n')
    assert continuing(run, ()) == own + kept
    assert continuing(run, ['--more']) == f'{own}{kept} --more'


@pytest.mark.parametrize(
    ('program', 'kept'),
    [
        ('.venv/bin/python -m densegrpo_jax.main', '.venv/bin/python -m densegrpo_jax.main'),
        ('python -u -m densegrpo_jax train', 'python -u -m densegrpo_jax train'),
        ('/bin/python /bin/densegrpo train', 'densegrpo train'),
        ('python -m pytest', 'densegrpo train'),  # called from another program
        ('', 'densegrpo train'),  # which gave fewer words than the training has flags
    ],
)
def test_it_goes_on_with_the_program_that_began_it(run, own, program, kept):
    """launch/demo.sh and local.sh install no command `densegrpo`."""
    flags = ['--config=a', '--device=gpu']
    (run / COMMAND).write_text(shlex.join(started_by([*program.split(), *flags], flags)))
    assert continuing(run, ()) == f'{own.replace("densegrpo train", kept)} --device=gpu'


def test_it_goes_on_in_the_folder_where_it_was_started(run, own, monkeypatch):
    (run / COMMAND).write_text('densegrpo train --config=a --device=gpu\n# in /home/a b\n')
    expected = f"cd '/home/a b' && {own} --device=gpu"
    assert continuing(run, ()) == expected
    monkeypatch.chdir(run.parent)  # paths are those of the run, wherever the page is made
    assert continuing(run.relative_to(run.parent), ()) == expected


def test_a_file_of_flags_may_name_the_configuration(run):
    (run / COMMAND).write_text('densegrpo train --flagfile=flags.txt\n# in /home\n')
    assert continuing(run, ['-x']) == 'cd /home && densegrpo train --flagfile=flags.txt -x'


def test_without_a_record_the_configuration_goes_on(run, own):
    assert continuing(run, ()) == own


@pytest.mark.parametrize(
    'recorded',
    [
        'densegrpo train --config=a --coordinator=box:80 --num_processes=2 --process_id=0\n',
        'densegrpo train --config=a\n# one of 2 processes\n# in /home\n',  # of a scheduler
        'densegrpo train --flagfile=a\n# one of 16 processes\n',
    ],
)
def test_one_of_several_processes_is_not_started_alone(tmp_path, recorded):
    """It would wait for the others for ever."""
    run = make_run(tmp_path / 'several', updates=2, iterations=6)
    (run / COMMAND).write_text(recorded)
    assert continuing(run, ()) == ''
    with lock(run):
        pass
    found = read_run(run)
    assert (found['state'], found['continue']) == ('stopped', '')
    assert found['advice'].endswith('start all of them again, as before')
    assert found['command'] == recorded.partition('\n')[0]


def test_it_goes_on_with_the_newest_flags(run, own):
    (run / COMMAND).write_text('densegrpo train --config=a --device=gpu\n# in /first\n')
    (run / NEWEST).write_text('densegrpo train --config=a --device=cpu\n# in /second\n')
    assert continuing(run, ()) == f'cd /second && {own} --device=cpu'
    assert read_run(run)['command'] == 'densegrpo train --config=a --device=gpu'


def test_a_long_command_is_cut_where_it_is_shown_only(run, own):
    label = 'x' * LONGEST
    (run / COMMAND).write_text(f'densegrpo train --config.label={label} --device=gpu\n')
    assert continuing(run, ()) == f'{own} --device=gpu'
    assert len(read_run(run)['command']) == LONGEST + 2
