"""A run killed with -9 at many random moments ends with the bits of an uninterrupted one (slow:
`bash launch/test.sh --all`).
"""

import random
import time

import numpy as np
import pytest

from tests.compiler import QUICK
from tests.training.small_run import command, final_state, finished, rows

# Every kill meets a process that has saved up to FURTHEST iterations, and saves again and again;
# and some meet one that starts.
KILLS, FURTHEST, EARLY_KILLS = 20, 7, 5
ITERATIONS = (KILLS + EARLY_KILLS) * (FURTHEST + 3)


def newest(workdir):
    return max(
        (int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit()),
        default=0,
    )


@pytest.mark.slow
def test_twenty_kills_change_nothing(folder, tmp_path):
    straight, broken = tmp_path / 'straight', tmp_path / 'broken'
    start = lambda workdir: command(
        folder, workdir, f'--config.iterations={ITERATIONS}', flags=QUICK
    )
    finished(start(straight))
    moments, reached = random.Random(0), [0]
    for kill in range(KILLS + EARLY_KILLS):
        process, began = start(broken), time.monotonic()
        # However fast the machine is, a process is killed before it has gone this far.
        furthest = reached[-1] + FURTHEST + 1
        if kill % 5:
            goal = reached[-1] + moments.randint(1, FURTHEST)
            while newest(broken) < goal:
                assert process.poll() is None and time.monotonic() < began + 600, (
                    process.stderr.read()
                )
                time.sleep(0.01)
            moment = time.monotonic() + moments.uniform(0, 0.5)
        else:
            moment = began + moments.uniform(0, 12)  # imports, restoring, compilation
        while time.monotonic() < moment and newest(broken) < furthest:
            time.sleep(0.01)
        assert process.poll() is None, 'it was not under way'
        process.kill()
        process.wait()
        reached.append(newest(broken))
    print(f'newest checkpoint after each kill: {reached[1:]}')
    assert reached == sorted(reached), 'a checkpoint was lost'
    assert len(set(reached)) > KILLS and reached[-1] < ITERATIONS
    finished(start(broken))
    (step, expected, progress), (found_step, found, found_progress) = (
        final_state(straight),
        final_state(broken),
    )
    assert step == found_step == ITERATIONS and set(expected) == set(found)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert progress['evaluations'] == found_progress['evaluations']
    assert [row['step'] for row in rows(broken)] == list(range(ITERATIONS + 1))
