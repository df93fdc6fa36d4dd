"""The comparison of searches: its cases, what it keeps, and the page."""

import json

import numpy as np
import pytest

from densegrpo_jax.config.validation import validate
from densegrpo_jax.data.prompts import Prompt
from densegrpo_jax.search.methods import METHODS as KNOWN
from densegrpo_jax.search.record import FILE
from experiments import search
from experiments.searching import page
from experiments.searching.cases import (
    BASE,
    BUDGETS,
    CLAIMS,
    METHODS,
    ON_POLICY,
    TASKS,
    Case,
    Comparison,
    cases,
    chosen,
)
from experiments.searching.records import Records


def test_cases_are_what_the_claims_need_each_once():
    made = list(cases(TASKS, BUDGETS, trained=True))
    assert len(set(made)) == len(made)
    for claim in CLAIMS:
        for part in claim.parts:
            for method in (part.more, part.less):
                assert Case(part.task, BASE, method, part.budget) in made
    assert {m['method'] for m in METHODS.values()} == set(KNOWN)
    assert set(ON_POLICY) <= set(METHODS)
    assert [case.budget for case in made[:2]] == [max(BUDGETS)] * 2


@pytest.mark.parametrize('task', TASKS)
def test_every_case_is_a_configuration_that_stands(task):
    config = search.configuration(TASKS[task], 4)
    for changes in METHODS.values():
        changed = config.copy_and_resolve_references()
        changed.search.update(nfe=60, **changes)
        validate(changed)
    assert list(config.eval.panel) == list(TASKS[task].panel)


def test_prompts_are_spread_over_those_with_the_tag():
    prompts = [Prompt(str(i), {'tag': 'position' if i % 2 else 'colors'}) for i in range(40)]
    assert [p.text for p in chosen(TASKS['shapes'], prompts, 5)] == ['1', '9', '17', '25', '33']
    assert len(chosen(TASKS['ocr'], prompts, 100)) == 40


def found(folder, case, best, seed=0):
    """Writes what a search of len(best) prompts leaves in its folder."""
    rng = np.random.default_rng(seed)
    at = case.folder(folder)
    at.mkdir(parents=True)
    metric, unseen = TASKS[case.task].metric, next(iter(TASKS[case.task].panel))
    lines = [{'settings': {}}, {'spread': 0.1}]
    for i, score in enumerate(best):
        lines.append(
            {
                'prompt': i,
                'base': {'total': 0.25, metric: 0.25, unseen: 1.0},
                'best': {metric: float(score), 'total': float(score), unseen: 2.0},
                'final': {'total': float(rng.normal())},
                'diversity': 0.5 if i else None,
                'nfe': case.budget,
                'images': 7,
                'seconds': 1.5,
            }
        )
    (at / FILE).write_text('\n'.join(map(json.dumps, lines)) + '\n')
    return at


def test_the_page_says_what_holds_and_what_has_not_run(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 0.5, 40)
    records = Records()
    for method, gain in (('best_of_n', 0.0), ('smc', 0.1), ('pg', 0.2), ('pg_8', 0.2)):
        case = Case('ocr_smooth', BASE, method, 240)
        noise = rng.normal(0, 0.05, 40) if method != 'best_of_n' else 0
        records.add(case, found(tmp_path, case, base + gain + noise))
    out = tmp_path / 'report'
    records.save(out)
    again = Records.load(out)
    for case in records.rows:
        assert again.mean(case, 'best') == pytest.approx(records.mean(case, 'best'), rel=1e-4)
        assert again.mean(case, 'diversity')[0] == pytest.approx(0.5)
    difference = page.compare(again, Comparison('ocr_smooth', 'smc', 'best_of_n', 240))
    assert difference.seeds == 40 and 0.07 < difference.mean < 0.13
    made = page.write(out, again, 'Made by a test.')
    assert [path.name for path in made] == ['README.md', 'ocr_smooth.png']
    text = made[0].read_text()
    lines = {line.split(' | ')[1]: line for line in text.splitlines() if line.startswith('| ')}
    held = 'at the larger budgets particle Gibbs beats SMC, and SMC beats best-of-N'
    assert '**holds**' in lines[held]
    assert (
        '**undecided**' in lines['more passes pay better than more particles (K = 4 against K = 8)']
    )
    assert '**not run**' in lines['the max potential beats the difference potential']
    assert '## Search against training' not in text


def test_search_against_training(tmp_path):
    records = Records()
    for budget, score in ((6, 0.2), (12, 0.4), (24, 0.8), (240, 0.9)):
        case = Case('ocr', BASE, 'best_of_n', budget)
        records.add(case, found(tmp_path, case, [score] * 4))
    case = Case('ocr', 'trained', 'best_of_n', 240)
    records.add(case, found(tmp_path, case, [0.95] * 4))
    text = page.write(tmp_path / 'report', records, '')[0].read_text()
    # the plain image of the trained policy has 0.25 in `found`
    assert 'has 0.200 at 6, 0.400 at 12' in text and 'about 7 NFE reach it' in text


def test_where_a_curve_reaches_a_level():
    curve = [(6, 0.2), (12, float('nan')), (24, 0.6)]
    assert page.crossing_point(curve, 0.4) == pytest.approx(12)
    assert page.crossing_point(curve, 0.1) == 6
    assert page.crossing_point(curve, 0.7) is None
