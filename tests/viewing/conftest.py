"""A real browser, headless Chromium. Tests with it skip without it (Debian: chromium and
chromium-driver) and its Python driver.
"""

import shutil

import pytest

from tests.viewing.browser import WIDE, until

FLAGS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
)  # fmt: skip


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (chromium and driver):
        pytest.skip('Chromium is not installed')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f'--user-data-dir={tmp_path_factory.mktemp("profile")}'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    opened = webdriver.Chrome(options, Service(driver))
    yield opened
    opened.quit()


@pytest.fixture
def page(browser):
    """Opens an address and returns the browser once the page shows something."""

    def page(address, size=WIDE, scheme='light'):
        browser.set_window_size(*size)
        media = [{'name': 'prefers-color-scheme', 'value': scheme}]
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': media})
        metrics = {'width': size[0], 'height': size[1], 'deviceScaleFactor': 1, 'mobile': False}
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
        browser.get_log('browser')
        browser.get(address)
        until(lambda: browser.find_elements('css selector', '#runs .run'))
        until(lambda: browser.find_elements('css selector', '.table .picture'))
        return browser

    yield page
    errors = [entry for entry in browser.get_log('browser') if entry['level'] == 'SEVERE']
    assert not errors
