"""What tests ask of a page in a browser; see conftest.py."""

import contextlib
import time

try:
    from selenium.common.exceptions import StaleElementReferenceException as Replaced
except ImportError:  # then nothing here is called
    Replaced = ()

WIDE, PHONE = (1280, 900), (390, 844)  # sizes of a window


def until(condition, seconds=30):
    """Waits for a condition; its value. An element that the page has just replaced is none."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Replaced):
            if found := condition():
                return found
        time.sleep(0.05)
    raise AssertionError('it did not happen')


def text(driver, selector):
    return driver.find_element('css selector', selector).text
