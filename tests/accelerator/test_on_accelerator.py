"""benchmarks/on_accelerator.sh: its arguments, what a budget leaves of it, how it continues, and
what it reports; then all of it at small size on this machine (slow).
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.accelerator import hidden, report
from benchmarks.accelerator.__main__ import complete, parsed, run
from benchmarks.accelerator.demo import scores
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.report import MET, MISSED, OPEN
from benchmarks.accelerator.steps import PARTS, QUICK, STEPS, TUNED, Step, allowance, chosen

ROOT = pathlib.Path(__file__).parents[2]


def test_arguments_have_defaults():
    given = parsed([])
    assert (given.seconds, given.size, given.parts) == (600.0, 'full', list('abcdef'))
    assert parsed(['--size=small']).out == pathlib.Path('runs/accelerator_small')


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--parts=a,x'], "'x' is none of a, b, c, d, e, f"),
        (['--seconds=0'], 'expected 1 second to a week'),
        (['--seconds=nan'], 'expected 1 second to a week'),
        (['--seconds=ten'], 'invalid float value'),
        (['--size=huge'], 'invalid choice'),
        (['--second=600'], 'unrecognized arguments'),
        ([f'--out={__file__}'], 'is a file; name a folder'),
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
    files = ROOT / 'benchmarks' / 'accelerator'
    assert all((files / f'{step.module}.py').is_file() for step in STEPS)


def test_ten_minutes_hold_the_first_three_parts():
    left, begun = 600.0, []
    for step in STEPS:
        if limit := allowance(step, left):
            begun.append(step.part)
            left -= limit
    assert begun[:3] == ['a', 'b', 'c'] and left >= 0
    assert allowance(STEPS[0], STEPS[0].least - 1) == 0


def test_only_a_gpu_has_steps_with_autotuning():
    assert all(step.mode == QUICK for step in chosen(list(PARTS), 'tpu'))
    assert {step.mode for step in chosen(['b'], 'gpu')} == {QUICK, TUNED}


def test_rows_are_kept_at_once_and_a_step_continues(tmp_path, capsys):
    path, step = tmp_path / 'b_model_sd35_512_quick.json', chosen(['b'], 'cpu')[0]
    assert path.stem == step.name and not complete(tmp_path, step)
    record = Record(path)
    record.add('one velocity', seconds=0.25, mfu=None)
    assert 'one velocity' in Record(path) and 'update' not in Record(path)
    assert not complete(tmp_path, step)
    again = Record(path)
    again.add('update', seconds=1.0)
    again.finish()
    assert complete(tmp_path, step) and list(Record(path).rows) == ['one velocity', 'update']
    assert 'seconds 0.25' in capsys.readouterr().out and not list(tmp_path.glob('*.part'))


def test_a_step_that_takes_too_long_is_stopped(tmp_path):
    assert run(Step('0', 'steps'), tmp_path, 'small', 60) == ''
    assert run(Step('0', 'device'), tmp_path, 'small', 0.01) == 'stopped after 0 s'
    assert run(Step('0', 'no_such_step'), tmp_path, 'small', 60) == 'ended with status 1'


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


FACTS = {'count': 1, 'device': 'NVIDIA H100 80GB HBM3', 'jax': '0.10.2'}
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
    'c_beside_flux_512_quick': document(
        {'torch': {'missing': 'torch or diffusers is not installed: nothing to compare with'}}
    ),
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
    assert other.verdict == OPEN and 'not installed' in other.found
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
    command += [f'--out={tmp_path}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    steps = chosen(list(PARTS), 'cpu')
    lost = [step.name for step in steps if not complete(tmp_path, step)]
    assert not lost, done.stdout[-4000:] + done.stderr[-4000:]
    rows = lambda name: json.loads((tmp_path / f'{name}.json').read_text())['rows']
    attention = rows('a_attention_quick')
    assert attention and all(row['equal'] for row in attention.values())
    for name in ('b_model_sd35_512_quick', 'c_model_flux_512_quick'):
        update = rows(name)['update']
        assert 0 <= update['ratio_deviation'] < 1e-4 and update['seconds'] > 0
    torch = rows('b_beside_sd35_512_quick')
    assert torch.keys() >= {'torch: one velocity', 'torch: decode'} or 'missing' in torch['torch']
    assert 0 < rows('d_hidden_quick')['hidden']['scoring_s']
    assert rows('f_demo_quick')['demo']['updates'] == 2
    # a CPU's figures are none for the page
    assert 'no aim is judged' in done.stdout and 'accelerators.md' not in done.stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert again.stdout.count('measured before') == len(steps)
