"""A run killed with -9 at many random moments ends with the bits of an uninterrupted one (slow: `bash launch/test.sh --all`)."""

import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / 'tests'), str(ROOT / 'tests' / 'training')]

import miniature  # noqa: E402
from test_run import command, final_state, rows  # noqa: E402

# A kill comes up to LONGEST seconds after the start: during imports, compilation, the first iterations, saving.
KILLS, ITERATIONS, LONGEST = 20, 160, 45.0


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    folder = miniature.random_flux(tmp_path / 'flux')
    straight, broken = tmp_path / 'straight', tmp_path / 'broken'
    option = f'--config.iterations={ITERATIONS}'
    process = command(folder, straight, option)
    assert process.wait() == 0, process.stderr.read()
    moments, reached = random.Random(0), []
    for _ in range(KILLS):
        process = command(folder, broken, option)
        try:
            assert process.wait(timeout=moments.uniform(0, LONGEST)) == 0, process.stderr.read()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        saved = [int(p.name) for p in (broken / 'checkpoints').glob('*') if p.name.isdigit()]
        reached.append(max(saved, default=0))
    print(f'newest checkpoint after each kill: {reached}')
    assert reached == sorted(reached), 'a checkpoint was lost'
    assert len(set(reached) - {0, ITERATIONS}) >= 5, 'too few kills met a run under way'
    process = command(folder, broken, option)
    assert process.wait() == 0, process.stderr.read()
    (step, expected, progress), (found_step, found, found_progress) = final_state(straight), final_state(broken)
    assert step == found_step == ITERATIONS and set(expected) == set(found)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert progress['evaluations'] == found_progress['evaluations']
    assert [row['step'] for row in rows(broken)] == list(range(ITERATIONS + 1))
