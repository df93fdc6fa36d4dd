"""What a run's page holds."""

import json

import numpy as np
from PIL import Image


def runs_of(page):
    """The runs on a page, the folder of a report."""
    text = (page / 'data.js').read_text()
    return json.loads(text.removeprefix('window.RUNS = ').removesuffix(';\n'))


def check_pictures(files, group, reward):
    """Asserts that each picture of a group's table is the one that the score below it is of.

    reward: of one name.
    """
    table = np.asarray(Image.open(files / group['file']).convert('RGB'))
    (width, height), columns = group['cell'], len(group['columns'])
    samples = group['samples']
    cells = table.reshape(len(samples), height, columns, width, 3).swapaxes(1, 2)
    for images, sample in zip(cells, samples):
        scored = reward(images, [group['prompt']] * columns, [{}] * columns)
        found = np.asarray(scored.values[reward.name])
        np.testing.assert_allclose(sample['scores'][reward.name], found, atol=1e-6)
