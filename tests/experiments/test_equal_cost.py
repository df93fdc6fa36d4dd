"""The table of methods at equal cost: budgets, curves read at a cost, the search of learning rates,
the page. Trainings are played by the script of conftest.py.
"""

import math
import pathlib
import shutil
import types

import numpy as np
import pytest

from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.rewards.directional import Direction, write_direction
from densegrpo_jax.sampling.process_reward import Probe, write_probe
from experiments import reproduce
from experiments.equal_cost import measures, page, sweep
from experiments.equal_cost import run as equal_cost
from experiments.equal_cost.budget import updates_within
from experiments.equal_cost.curves import fewest_points, mean_to, score_at, spent_until, with_costs
from experiments.equal_cost.measures import STEPS, Measures, means
from experiments.equal_cost.variants import (
    CLAIMS,
    CONTROLS,
    DENSE,
    SPARSE,
    VARIANTS,
    Comparison,
    Variant,
)
from experiments.reproduction.records import Records
from experiments.reproduction.statistics import NOT_RUN

CONFIG = 'configs/claims_ocr.py'
ROWS = [
    {'updates': u, 'nfe': 10.0 * u, 'seconds': 2.0 * u, 'score': s}
    for u, s in ((0, 0.5), (1, 0.7), (3, 0.6), (4, 0.8))
]


def test_every_claim_compares_two_known_variants_on_a_known_axis():
    for claim in CLAIMS:
        for part in claim.parts:
            assert part.more != part.less
            assert {part.more, part.less} <= set(VARIANTS)
            score, at, steps = part.quantity.partition('@')
            assert int(steps) in STEPS if at else part.quantity in page.NAMES
    assert set(METHODS) <= set(VARIANTS)
    drawn = [name for names in page.FAMILIES.values() for name in names]
    assert sorted(drawn) == sorted(METHODS)


@pytest.mark.parametrize('name', CONTROLS)
def test_a_control_differs_from_its_method_in_what_it_names(name):
    control = CONTROLS[name]
    method = sweep.loaded(CONFIG, Variant(control.method), [])
    other = sweep.loaded(CONFIG, control, [])
    for key, value in control.changes.items():
        group, inner = key.split('.')
        assert other[group][inner] == value != method[group][inner]


def test_a_budget_is_that_of_dense_credit_and_buys_sparse_credit_more_updates():
    # by hand: 60 updates of 24 samples; dense 6 + 5 + 4 + 3 + 2 + 1 = 21 evaluations, sparse 6
    budget = sweep.budget_of(CONFIG, [])
    assert budget == 60 * 24 * 21 == 30_240
    dense, sparse = (sweep.entries(CONFIG, [n], budget, [])[0][0] for n in (DENSE, SPARSE))
    assert (dense.updates, sparse.updates) == (60, 210)
    assert (sparse.cost.nfe, sparse.cost.images) == (6, 1)
    assert (dense.images, sparse.images) == (24 * 6, 24)
    assert updates_within(1, 24 * 6) == 1 and updates_within(1000, 100.0001) == 10
    # an update by hand: five noisy transitions, evaluated once and gone back through twice; the KL
    # of the record is not measured in these runs
    assert dense.update == sparse.update == 5 * 3
    nft, winners = (sweep.entries(CONFIG, [n], budget, [])[0][0] for n in ('nft', 'winners'))
    # ten draws, also evaluated by old policy and reference; the recipe has one microbatch, so all
    # samples are evaluated with the winners
    assert (nft.update, winners.update) == (10 * 5, 3)
    (few,), _ = sweep.entries(CONFIG, ['winners'], budget, ['--config.optim.microbatch=2'])
    assert few.update == 3 / 12  # both winners are in the first of twelve
    assert nft.updating == 24 * 50
    # arguments of every run count
    (longer,), _ = sweep.entries(CONFIG, [SPARSE], budget, ['--config.rollout.steps=10'])
    assert longer.updates == 126


def test_what_is_made_before_a_training_is_counted_beside_its_budget(tmp_path, run):
    budget, file = 30_240.0, tmp_path / 'process.npz'
    write_probe(file, Probe(np.ones(4), np.ones(3), {}, {'samples': 960.0}))
    extra = [f'--config.guide.file={file}']
    (drifts, plain, sparse), _ = sweep.entries(
        CONFIG, ['euphonium', 'euphonium_plain', SPARSE], budget, extra
    )
    # by hand: a rollout of T = 6, and the base network at its 7 states; its image is scored
    assert drifts.before == (960 * 13, 960) == (12_480, 960)
    assert plain.before == sparse.before == (0, 0)
    assert drifts.updates == updates_within(budget, 24 * drifts.cost.nfe)  # of the training alone
    file = tmp_path / 'direction.npz'
    made = {'pictures': 512.0}
    write_direction(file, Direction(np.ones(4), 1.5, False, 'scene', 'w', np.ones(2), made))
    extra = [f'--config.d2.file={file}', '--config.eval.steps=4']
    (guided,), _ = sweep.entries('configs/tiny_scene.py', ['d2_align'], budget, extra)
    assert guided.before == (512 * 4, 512)
    file.write_text('no arrays')
    _, why = sweep.entries('configs/tiny_scene.py', ['d2_align'], budget + 1, extra)
    assert 'direction.npz cannot be read' in why['d2_align']
    assert run('euphonium', extra=[f'--config.guide.file={tmp_path}/process.npz']) == 0
    text = (tmp_path / 'out' / 'README.md').read_text()
    row = f'| `euphonium` | {drifts.cost.nfe:g} | {drifts.update:g} | 1 | {drifts.updates} |'
    assert f'{row} 12,480 | 960 | ' in text


def test_curves_are_read_between_evaluations():
    # by hand on the four points of ROWS
    assert score_at(ROWS, 'nfe', 20.0) == pytest.approx(0.65)
    assert score_at(ROWS, 'seconds', 8.0) == pytest.approx(0.8)
    assert math.isnan(score_at(ROWS, 'nfe', 41.0))
    # areas: 10 x 0.6, then 10 x 0.675
    assert mean_to(ROWS, 'nfe', 10.0) == pytest.approx(0.6)
    assert mean_to(ROWS, 'nfe', 20.0) == pytest.approx((10 * 0.6 + 10 * 0.675) / 20)
    assert mean_to(ROWS, 'nfe', 40.0) == pytest.approx((6 + 13 + 7) / 40)
    assert math.isnan(mean_to(ROWS, 'nfe', 41.0)) and math.isnan(mean_to(ROWS, 'nfe', 0.0))
    assert spent_until(ROWS, 'nfe', 0.6) == pytest.approx(5.0)
    assert spent_until(ROWS, 'nfe', 0.75) == pytest.approx(37.5)
    assert spent_until(ROWS, 'nfe', 0.5) == 0 and spent_until(ROWS, 'nfe', 0.9) == math.inf
    rows = with_costs(ROWS, 24, 5)
    assert [row['images'] for row in rows] == [0, 24, 72, 96]
    assert [row['work'] for row in rows] == [0, 15, 45, 60]


def test_curves_are_compared_where_the_coarser_one_was_evaluated():
    """One concave curve, evaluated at each of eight costs and at each third: equal to itself."""
    fine = [{'nfe': x, 'score': math.sqrt(x)} for x in range(0, 9)]
    coarse = fine[::3]
    assert mean_to(fine, 'nfe', 6.0) - mean_to(coarse, 'nfe', 6.0) > 0.05
    at = fewest_points([fine, coarse], 'nfe', 6.0)
    assert at == [0, 3]
    assert (
        mean_to(fine, 'nfe', 6.0, at)
        == mean_to(coarse, 'nfe', 6.0)
        == mean_to(coarse, 'nfe', 6.0, at)
    )


def test_the_one_stride_of_g2rpo_is_e_grpo_without_merging():
    """So that its runs are the control of both."""
    unmerged = Variant('e_grpo', {'plan.merge_tau': 0.0})
    found = [sweep.loaded(CONFIG, v, []) for v in (unmerged, VARIANTS['g2rpo_one_stride'])]
    for config in found:
        config.label = ''
    assert found[0].to_dict() == found[1].to_dict()


def test_a_mean_height_is_the_integral_of_the_drawn_curve():
    fine = np.linspace(0, 33.0, 100_001)
    x, y = ([row[key] for row in ROWS] for key in ('nfe', 'score'))
    assert mean_to(ROWS, 'nfe', 33.0) == pytest.approx(np.interp(fine, x, y).mean(), abs=1e-5)


@pytest.fixture
def run(tmp_path, training, monkeypatch):
    """The command in this process, with these flags; evaluations are played, too."""

    def evaluation(command, log, stop):
        given = dict(a.split('=', 1) for a in command if '=' in a)
        assert ':method=' not in given['--config'] and '--checkpoint=latest' in command
        out = pathlib.Path(given['--out'])
        out.mkdir()
        score = 0.1 * int(given['--config.eval.steps']) + ('dense_grpo' in given['--workdir'])
        (out / 'scores.csv').write_text(f'policy,index,prompt,total\nstep 2,0,a,{score}\n')

    monkeypatch.setattr(measures, 'complete', evaluation)
    monkeypatch.setattr(equal_cost, 'device', lambda: '1 x cpu')

    def run(methods, seeds=('0',), extra=(), **changes):
        flag = dict(
            figure=['methods'],
            config=CONFIG,
            methods=methods.split(','),
            seeds=list(seeds),
            workdir=tmp_path / 'work',
            out=tmp_path / 'out',
            jobs=2,
            run=True,
            commit='abc',
        )
        return reproduce.main(types.SimpleNamespace(**flag | changes), list(extra))

    return run


def test_rates_are_chosen_first_and_the_table_uses_them(tmp_path, run):
    assert run('dense_grpo,flow_grpo,stepwise,stepwise_two', '012') == 0
    records = Records.load(tmp_path / 'out')
    searched = {name for name, seed in records.runs if seed == sweep.RATE_SEED}
    methods = ('dense_grpo', 'flow_grpo', 'stepwise')
    assert searched == {f'{name} x{rate:g}' for name in methods for rate in sweep.RATES}
    for name in (*methods, 'stepwise_two'):
        assert records.seeds(name) == ['0', '1', '2']
        # the played training rises more at 1e-4, the recipe's own rate
        assert ' --config.optim.learning_rate=0.0001 ' in records.runs[name, '0']['command']
    assert ' --config.iterations=210 ' in records.runs['flow_grpo', '0']['command']
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert '| `flow_grpo` | 6 | 15 | 1 | 210 | 0 | 0 | 3e-05: ' in text
    # dense rises by 0.4 to 0.9 (0.91, 0.92) and sparse, after the same 200 evaluations, by 0.3
    assert '| `flow_grpo` | 3 | 0.8100 ± 0.0100 | 0.6600 ± 0.0100 | -0.0500 ' in text
    assert '| `dense_grpo` | 3 | 0.9100 ± 0.0100 | 0.7100 ± 0.0100 |  | +0.0500 ' in text
    assert (
        '| **holds** | dense_grpo − flow_grpo, at equal network evaluations of sampling: ' in text
    )
    assert '## At equal work' in text and '## At equal seconds' not in text
    assert 'Seconds are not compared' in text  # two runs at a time
    assert '| method | total@10 | total@3 | total@6 |' in text
    assert '| `dense_grpo` | 2.0000 ± 0.0000 | 1.3000 ± 0.0000 | 1.6000 ± 0.0000 |' in text
    assert (tmp_path / 'out' / 'curves_credit.png').stat().st_size > 5000


def test_a_run_in_the_tables_is_not_repeated_and_others_join(tmp_path, run):
    assert run('dense_grpo') == 0
    shutil.rmtree(tmp_path / 'work')
    assert run('dense_grpo,nft', seeds=()) == 0
    assert not list((tmp_path / 'work').glob('dense_grpo*'))
    assert run('nft', run=False) == 0
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert '| `dense_grpo` | 1 |' in text and '| `nft` | 6 | 50 | 1 | 210 |' in text


def test_a_control_alone_brings_its_method(tmp_path, run):
    assert sweep.with_methods(['sparse_weighted', 'nft']) == ['flow_grpo', 'sparse_weighted', 'nft']
    assert run('sparse_weighted', jobs=1) == 0
    assert (tmp_path / 'out' / 'curves_credit.png').stat().st_size > 5000
    records = Records.load(tmp_path / 'out')
    assert records.seeds('sparse_weighted') == records.seeds('flow_grpo') == ['0']
    # one device, each run for itself
    assert '## At equal seconds' in (tmp_path / 'out' / 'README.md').read_text()


def test_a_method_that_the_configuration_cannot_train_is_named_with_the_reason(tmp_path, run):
    assert run('flow_grpo,mix', extra=['--config.rollout.steps=3'], run=False) == 0
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert '## Left out\n\n- `mix`: ' in text and '- `flow_grpo`' not in text
    assert run('d2_align', run=False) == 0
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert '- `d2_align`: d2.file=direction.npz: there is no such file in ' in text


def test_what_cannot_be_compared_is_refused_before_anything_runs(tmp_path, run):
    with pytest.raises(ValueError, match='--methods=flow_grp is not known'):
        run('flow_grp')
    with pytest.raises(ValueError, match='100 is the seed on which the learning rates are chosen'):
        run('flow_grpo', ('0', '100'))
    with pytest.raises(ValueError, match='--figure=methods,4: methods runs alone'):
        run('flow_grpo', figure=['methods', '4'])
    assert not (tmp_path / 'work').exists()
    assert run('flow_grpo', seeds=()) == 0
    with pytest.raises(ValueError, match='has results of the base configuration'):
        run('flow_grpo', extra=['--config.rollout.level=0.5'])


def test_a_method_whose_rates_failed_is_not_in_the_table(tmp_path, run):
    assert run('flow_grpo', seeds=()) == 0
    of = sweep.rates(Records.load(tmp_path / 'out'), 30_240.0)
    assert sweep.best_rates(of) == {'flow_grpo': 1.0}
    del of['flow_grpo'][3.0]
    assert sweep.best_rates(of) == {}


def test_differences_need_seeds_in_common():
    runs = lambda *seeds: {seed: with_costs(ROWS, 24, 5) for seed in seeds}
    curves = page.Curves({'a': runs('0', '1'), 'b': runs('2')}, {})
    assert page.difference(curves, Comparison('a', 'b'), page.NONE).verdict == NOT_RUN
    assert page.difference(curves, Comparison('a', 'c'), page.NONE).verdict == NOT_RUN


def test_what_was_evaluated_too_late_for_a_cost_has_no_score_there():
    soon = {'0': with_costs(ROWS, 24, 5)}
    late = {'0': [ROWS[0], *with_costs(ROWS, 24, 5)[3:]]}
    curves = page.Curves({'soon': soon, 'late': late}, {'nfe': 20.0})
    text = page._table(curves, 'nfe')
    assert '| `soon` | 1 | 0.6500 |' in text
    assert '`late` |' not in text and text.endswith('Evaluated only after that cost: `late`.')


def test_measures_are_kept_compared_and_shown(tmp_path):
    (tmp_path / 'scores.csv').write_text(
        'policy,index,prompt,total,diversity\nstep 2,0,"a, b",0.5,nan\nstep 2,1,c,0.75,0.25\n'
    )
    assert means(tmp_path / 'scores.csv') == {'diversity': 0.25, 'total': 0.625}
    (tmp_path / 'scores.csv').write_text('policy,index,prompt,total\nbase,0,a,x\n')
    with pytest.raises(ValueError, match="scores.csv, line 2: total='x' is not a number"):
        means(tmp_path / 'scores.csv')
    kept = Measures({('a', '0'): {'total@3': 0.7}, ('b', '0'): {'total@3': 0.4}})
    kept.commands['a', '0'] = 'python -m x --config.seed=0'
    kept.save(tmp_path)
    kept = Measures.load(tmp_path)
    assert kept.commands == {('a', '0'): 'python -m x --config.seed=0', ('b', '0'): ''}
    comparison = Comparison('a', 'b', 'total@3')
    assert page.difference(page.Curves({}, {}), comparison, kept).mean == pytest.approx(0.3)
    absent = Comparison('a', 'b', 'total@10')
    assert page.difference(page.Curves({}, {}), absent, kept).verdict == NOT_RUN
