"""A reward server that is well, for a file of tests."""

import pytest

from tests.rewards.loopback import service, serving


@pytest.fixture(scope='module')
def healthy():
    with serving(service().app) as url:
        yield url
