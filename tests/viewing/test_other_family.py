"""The page of a run of another family: Z-Image with classifier-free guidance and its options, whose
first update has the ratio 1 too.

The page of a FLUX run is checked by tests/training/test_run.py and test_browser.py.
"""

import pytest

from configs import zimage_pickscore
from densegrpo_jax.rewards.local.jpeg import JpegReward
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests import miniature
from tests.training.small_run import RECIPE, one_device, rows
from tests.viewing.browser import text, until
from tests.viewing.pages import check_pictures, runs_of

pytestmark = pytest.mark.slow

SETTINGS = RECIPE | {
    'iterations': 2,
    'model.t5_length': 24,
    'model.cfg_normalization': 0.9,
    'model.cfg_truncation': 0.3,  # the last of three steps is not guided
    'lora.rank': 2,
    'rollout.steps': 3,
    'rollout.group': 3,
    'rollout.prompts_per_batch': 1,
    'optim.microbatch': 6,
    'eval.groups': 2,
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('zimage')
    config = zimage_pickscore.get_config()
    config.model.path = str(miniature.random_zimage(folder / 'model'))
    config.reward = {'jpeg': {'weight': 1.0}}
    config.update_from_flattened_dict(SETTINGS)
    run(config, folder / 'run', one_device(), StopRequest())
    return folder / 'run'


def test_its_page_holds_the_trajectories(finished):
    page = finished / 'report'
    assert (page / 'index.html').stat().st_size > 0
    (data,) = runs_of(page)
    groups = data['groups']
    assert [(g['step'], g['group']) for g in groups] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for group in groups:
        assert (*group['cell'], len(group['samples'])) == (64, 32, 3)
        assert {p['k'] for column in group['columns'] for p in column['points']} == {0, 1, 2, 3}
        check_pictures(page / data['files'], group, JpegReward())
        assert all(len(sample['advantages']) == 2 for sample in group['samples'])
        assert [t['row'] for t in group['transitions']] == [0, 1, None]  # the last one is silent
    assert len(data['sheets']) >= 2


def test_a_browser_shows_it(finished, page):
    driver = page((finished / 'report' / 'index.html').as_uri())
    assert '2 of 2 updates' in text(driver, '#runs') and 'finished' in text(driver, '#runs')
    plots = driver.find_elements('css selector', '.plot')
    drawn = driver.find_elements('css selector', '.plot .scatterlayer .trace')
    assert len(drawn) >= len(plots) > 5
    (group,) = [
        g for g in runs_of(finished / 'report')[0]['groups'] if (g['step'], g['group']) == (2, 0)
    ]
    cells = driver.find_elements('css selector', '.table .picture')
    assert len(cells) == 3 * len(group['columns'])  # samples, images of each
    sheet = driver.find_element('css selector', '#sheets img')
    driver.execute_script('arguments[0].scrollIntoView()', sheet)
    until(lambda: sheet.get_property('naturalWidth') > 0)


def test_the_ratio_of_its_first_update_is_one(finished):
    first = [row for row in rows(finished) if 'train/reward' in row][0]
    assert first['train/ratio_deviation_first'] <= 1e-6 and first['train/grad_norm'] > 0
