"""The example runs as its docstring says, and learns."""

import pathlib
import re
import runpy

EXAMPLE = pathlib.Path(__file__).parents[2] / 'examples' / 'minimal_iteration.py'


def test_one_iteration_in_sixty_lines_raises_the_reward(capsys):
    code = EXAMPLE.read_text().split('"""', 2)[2].splitlines()
    assert len([line for line in code if line.strip()]) <= 60
    runpy.run_path(str(EXAMPLE), run_name='__main__')
    shown = re.findall(r'reward (-\S+), \|ratio - 1\| <= (\S+)', capsys.readouterr().out)
    rewards, deviations = [[float(value) for value in column] for column in zip(*shown)]
    assert len(rewards) == 5 and rewards == sorted(rewards) and rewards[-1] > rewards[0] + 0.3
    # one update per rollout: the ratio is 1 when the gradient is taken
    assert max(deviations) <= 1e-6
