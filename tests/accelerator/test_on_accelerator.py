"""benchmarks/on_accelerator.sh: its arguments, what a budget leaves of it, how it continues, and
what it reports; then all of it at small size on this machine (slow).
"""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from benchmarks.accelerator import hidden, process, report, table
from benchmarks.accelerator.__main__ import RESERVE, Call, main, parsed
from benchmarks.accelerator.demo import scores
from benchmarks.accelerator.record import Record, read, results
from benchmarks.accelerator.report import MET, MISSED, OPEN
from benchmarks.accelerator.steps import (
    DEVICE,
    PARTS,
    QUICK,
    STEPS,
    TUNED,
    Step,
    absent,
    allowance,
    chosen,
)

ROOT = pathlib.Path(__file__).parents[2]


def test_arguments_have_defaults():
    given = parsed([])
    assert (given.seconds, given.size, given.parts) == (500.0, 'full', list('abcdef'))
    assert parsed(['--size=small']).out == pathlib.Path('runs/accelerator_small')


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--parts=a,x'], "'x' is none of a, b, c, d, e, f"),
        (['--seconds=59'], 'expected a minute to a week'),
        (['--seconds=nan'], 'expected a minute to a week'),
        (['--seconds=ten'], 'invalid float value'),
        (['--size=huge'], 'invalid choice'),
        (['--second=600'], 'unrecognized arguments'),
        ([f'--out={__file__}'], 'is a file; name a folder'),
        ([f'--work={__file__}'], 'is a file; name a folder'),
    ],
)
def test_mistakes_in_arguments_are_a_line(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(words)
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_steps_are_in_order_of_value_and_named_once():
    quick = [step.part for step in STEPS if step.mode == QUICK]
    assert [quick.index(part) for part in PARTS] == sorted(quick.index(part) for part in PARTS)
    names = [step.name for step in STEPS]
    assert len(names) == len(set(names)) and all(0 < s.least <= s.most for s in STEPS)
    assert DEVICE.name not in names
    files = ROOT / 'benchmarks' / 'accelerator'
    assert all((files / f'{step.module}.py').is_file() for step in STEPS)


def test_the_default_holds_the_first_three_parts():
    left, begun = parsed([]).seconds - RESERVE, []
    for step in STEPS:
        if limit := allowance(step, left):
            begun.append(step.part)
            left -= limit
    assert begun[:3] == ['a', 'b', 'c'] and left >= 0
    assert allowance(STEPS[0], STEPS[0].least - 1) == 0


def test_only_a_gpu_has_steps_with_autotuning():
    assert all(step.mode == QUICK for step in chosen(list(PARTS), 'tpu'))
    assert {step.mode for step in chosen(['b'], 'gpu')} == {QUICK, TUNED}


FACTS = {
    'device': 'NVIDIA H100 80GB HBM3',
    'platform': 'gpu',
    'count': 1,
    'jax': '0.10.2',
    'size': 'full',
    'code': 'abc',
    'commit': 'def',
    'peak': 989e12,
    'gib': 73.0,
}


def test_rows_are_kept_at_once_and_a_step_continues(tmp_path, capsys):
    path, step = tmp_path / 'results.json', 'b_model_sd35_512_quick'
    Record(path, 'device', FACTS).finish()
    record = Record(path, step)
    record.add('one velocity', seconds=0.25, mfu=None)
    assert 'one velocity' in Record(path, step) and 'update' not in Record(path, step)
    assert not results(path)[step]['done'] and not Record(path, 'another').rows
    again = Record(path, step)
    again.add('update', seconds=1.0)
    again.finish()
    found = results(path)
    assert found[step]['done'] and list(found[step]['rows']) == ['one velocity', 'update']
    assert found['device']['done'] and read(path)['facts'] == FACTS
    assert 'seconds 0.25' in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ['results.json']


@pytest.mark.parametrize('fact', ['device', 'count', 'jax', 'size', 'code'])
def test_rows_of_other_facts_do_not_count_and_are_replaced(tmp_path, fact):
    path, step = tmp_path / 'results.json', 'a_attention_quick'
    Record(path, 'device', FACTS).finish()
    first = Record(path, step)
    first.add('one', seconds=1.0)
    first.finish()
    Record(path, 'device', FACTS | {fact: 'other'}).finish()
    assert results(path).keys() == {'device'} and read(path)['steps'].keys() == {'device', step}
    second = Record(path, step)
    assert not second.rows and not second.done and second.key != first.key
    second.add('two', seconds=2.0)
    assert list(results(path)[step]['rows']) == ['two']


def test_the_commit_alone_parts_no_rows(tmp_path):
    """The digest of the code says more: of changed files, and outside a repository."""
    path = tmp_path / 'results.json'
    Record(path, 'device', FACTS).finish()
    Record(path, 'device', FACTS | {'commit': 'unknown'}).save()
    assert results(path)['device']['done']


def program(text, limit, log, grace=5.0):
    return process.run([sys.executable, '-c', text], os.environ, limit, log, grace)


def test_a_process_is_shown_and_kept_and_its_status_told(tmp_path, capsys):
    with open(tmp_path / 'log', 'wb') as log:
        assert program('print("said", end="")', 60, log) == (0, '')
        assert program('import sys; sys.exit("bad")', 60, log) == (1, 'ended with status 1')
        assert program('import time; time.sleep(60)', 0.2, log) == (None, 'stopped after 0 s')
    assert (tmp_path / 'log').read_text() == 'saidbad\n'
    assert 'said' in capsys.readouterr().out


ORPHANS = """
import signal, subprocess, sys, time
child = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); '
child += 'print("ready", flush=True); time.sleep(60)'
for session in (False, True):
    started = subprocess.Popen(
        [sys.executable, '-c', child], stdout=subprocess.PIPE, start_new_session=session
    )
    started.stdout.readline()
    print(started.pid, flush=True)
{end}
"""


def ended(pid):
    try:
        return 'State:\tZ' in pathlib.Path(f'/proc/{pid}/status').read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(not pathlib.Path('/proc').is_dir(), reason='finds other sessions by /proc')
@pytest.mark.parametrize('end', ['', 'time.sleep(60)'])
def test_nothing_that_a_step_started_outlives_it(tmp_path, end):
    """Neither a child that ignores SIGTERM nor one in a session of its own, whether the step ends
    by itself or is stopped.
    """
    with open(tmp_path / 'log', 'wb') as log:
        program(ORPHANS.format(end=end), 3, log, grace=0.3)
    pids = [int(word) for word in (tmp_path / 'log').read_text().split()]
    assert len(pids) == 2
    for pid in pids:
        until = time.monotonic() + 20  # a killed process needs the processor to end
        while not ended(pid):
            assert time.monotonic() < until
            time.sleep(0.05)


def small(folder, *words):
    given = [f'--out={folder}', f'--work={folder}/work', '--size=small', *words]
    return Call(parsed(given))


def test_a_failed_step_is_no_success(tmp_path):
    call = small(tmp_path)
    Record(call.results, DEVICE.name, FACTS).finish()
    assert call.run(Step('a', 'steps'), 60) and not call.failed
    assert not call.run(Step('a', 'no_such_step'), 60) and call.failed
    assert call.left_out == {'a_no_such_step_quick': 'ended with status 1'}
    assert 'No module named' in (tmp_path / 'log.txt').read_text()


def test_a_step_without_its_packages_or_its_time_is_left_out(tmp_path):
    call = small(tmp_path, '--seconds=80')
    lost = Step('a', 'attention', needs=('json', 'no_such_package'), least=1)
    assert absent(lost) == ['no_such_package']
    long = Step('a', 'steps', needs=(), least=70)
    for step in (lost, long):
        call.do(step, 'cpu')
    assert call.left_out[lost.name] == 'not installed here: no_such_package'
    # of the budget, time to end a step and to print the table is kept
    assert call.left_out[long.name].startswith('it wants 70 s') and 50 < call.left < 61
    assert not call.failed and not results(call.results)


def test_the_seconds_end_with_the_table(tmp_path, monkeypatch, capsys):
    """A command that is stopped prints what it has."""

    def stopped(self, step, platform):
        raise KeyboardInterrupt

    def device(self, step, limit, platform=''):
        Record(self.results, step.name, FACTS).finish()
        return True

    monkeypatch.setattr(Call, 'do', stopped)
    monkeypatch.setattr(Call, 'run', device)
    assert main([f'--out={tmp_path}', f'--work={tmp_path}/work']) == 1
    said = capsys.readouterr().out
    assert 'stopped' in said and 'for docs/results/accelerators.md:' in said
    assert said in (tmp_path / 'log.txt').read_text()


def test_the_runs_of_the_table_share_the_cores(tmp_path):
    words = table.command(tmp_path, 16)
    assert words[-1] == '--config.reward_workers=2' and '--jobs=8' in words
    assert table.command(tmp_path, 2)[-1] == '--config.reward_workers=1'


SAID = """sampling alone: 10.000 s in 12 batches of 512 x 512 px
8 scoring threads, 240 images, 0 duplicates, 0 invalid: alone 60.0 distinct images/s, 110 CPU-ms
wall: sampling 10.000 s + scoring 4.000 s = 14.000 s; overlapped 10.300 s, of which 0.250 s after
hidden: 92% of the scoring; at most 93% in 12 batches (the last batch alone takes 0.3 s)"""


def test_the_share_that_is_hidden_is_read():
    row = hidden.read(SAID)
    assert (row['hidden'], row['at_most'], row['threads']) == (0.92, 0.93, 8)
    assert row['sampling_s'] + row['scoring_s'] == 14 and row['waited_s'] == 0.25
    with pytest.raises(ValueError, match='did not print hidden$'):
        hidden.read(SAID.replace('hidden', 'lost'))


def test_what_the_benchmark_of_rewards_prints_is_what_is_read():
    """The words of the patterns stand in the lines that it prints."""
    text = (ROOT / 'benchmarks' / 'bench_rewards.py').read_text(encoding='utf-8')
    for words in (
        'wall: sampling {',
        's + scoring {',
        'overlapped {',
        's, of which {',
        'hidden: {',
    ):
        assert words in text, words


def document(rows, done=True):
    return {'rows': rows, 'done': done, 'facts': {}, 'seconds': 12.0}


MEASURED = {
    'a_attention_quick': document({'one': {'equal': True}, 'two': {'equal': False}}),
    'b_model_sd35_512_quick': document(
        {
            'one velocity': {'seconds': 0.2, 'mfu': 0.5, 'compile_s': 30.0},
            'rollout with completions': {'seconds': 4.0, 'mfu': 0.5, 'compile_s': 30.0},
            'update': {'seconds': 9.0, 'mfu': 0.56, 'count': 8, 'microbatch': 2},
        }
    ),
    'b_beside_sd35_512_quick': document(
        {
            'torch: one velocity': {'seconds': 0.25, 'how': 'torch.compile'},
            'torch: update of a microbatch': {'seconds': 2.0, 'how': 'torch.compile'},
        }
    ),
    'b_model_sd35_512_tuned': document(
        {'rollout with completions': {'seconds': 3.0, 'mfu': 0.66, 'compile_s': 99.0}}, done=False
    ),
    'c_model_flux_512_quick': document({'peak memory': {'gib': 61.5, 'fits_80_gb': True}}),
    'd_hidden_quick': document({'hidden': hidden.read(SAID)}),
}


def test_aims_are_met_or_not_or_open():
    found = {aim.text: aim for aim in report.aims(MEASURED)}
    verdict = lambda word: [a.verdict for text, a in found.items() if word in text]
    assert verdict('attention') == [MISSED]
    # of two modes the faster one counts
    assert verdict('SD3.5-M 512 px, rollout') == [MET] and verdict('SD3.5-M 512 px, upd') == [MET]
    [torch] = [a for text, a in found.items() if 'SD3.5-M 512 px: not slower' in text]
    # a microbatch of ours takes 9 s x 2 / 8
    assert torch.verdict == MISSED and 'one velocity 0.80' in torch.found
    assert 'update 1.12 of its time' in torch.found or 'update 1.13 of its time' in torch.found
    assert verdict('FLUX.1-dev 512 px, rollout') == [OPEN] and verdict('fits 80 GB') == [MET]
    [other] = [a for text, a in found.items() if 'FLUX.1-dev 512 px: not slower' in text]
    assert other.verdict == OPEN
    assert verdict('hides') == [MET]


def test_the_table_says_what_was_left_out():
    text = report.table(MEASURED, {'e_options_quick': 'it wants 90 s and 10 are left'})
    assert 'e_options_quick: left out, it wants 90 s' in text
    assert 'b_model_sd35_512_tuned: 12 s (stopped: run it again for the rest)' in text
    judged = report.verdicts(MEASURED).splitlines()
    assert judged[0] == 'aims' and len(judged) == 1 + len(report.aims(MEASURED))
    assert any(MISSED in line for line in judged) and any(f' {MET} ' in line for line in judged)


def test_the_line_is_a_row_of_the_page():
    page = (ROOT / 'docs' / 'results' / 'accelerators.md').read_text(encoding='utf-8')
    [head] = [line for line in page.splitlines() if line.startswith('| device |')]
    line = report.line(FACTS, MEASURED)
    assert line.count('|') == head.count('|')
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert cells[0].startswith('1 x NVIDIA H100') and cells[1] == '3 s, 66%'
    assert cells[3:6] == ['-', '-', '92%'] and cells[6] == '60 s'
    assert cells[7] == '4 met, 2 not, 3 open'


def test_nothing_measured_is_no_aim_met():
    assert {aim.verdict for aim in report.aims({})} == {OPEN}
    assert report.line(FACTS, {}).count(' - ') == 5


def test_the_demo_is_told_by_its_summary():
    mean = lambda value: {'mean': value, 'standard_error': 0.01}
    summary = {'updates': 60, 'before': mean(0.5), 'after': mean(0.7), 'seconds': 120.0}
    assert scores(summary)['seconds'] == 2.0 and scores(summary)['after'] == 0.7


@pytest.mark.slow
def test_it_runs_whole_at_small_size(tmp_path):
    """Every part on a CPU; a second call has nothing left to do."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
    command = [sys.executable, '-m', 'benchmarks.accelerator', '--size=small', '--seconds=3600']
    command += [f'--out={tmp_path}', f'--work={tmp_path}/work']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    steps = [step for step in chosen(list(PARTS), 'cpu') if not absent(step)]
    found = results(tmp_path / 'results.json')
    lost = [step.name for step in steps if not found.get(step.name, {'done': False})['done']]
    assert not lost, done.stdout[-4000:] + done.stderr[-4000:]
    rows = lambda name: found[name]['rows']
    attention = rows('a_attention_quick')
    assert attention and all(row['equal'] for row in attention.values())
    for name in ('b_model_sd35_512_quick', 'c_model_flux_512_quick'):
        update = rows(name)['update']
        assert 0 <= update['ratio_deviation'] < 1e-4 and update['seconds'] > 0
    if 'b_beside_sd35_512_quick' in found:
        torch = rows('b_beside_sd35_512_quick')
        assert torch.keys() >= {'torch: one velocity', 'torch: decode'}
    assert 'matrix product' in done.stdout
    assert 0 < rows('d_hidden_quick')['hidden']['scoring_s']
    assert rows('f_demo_quick')['demo']['updates'] == 2
    # a CPU's figures are none for the page
    assert 'no aim is judged' in done.stdout and 'accelerators.md' not in done.stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert again.stdout.count('measured before') == len(steps)
