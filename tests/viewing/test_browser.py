"""The pages in a real browser, headless Chromium (conftest.py)."""

import html
import json
import os
import pathlib
import shutil
import threading

import pytest
import uvicorn
from PIL import Image

from densegrpo_jax.runtime.listening import LOOPBACK
from densegrpo_jax.viewing.report import is_page, one_file, write_report
from densegrpo_jax.viewing.server import make_app
from tests.viewing.made_run import EVIL, PLANS, make_group, make_group_of, make_run

pytest.importorskip('selenium', reason='selenium is not installed')
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from tests.viewing.browser import PHONE, text, until  # noqa: E402

CONTRAST = pathlib.Path(__file__).with_name('contrast.js').read_text()


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp('finished')
    return write_report(folder / 'out', [make_run(folder / 'run', recipe=True)]).as_uri()


def test_a_finished_run_opens_from_disk(page, report):
    driver = page(report)
    named = [p.get_attribute('aria-label') for p in driver.find_elements(By.CLASS_NAME, 'plot')]
    assert 'Held-out score' in named and 'Other held-out scores' not in named  # one reward
    assert '4 of 4 updates' in text(driver, '#runs') and 'finished' in text(driver, '#runs')
    assert '0.4000 → 0.8000' in text(driver, '#runs')
    plots = driver.find_elements(By.CSS_SELECTOR, '.plot .main-svg')
    drawn = driver.find_elements(By.CSS_SELECTOR, '.plot .scatterlayer .trace')
    assert len(plots) > 8 and len(drawn) >= len(driver.find_elements(By.CSS_SELECTOR, '.plot'))
    head, first, *_ = text(driver, '#settings table').splitlines()
    assert (head, first) == ('key this run recipe default', 'eval.every 2 5 30')
    assert 'iterations' in text(driver, '#settings')
    bold = driver.find_elements(By.CSS_SELECTOR, '#settings strong')
    assert [cell.text for cell in bold] == ['2']


def test_a_prompt_is_text_whatever_it_says(page, report):
    driver = page(report)
    assert text(driver, '#viewer .prompt') == EVIL
    assert driver.title.startswith('4/4')


def test_the_slider_moves_through_the_updates_by_keyboard(page, report):
    driver = page(report)
    slider = driver.find_element(By.CSS_SELECTOR, '#viewer input[type=range]')
    image = lambda: driver.find_element(By.CSS_SELECTOR, '.table .picture').value_of_css_property(
        'background-image'
    )
    assert 'step_000004_0' in image()
    slider.send_keys(Keys.ARROW_LEFT)
    until(lambda: 'step_000002_0' in image())
    assert slider.get_attribute('aria-valuetext') == 'update 2'
    sheets = driver.find_element(By.CSS_SELECTOR, '#sheets input[type=range]')
    sheets.send_keys(Keys.HOME)
    source = driver.find_element(By.CSS_SELECTOR, '#sheets img')
    until(lambda: 'samples/step_000000.png' in source.get_attribute('src'))
    driver.execute_script('arguments[0].scrollIntoView()', source)
    until(lambda: source.get_property('naturalWidth') == 100)
    driver.find_element(By.CSS_SELECTOR, '#verdicts input[type=range]').send_keys(Keys.HOME)
    source = driver.find_element(By.CSS_SELECTOR, '#verdicts img')
    until(lambda: 'guard/verdict_000002.png' in source.get_attribute('src'))
    assert source.get_attribute('alt').endswith('at the start and after 2 updates')


def test_a_group_shows_scores_gains_and_advantages(page, report):
    driver = page(report)
    heads = [e.text for e in driver.find_elements(By.CSS_SELECTOR, '.table .head')]
    assert heads == ['', 'state 0', 'state 1', 'image']
    # the best sample is number 3, whose first transition has no advantage
    assert driver.find_element(By.CSS_SELECTOR, '.sample').text.split() == ['0.800', 'sample', '3']
    steps = [e.text for e in driver.find_elements(By.CSS_SELECTOR, '.table .step')][:3]
    assert steps == ['+0.10', '+0.10 · A 0.25', 'silent']
    order = driver.find_element(By.CSS_SELECTOR, '#viewer select[aria-label=order]')
    order.send_keys('worst first')
    until(lambda: driver.find_element(By.CSS_SELECTOR, '.sample').text.split()[-1] == '0')


# Of the first sample: its label's lines and marks, and of each column the place of its picture in
# the sheet, its name and the marks below it.
FIRST_ROW = """
const texts = (e, of) => [...e.querySelectorAll(of)].map((found) => found.textContent);
const heads = texts(document, '.table .head').slice(1);
const cells = [...document.querySelectorAll('.table .cell')].slice(0, heads.length);
const place = (cell) => {
  const style = cell.querySelector('.picture').style;
  return Math.round(-parseFloat(style.backgroundPositionX) / parseFloat(style.width));
};
return [
  texts(document.querySelector('.table .sample'), '.node, .step'),
  ...cells.map((cell, i) => [place(cell), heads[i], ...texts(cell, '.step')]),
];
"""


@pytest.mark.parametrize(
    'name,expected',
    [
        # transition k of the best sample, number 3, has the advantage k + 0.3
        (
            'branch',
            [
                [],
                [0, 'branch 0', 'A 0.30'],
                [2, 'branch 0 by 2'],
                [1, 'branch 1', 'A 1.30'],
                [3, 'branch 1 by 2'],
                [4, 'branch 2 by 2'],
                [5, 'branch 2', 'A 2.30'],
            ],
        ),
        (
            'sdpo',
            [
                [],
                [0, 'prediction 0', *(f'{k} → {k + 1}: A {k}.30' for k in range(4))],
                [1, 'anchor'],
                [2, 'image, prediction 4', 'silent'],
            ],
        ),
        (
            'every 2',
            [
                [],
                [0, 'state 0', '0 → 1: A 0.30', '1 → 2: A 1.30'],
                [1, 'state 2', '2 → 3: A 2.30', '3 → 4: A 3.30'],
                [2, 'image', 'silent'],
            ],
        ),
        # its transition 0 leaves a state without a picture
        (
            'after',
            [
                ['0 → 1: A 0.30'],
                *([k - 1, f'state {k}', f'+0.10 · A {k}.30'] for k in range(1, 4)),
                [3, 'image', 'silent'],
            ],
        ),
    ],
)
def test_an_advantage_stands_below_the_picture_of_its_own_index(page, tmp_path, name, expected):
    run = make_run(tmp_path / 'run', updates=1)
    (path,) = make_group_of(run, 1, PLANS[name]())
    if name == 'every 2':  # as older versions wrote it
        group = json.loads(path.read_text())
        for transition in group['transitions']:
            del transition['together']
        path.write_text(json.dumps(group))
    driver = page(write_report(tmp_path / 'out', [run]).as_uri())
    assert driver.execute_script(FIRST_ROW) == expected


def test_a_tree_says_which_samples_are_one_node(page, tmp_path):
    run = make_run(tmp_path / 'run', updates=1)
    make_group_of(run, 1, PLANS['tree']())
    driver = page(write_report(tmp_path / 'out', [run]).as_uri())
    label, column = driver.execute_script(FIRST_ROW)
    assert label == ['0–3 are one to state 1', '2–3 are one to state 2']
    marks = [f'{k} → {k + 1}: A {k}.30' for k in range(4)]
    assert column == [0, 'image', *marks, '4 → 5: silent']
    titles = [e.get_attribute('title') for e in driver.find_elements(By.CSS_SELECTOR, '.step')]
    assert titles[1] == 'transition 1 → 2 of 2–3, noise 0.5000'
    assert 'A tree:' in text(driver, '#viewer .legend')


def test_the_pictures_of_a_finished_run_are_below_the_curves(page, tmp_path):
    run = make_run(tmp_path / 'run')
    sheet = (run / 'samples' / 'step_000000.png').read_bytes()
    for name in ('before_after.png', 'reward_curve.png'):
        (run / name).write_bytes(sheet)
    driver = page(write_report(tmp_path / 'out', [run]).as_uri())
    images = driver.find_elements(By.CSS_SELECTOR, '#curves .pictures img')
    assert [image.get_attribute('alt') for image in images] == [
        'Held-out images before and after training',
        'Held-out score by update',
    ]
    driver.execute_script('arguments[0].scrollIntoView()', images[0])
    until(lambda: all(image.get_property('naturalWidth') == 100 for image in images))


def test_a_page_of_one_file_shows_all_of_it(page, tmp_path):
    """Without the folder that it was made from, whatever its prompts say."""
    run = make_run(tmp_path / 'run')
    shutil.copyfile(run / 'samples' / 'step_000000.png', run / 'before_after.png')
    whole = one_file(write_report(tmp_path / 'out', [run]))
    shutil.rmtree(tmp_path / 'out')
    (tmp_path / 'page.html').write_text(whole)
    assert is_page(tmp_path / 'page.html')  # the command may make it anew
    driver = page((tmp_path / 'page.html').as_uri())
    assert text(driver, '#viewer .prompt') == EVIL and driver.title.startswith('4/4')
    assert driver.find_elements(By.CSS_SELECTOR, '.plot .main-svg')
    for selector in ('#sheets img', '#pictures img'):
        image = driver.find_element(By.CSS_SELECTOR, selector)
        driver.execute_script('arguments[0].scrollIntoView()', image)
        until(lambda: image.get_property('naturalWidth') == 100)  # noqa: B023
    cell = driver.find_element(By.CSS_SELECTOR, '.table .picture')
    assert cell.value_of_css_property('background-image').startswith('url("data:image/webp')

    frame = f'<iframe srcdoc="{html.escape(whole)}" width="100%" height="900"></iframe>'
    (tmp_path / 'notebook.html').write_text(f'<meta charset="utf-8">{frame}')
    driver.get((tmp_path / 'notebook.html').as_uri())
    driver.switch_to.frame(0)
    assert text(driver, '#viewer .prompt') == EVIL
    driver.find_element(By.LINK_TEXT, 'Evaluations').click()
    until(lambda: driver.execute_script('return scrollY') > 300)
    driver.switch_to.default_content()


def test_a_picture_opens_and_closes_by_keyboard(page, report):
    driver = page(report)
    driver.find_element(By.CSS_SELECTOR, '.table .picture').send_keys(Keys.ENTER)
    dialog = driver.find_element(By.ID, 'large')
    until(dialog.is_displayed)
    assert EVIL in dialog.text and 'transition 0 → 1: noise 0.7000, not trained' in dialog.text
    driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(lambda: not dialog.is_displayed())


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_texts_have_contrast(page, report, scheme):
    driver = page(report, scheme=scheme)
    worst = driver.execute_script(CONTRAST)
    assert len(worst) > 8
    assert not {name: ratio for name, ratio in worst.items() if ratio < 4.5}
    ground = driver.execute_script('return getComputedStyle(document.body).backgroundColor')
    assert (ground == 'rgb(255, 255, 255)') == (scheme == 'light')


def test_a_score_without_its_error_keeps_the_bars_of_the_others(page, tmp_path):
    run = make_run(tmp_path / 'run')
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    del next(row for row in reversed(rows) if 'eval/total' in row)['eval/standard_error']
    (run / 'metrics.jsonl').write_text('\n'.join(['damaged', *map(json.dumps, rows)]))
    driver = page(write_report(tmp_path / 'out', [run]).as_uri())
    until(lambda: driver.find_elements(By.CSS_SELECTOR, '#plot-0 .errorbars path'))
    assert '1 lines of metrics.jsonl cannot be read' in text(driver, '#runs')


def test_a_phone_scrolls_only_up_and_down(page, report):
    driver = page(report, size=PHONE)
    until(lambda: driver.find_elements(By.CSS_SELECTOR, '.plot .main-svg'))
    width = driver.execute_script('return document.documentElement.scrollWidth')
    assert width <= PHONE[0]


def test_no_plot_is_wider_than_its_place(page, report):
    driver = page(report, size=(540, 900))
    until(lambda: driver.find_elements(By.CSS_SELECTOR, '.plot .main-svg'))
    sizes = driver.execute_script(
        "return [...document.querySelectorAll('.plot')].map("
        "(plot) => [plot.querySelector('.main-svg').clientWidth, plot.clientWidth])"
    )
    assert len(sizes) > 5 and all(plot <= place for plot, place in sizes)


def test_a_picture_fits_a_phone(page, report):
    driver = page(report, size=PHONE)
    driver.find_element(By.CSS_SELECTOR, '.table .picture').send_keys(Keys.ENTER)
    dialog = driver.find_element(By.ID, 'large')
    until(dialog.is_displayed)
    across = 'return [arguments[0].scrollWidth, arguments[0].clientWidth]'
    needed, there = driver.execute_script(across, dialog)
    assert needed <= there


@pytest.fixture
def watched(tmp_path):
    """A run that goes on, and the address of its live page."""
    run = make_run(tmp_path / 'run', updates=2, iterations=6)
    settings = uvicorn.Config(
        make_app([run], LOOPBACK), port=0, log_config=None, lifespan='off', ws='none'
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield run, f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/'
    server.should_exit = True
    thread.join()


def test_a_run_that_goes_on_is_followed(page, watched):
    run, address = watched
    driver = page(address)
    assert '2 of 6 updates' in text(driver, '#runs') and 'running' in text(driver, '#runs')
    assert driver.find_elements(By.CSS_SELECTOR, '.plot .main-svg')
    with open(run / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 3, "train/reward": 0.7, "seconds/iteration": 2.0}\n')
        file.flush()
        os.fsync(file.fileno())
    until(lambda: '3 of 6 updates' in text(driver, '#runs'))


def test_a_run_that_vanishes_is_told_on_the_page(page, watched, tmp_path):
    run, address = watched
    driver = page(address)
    until(lambda: '2 of 6 updates' in text(driver, '#runs'))
    run.rename(tmp_path / 'elsewhere')
    until(lambda: 'holds no run' in text(driver, '#message'))
    assert '2 of 6 updates' in text(driver, '#runs')


@pytest.mark.slow
def test_pictures_that_are_made_anew_are_shown_anew(page, watched):
    """As of a run that is extended, and of an evaluation that is made again."""
    run, address = watched
    wide = lambda name, width: Image.new('RGB', (width, 60)).save(run / name)

    def shown(part, width):
        driver.execute_script(f'document.querySelector("{part}").scrollIntoView()')
        images = lambda: driver.find_elements(By.CSS_SELECTOR, f'{part} img')
        until(lambda: [image.get_property('naturalWidth') for image in images()] == [width])

    wide('before_after.png', 100)
    (run / 'summary.json').write_text('{"updates": 2}')
    driver = page(address)
    shown('#pictures', 100)
    for name in ('before_after.png', 'samples/step_000002.png'):
        wide(f'{name}.tmp.png', 120)
        (run / f'{name}.tmp.png').replace(run / name)
    shown('#pictures', 120)
    shown('#sheets', 120)
    with open(run / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 3, "train/reward": 0.7}\n')
    until(lambda: not driver.find_elements(By.CSS_SELECTOR, '#pictures img'))


@pytest.mark.slow
def test_news_leaves_the_keyboard_where_it_is(page, watched):
    """What has not changed is not drawn again, and what has keeps the focus."""
    run, address = watched
    driver = page(address)
    focused = lambda: driver.switch_to.active_element.get_attribute('aria-label')
    until(lambda: driver.find_elements(By.CSS_SELECTOR, '.table .picture'))
    before = driver.find_element(By.CSS_SELECTOR, '#viewer input[type=range]')
    before.send_keys(Keys.HOME)
    with open(run / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 3, "train/reward": 0.7, "seconds/iteration": 2.0}\n')
    until(lambda: '3 of 6 updates' in text(driver, '#runs'))
    assert before.is_displayed() and focused() == 'update of the group'
    make_group(run, 3)
    slider = lambda: driver.find_element(By.CSS_SELECTOR, '#viewer input[type=range]')
    until(lambda: slider().get_property('max') == '1')
    until(lambda: focused() == 'update of the group')
    order = driver.find_element(By.CSS_SELECTOR, '#viewer select[aria-label=order]')
    order.send_keys('worst first')
    until(lambda: driver.find_element(By.CSS_SELECTOR, '.sample').text.split()[-1] == '0')
    assert focused() == 'order'
