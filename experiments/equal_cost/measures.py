"""What finished runs are beyond their curves: scores with fewer and more steps than trained, the
rewards of `eval.panel`, diversity, KL.
"""

from __future__ import annotations

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence

from absl import logging

from densegrpo_jax.runtime.files import replace_file
from densegrpo_jax.runtime.reading import read_table
from densegrpo_jax.runtime.stop import StopRequest
from experiments.reproduction.sweep import Run, complete, learned

FILE = 'measures.csv'
FIELDS = ('variant', 'seed', 'command', 'name', 'value')
TRAINED = 6  # steps of the miniatures' recipes
STEPS = (3, TRAINED, 10)  # of the evaluation
GROUP = 2  # images per prompt, for the diversity
KL_PROMPTS = 32

Key = tuple[str, str]  # variant, seed


class Measures:
    """Values by (variant, seed) and name, 'SCORE@STEPS'; and the commands of the runs that have
    them: a run may be made anew, elsewhere, with another learning rate.
    """

    def __init__(self, of: Mapping[Key, Mapping[str, float]], commands: Mapping[Key, str] = {}):
        self.of = {key: dict(values) for key, values in of.items()}
        self.commands = dict(commands)

    @classmethod
    def load(cls, folder: pathlib.Path) -> Measures:
        """Those that `save` wrote; none without the file."""
        of: dict[Key, dict[str, float]] = {}
        commands: dict[Key, str] = {}
        if (folder / FILE).exists():
            early = lambda row: {'command': '', **row}  # tables of earlier versions
            for row in read_table(folder / FILE, FIELDS[:-1], FIELDS[-1:], early):
                key = row['variant'], row['seed']
                of.setdefault(key, {})[row['name']] = row['value']
                commands[key] = row['command']
        return cls(of, commands)

    def save(self, folder: pathlib.Path) -> None:
        """Writes measures.csv, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        table = csv.writer(text, lineterminator='\n')
        table.writerow(FIELDS)
        for key, values in sorted(self.of.items()):
            head = *key, self.commands.get(key, '')
            table.writerows((*head, name, f'{v:.6f}') for name, v in values.items())
        replace_file(folder / FILE, text.getvalue())

    def seeds(self, variant: str, name: str) -> dict[str, float]:
        """seed -> value."""
        return {s: of[name] for (v, s), of in self.of.items() if v == variant and name in of}


def measure(runs: Sequence[Run], config: str, measures: Measures, stop: StopRequest) -> None:
    """Adds the values of finished runs that have none; a run's folder must still be there.

    All are measured with `config` and not with their method's, so that the KL is along the same
    noisy trajectories for all.

    Raises:
      Preempted: a stop was requested; runs measured so far are added.
      CommandFailed: an evaluation failed.
    """
    learns = lambda run: ' '.join([*learned(run.command), run.own_code]).rstrip()
    known = lambda run: measures.commands.get((run.variant, run.seed)) == learns(run)
    left = [run for run in runs if run.finished and not known(run)]
    for number, run in enumerate(left, 1):
        logging.info(
            'measuring run %d of %d: %s, seed %s', number, len(left), run.variant, run.seed
        )
        values: dict[str, float] = {}
        for steps in STEPS:
            out, log = run.folder / f'steps_{steps}', run.folder / 'evaluate.txt'
            command = [
                *('python', '-m', 'densegrpo_jax.evaluate', f'--config={config}', *run.extra),
                f'--config.eval.steps={steps}',
                f'--config.text_cache={run.text_cache}',
                '--unread=warn',  # `extra` is of the trainings
                *(f'--workdir={run.folder}', '--checkpoint=latest', '--nobase', f'--out={out}'),
                *(f'--group={GROUP}', f'--kl_prompts={KL_PROMPTS if steps == TRAINED else 0}'),
            ]
            complete(command, log, stop)
            values |= {f'{name}@{steps}': v for name, v in means(out / 'scores.csv').items()}
        measures.of[run.variant, run.seed] = values
        measures.commands[run.variant, run.seed] = learns(run)


def means(path: pathlib.Path) -> dict[str, float]:
    """Column -> mean over the prompts that have a value, of a scores.csv of `evaluate`."""
    of_prompt = ('policy', 'index', 'prompt')
    rows = read_table(path, of_prompt, None)
    found = {}
    for name in {*rows[0]}.difference(of_prompt) if rows else ():
        known = [row[name] for row in rows if not math.isnan(row[name])]
        if known:
            found[name] = sum(known) / len(known)
    return dict(sorted(found.items()))
