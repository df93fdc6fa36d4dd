"""(f) The demo on this device: its score, its seconds to the first update and for each."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from benchmarks.accelerator.record import Record, arguments

ROW = 'demo'
SMALL = {
    'iterations': 2,
    'rollout.prompts': 4,
    'rollout.group': 4,
    'rollout.prompts_per_batch': 4,
    'rollout.steps': 3,
    'optim.microbatch': 16,
    'eval.every': 2,
    'eval.batch': 8,
    'eval.shown': 4,
    'data.eval_prompts': 8,
}


def main() -> None:
    given = arguments(__doc__)
    record = Record(given.record, given.step)
    folder = given.work / given.step / record.key
    if ROW not in record:
        settings = {'model.scan': True, **(SMALL if given.size == 'small' else {})}
        command = [sys.executable, '-m', 'densegrpo_jax.main', '--config=tiny_ocr']
        command += [f'--workdir={folder}']
        command += [f'--config.{key}={value}' for key, value in settings.items()]
        fresh, began = not folder.exists(), time.monotonic()
        if status := subprocess.run(command).returncode:
            raise SystemExit(f'the demo ended with status {status}; run the step again')
        wall = {'wall_s': time.monotonic() - began} if fresh else {}  # else a run that continued
        summary = json.loads((folder / 'summary.json').read_text(encoding='utf-8'))
        record.add(ROW, **wall, **scores(summary))
    record.finish()


def scores(summary: dict) -> dict:
    """Before and after, and the seconds of an update, of a run's summary."""
    return {
        'updates': summary['updates'],
        'before': summary['before']['mean'],
        'after': summary['after']['mean'],
        'error': summary['after']['standard_error'],
        'seconds': summary['seconds'] / max(summary['updates'], 1),
    }


if __name__ == '__main__':
    main()
