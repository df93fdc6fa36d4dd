"""(f) The table of methods at equal cost, eight runs side by side: 24 runs that choose the learning
rates of eight methods, then 40, five seeds each. Stopped, it continues.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from benchmarks.accelerator.record import Record, arguments
from densegrpo_jax.runtime.cores import cpu_cores

METHODS = 'dense_grpo,flow_grpo,g2rpo,nft,mix,dance,guard,flow_cps'
JOBS = 8
ROW = 'table of methods'
PAGE = 'methods.md'


def command(folder, cores: int) -> list[str]:
    """The experiment. Each of the runs scores with its share of the cores."""
    words = [sys.executable, '-m', 'experiments.reproduce', '--figure=methods']
    words += [f'--methods={METHODS}', '--seeds=0,1,2,3,4', f'--jobs={JOBS}', f'--workdir={folder}']
    workers = max(1, cores // JOBS)
    return [*words, '--', '--config.model.scan=True', f'--config.reward_workers={workers}']


def main() -> None:
    given = arguments(__doc__)
    record = Record(given.record, given.step)
    folder = given.work / given.step / record.key
    if given.size == 'small':
        record.add(ROW, missing='only at full size: 64 trainings of 60 updates')
    elif ROW not in record:
        if status := subprocess.run(command(folder, cpu_cores())).returncode:
            raise SystemExit(f'experiments.reproduce ended with status {status}')
        page = given.record.with_name(PAGE)
        shutil.copyfile(folder / 'report' / 'README.md', page)
        record.add(ROW, page=page.name)
    record.finish()


if __name__ == '__main__':
    main()
