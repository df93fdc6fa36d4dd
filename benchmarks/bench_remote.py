"""Measures the overhead of a remote reward: python -m benchmarks.bench_remote [--images 512]
[--side 512] [--workers 4]

Scores distinct images of noise with the JPEG reward, here and by `densegrpo_jax.reward_server` on
the loopback interface of this machine, and prints images per second and this process's own
processor time per image. Client and server share the machine's cores.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

from densegrpo_jax.rewards import JpegReward, Scorer
from densegrpo_jax.rewards.remote.client import RemoteReward

CONFIG = (
    'from ml_collections import ConfigDict\n'
    "get_config = lambda: ConfigDict({'reward': {'jpeg': {}}})\n"
)


def throughput(label: str, reward, images: np.ndarray, workers: int) -> np.ndarray:
    """Prints the speed and returns the scores."""
    prompts = [''] * len(images)
    with Scorer(reward, workers) as scorer:
        scorer.submit(images[:workers], prompts[:workers]).result()  # the first contact
        wall, cpu = time.perf_counter(), time.process_time()
        scores = scorer.submit(images, prompts).result()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rate = len(images) / wall
    print(
        f'{label}: {rate:7.1f} images/s ({rate * images[0].nbytes / 1e6:.0f} MB/s), '
        f'{1000 * cpu / len(images):6.2f} CPU-ms/image',
        flush=True,
    )
    return scores.values['jpeg']


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--images', type=int, default=512)
    parser.add_argument('--side', type=int, default=512)
    parser.add_argument('--workers', type=int, default=4, help='concurrent requests')
    args = parser.parse_args()
    images = np.random.default_rng(0).integers(
        0, 256, (args.images, args.side, args.side, 3), np.uint8
    )
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / 'jpeg.py'
        config.write_text(CONFIG)
        command = [
            sys.executable,
            '-m',
            'densegrpo_jax.reward_server',
            f'--config={config}',
            '--port=0',
        ]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            url = re.search(r'http://\S+', server.stderr.readline())[0]
            here = throughput('here  ', JpegReward(), images, args.workers)
            remote = throughput('remote', RemoteReward(url, ('jpeg',)), images, args.workers)
        finally:
            server.terminate()
            server.wait()
    np.testing.assert_array_equal(here, remote)


if __name__ == '__main__':
    main()
