"""(f) The table of methods at equal cost, eight runs side by side: eight methods with five seeds,
after the runs that choose their learning rates. Stopped, it continues.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.accelerator.record import Record, arguments

METHODS = 'dense_grpo,flow_grpo,g2rpo,nft,mix,dance,guard,flow_cps'
ROW = 'table of methods'


def main() -> None:
    given = arguments(__doc__)
    record, folder = Record(given.record), given.record.with_suffix('')
    if given.size == 'small':
        record.add(ROW, missing='only at full size: forty trainings of 60 updates')
    elif ROW not in record:
        command = [sys.executable, '-m', 'experiments.reproduce', '--figure=methods']
        command += [f'--methods={METHODS}', '--seeds=0,1,2,3,4', '--jobs=8']
        command += [f'--workdir={folder}', '--', '--config.model.scan=True']
        if status := subprocess.run(command).returncode:
            raise SystemExit(f'experiments.reproduce ended with status {status}')
        record.add(ROW, page=str(folder / 'report' / 'README.md'))
    record.finish()


if __name__ == '__main__':
    main()
