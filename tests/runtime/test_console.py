"""Console lines: ours are plain, a library's information is dropped, warnings stay."""

import subprocess
import sys

CODE = """
import logging as std
from absl import app, logging
from densegrpo_jax.runtime import console

def main(_):
    console.start()
    logging.info('ours %d', 1)
    logging.error('wrong')
    for level, name in ((std.INFO, 'orbax'), (std.INFO, 'httpx2'), (std.WARNING, 'orbax')):
        path = f'/x/site-packages/{name}/a.py'
        record = std.LogRecord('absl', level, path, 1, f'library {level}', (), None)
        logging.get_absl_handler().handle(record)

app.run(main)
"""


def test_lines():
    done = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ['ours 1', 'error: wrong', 'warning: library 30']
