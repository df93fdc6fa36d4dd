"""A run with a profile and its utilisation."""

import gzip
import json

import pytest

from densegrpo_jax.runtime.profiling import Profile
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.training.run import run
from tests.programs import shared_programs  # noqa: F401
from tests.training.small_run import make_config, one_device, rows

pytestmark = pytest.mark.usefixtures('shared_programs')


@pytest.mark.slow
def test_a_run_writes_a_trace_that_a_browser_opens_and_its_utilisation(folder, tmp_path):
    config = make_config(folder, **{'iterations': 2, 'eval.groups': 0, 'eval.report': False})
    options = {'profile': Profile(2, 2), 'at_peak': lambda session: 0.25}
    run(config, tmp_path, one_device(), StopRequest(), **options)
    [file] = (tmp_path / 'profile').rglob('perfetto_trace.json.gz')
    events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
    assert len(events) > 100 and any('Execute' in event.get('name', '') for event in events)
    trained = [row for row in rows(tmp_path) if 'train/mfu' in row]
    assert [row['step'] for row in trained] == [1, 2]
    assert all(row['train/mfu'] == 0.25 / row['seconds/iteration'] for row in trained)
