"""Preflight against runs: planted rewards, and learning curves that follow or ignore them."""

import json
import types

import numpy as np
import pytest
from scipy import stats

from experiments import foretell
from experiments.foretelling.settings import mean_tau, write_heights
from tests.preflight.planted import planted


@pytest.fixture(scope='module')
def found():
    """Signals where completions of few steps err more."""
    rewards = planted((0.3, 0.4, 0.3, 1.0), prompts=60)
    rng = np.random.default_rng(1)
    for n, error in ((1, 3.0), (2, 1.0), (3, 0.3)):
        noise = np.sqrt(error) * rng.standard_normal(rewards.twins.shape)
        rewards.completions[n] = rewards.completions[0] + noise
    rewards = rewards._replace(similarity=np.linspace(0, 1, 5)[:, None, None] * np.ones((5, 60, 8)))
    return foretell.foretold(rewards, {'noise_0.8': rewards}, np.ones(4, bool))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(foretell, 'RESAMPLES', 200)


def test_every_variant_has_its_signal(found):
    assert set(found) == {*foretell.CREDITS, 'noise_0.8'}
    by_errors = [found[f'n_{n}'].value for n in (1, 2, 3)]
    assert by_errors == sorted(by_errors) and found['dense'].value > found['sparse'].value
    # Equal to rounding: the order of a sum may differ from one array to the next.
    for of in ('value', 'low', 'high'):
        assert getattr(found['noise_0.8'], of) == pytest.approx(getattr(found['dense'], of))


@pytest.mark.parametrize(('slope', 'sign'), [(0.1, 1), (-0.1, -1)])
def test_curves_that_follow_the_signal_are_foretold(found, tmp_path, slope, sign):
    rng = np.random.default_rng(0)
    runs = {
        n: list(0.6 + slope * s.value + 1e-4 * rng.standard_normal(5)) for n, s in found.items()
    }
    made = foretell.write(tmp_path, found, runs, 'how')
    assert all(path.exists() for path in made)
    values = [np.mean(runs[name]) for name in found]
    rho = foretell.rank_correlation([s.value for s in found.values()], values)
    assert rho.value * sign > 0.9
    of = foretell.ordered({n: s for n, s in found.items() if n in foretell.CREDITS}, runs)
    assert of.pairs == 13 * 12 / 2 and of.sure > 30
    for decided, right in ((of.decided, of.right), (of.sure, of.sure_right)):
        assert right > 0.9 * decided if sign > 0 else right < 0.1 * decided
    text = (tmp_path / 'README.md').read_text()
    assert f'orders {of.right} of these alike' in text and '`coca_share_signed`' in text
    assert f'for so many tests leaves {of.sure} of them' in text
    assert '`noise_0.8`, because a signal is a share' in text and '`noise_0.8` (other' in text
    # made again from what was written, with a variant that no preflight measures
    again = {n: foretell.Interval(*s) for n, s in json.loads(made[1].read_text()).items()}
    foretell.write(tmp_path, again, runs | {'psi': [0.5]}, 'how')
    text = (tmp_path / 'README.md').read_text()
    assert f'orders {of.right} of these alike' in text
    assert 'without a measured signal: `psi`.' in text


def test_a_credit_without_effect_is_not_ranked(found, tmp_path):
    signal = {name: found[name] for name in ('dense', 'sparse', 'n_1')}
    runs = {name: [0.5 + i / 10] for i, name in enumerate([*signal, 'n_2'])}  # one run of each
    foretell.write(tmp_path, signal | {'n_2': foretell.Interval(*[np.nan] * 3)}, runs, 'how')
    text = (tmp_path / 'README.md').read_text()
    assert 'Over 3 credits' in text and 'without any measured effect: `n_2`' in text
    assert 'nan' not in text
    with pytest.raises(ValueError, match='2 credits have both .* needs 3'):
        foretell.write(tmp_path, signal, dict(list(runs.items())[:2]), 'how')


def test_chance_alone_is_not_sure():
    """Twelve variants whose runs differ by chance: some pairs differ at 5 %, none for sure."""
    rng = np.random.default_rng(5)
    signal = {str(i): foretell.Interval(float(i), 0, 0) for i in range(12)}
    of = foretell.ordered(signal, {name: rng.standard_normal(5) for name in signal})
    assert of.pairs == 66 and 0 < of.decided < 20 and of.sure == of.sure_right == 0


def test_logs_of_an_older_preflight_are_refused_by_their_line(tmp_path):
    (tmp_path / foretell.FILE).write_text('{"settings": {}}\n{"prompt": 0, "terminal": [1]}\n')
    with pytest.raises(ValueError, match=r'jsonl:2 is damaged .* measure in another --workdir'):
        foretell._measured(tmp_path)


def test_curves_that_ignore_it_are_not(found):
    rng = np.random.default_rng(0)
    rho = foretell.rank_correlation([s.value for s in found.values()], rng.random(len(found)))
    assert rho.low < 0 < rho.high


def setting(folder, base, names, up, least=0.0):
    """A folder as --out, of credits whose runs follow the signal, or fall with it."""
    rng = np.random.default_rng(0)
    signal = {n: [least + i / 10, 0, 1] for i, n in enumerate(names)}
    heights = {n: list(up * s[0] + 1e-3 * rng.standard_normal(4)) for n, s in signal.items()}
    folder.mkdir()
    (folder / 'signal.json').write_text(json.dumps(signal | {'n_1': [None] * 3}))
    write_heights(folder, base, heights | {'n_1': [0.5], 'psi': [0.5]})
    return str(folder)


def test_settings_are_pooled_by_pairs_within_them(tmp_path):
    a = setting(tmp_path / 'a', 'a-1', ('dense', 'sparse', 'n_2', 'noise_0.5'), 1)
    b = setting(tmp_path / 'b', 'b-2', ('dense', 'sparse', 'gae_1', 'n_3'), -1, 0.3)
    flag = types.SimpleNamespace(workdir='', out=str(tmp_path / 'out'), pool=[a, b])
    assert foretell.main(flag) == 0
    text = (tmp_path / 'out' / 'README.md').read_text()
    # 3 pairs and 6, none between the settings and none with another noise
    assert '2 settings have 9 pairs of credits' in text
    assert 'runs of 9 differ at 5 %' in text and 'orders 3 of these alike' in text
    assert 'leaves 9 of them, 3 ordered alike' in text
    assert 'is **0 (interval unknown)** over 2 measurements' in text
    assert '| a-1 | 3 | 3 | 3 | 3 | 3 | 3 | 1 |' in text
    assert '| b-2 | 4 | 6 | 6 | 0 | 6 | 0 | -1 |' in text
    flag.pool.append(setting(tmp_path / 'c', 'b-2', ('dense', 'sparse', 'n_2'), 1))
    with pytest.raises(ValueError, match='c is of b-2, as another of the folders'):
        foretell.main(flag)
    flag.pool[2] = str(tmp_path / 'none')
    with pytest.raises(FileNotFoundError, match='no .*none/heights.json; .*--norun --runs'):
        foretell.main(flag)


def test_settings_that_share_a_measurement_count_as_one(tmp_path):
    kinds = [('a', 1, 0.1), ('b', -1, 0.1), ('c', 1, 0.3), ('d', 1, 0.5), ('e', -1, 0.10001)]
    pool = [setting(tmp_path / n, n, ('dense', 'sparse', 'n_2'), up, x) for n, up, x in kinds]
    flag = types.SimpleNamespace(workdir='', out=str(tmp_path / 'out'), pool=pool)
    assert foretell.main(flag) == 0
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert '5 settings have 15 pairs' in text and 'over 3 measurements' in text
    low, high = stats.ttest_1samp([-1 / 3, 1, 1], 0).confidence_interval(0.95)
    assert f'is **{foretell.Interval(5 / 9, max(low, -1), min(high, 1))}**' in text


def test_the_interval_over_settings_is_students():
    taus = [0.1, 0.5, -0.2, 0.4]
    found = mean_tau(taus)
    assert found.value == pytest.approx(0.2)
    assert found[1:] == pytest.approx(stats.ttest_1samp(taus, 0).confidence_interval(0.95))
    assert mean_tau([0.9, 0.8, 1.0]).high == 1.0 and np.isnan(mean_tau(taus[:2]).low)


def test_without_runs_there_is_nothing_to_compare(tmp_path):
    class Flags:
        workdir, out, runs = str(tmp_path), str(tmp_path / 'out'), str(tmp_path / 'none')
        norun, pool = False, []

    with pytest.raises(ValueError, match='none has no runs.csv'):
        foretell.main(Flags)
    Flags.runs, Flags.config = 'docs/results/reproduction/geneval', 'configs/claims_ocr.py'
    with pytest.raises(
        ValueError, match='runs of claims_geneval-.*is claims_ocr-.*of its own conf'
    ):
        foretell.main(Flags)
