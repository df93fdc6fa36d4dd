"""Reads the arguments of commands as the commands do, and does no work: in forked copies of one
process that has imported them all.

    python tests/docs/read_arguments.py MODULE ... < cases.json

Reads [[name, module, arguments]] and prints a line [name, error or ''] for each. Flags are parsed,
the recipe is opened, keys are set and the whole configuration is validated; then the command would
begin.
"""

import importlib
import json
import os
import re
import runpy
import sys
import traceback

from absl import app, flags

from densegrpo_jax.config import command_line
from densegrpo_jax.config.schema import TABLE
from densegrpo_jax.config.unread import check_unread
from densegrpo_jax.config.validation import validate

CONFIG = re.compile('--config(=|$)')


def instead_of_main(main, *, extra=False):
    """Stands for `run_main` and `app.run`: everything before the call of `main`."""
    parser = command_line._configuration()
    if parser is not None and parser.of_run and not any(map(CONFIG.match, sys.argv)):
        sys.argv.append('--config=tiny_ocr')  # in the place of the one of the page's run
    left = flags.FLAGS(sys.argv)[1:]
    if left and not extra:
        raise ValueError(f'unexpected arguments {left}')
    config = getattr(flags.FLAGS, 'config', None)
    if config is None or not set(TABLE) <= set(config):
        return  # another tool's configuration
    for argument in left:  # settings behind --, which the command passes on to its runs
        key, _, _ = argument.removeprefix('--config.').partition('=')
        command_line.check_key(config, key, argument)
    command_line.check_read_keys()
    config = config.copy_and_resolve_references()
    validate(config)
    check_unread(config, command_line.given_keys())


def read(module: str, arguments: list[str]) -> str:
    """The error of a command line; '' if there is none."""
    command_line.run_main = app.run = instead_of_main
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # runpy runs it anew
    try:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    except SystemExit as end:
        return f'it ends with {end.code}' if end.code else ''
    except BaseException as error:  # noqa: BLE001 (whatever is wrong is the answer)
        return ''.join(traceback.format_exception_only(error)).strip()
    return ''


def main() -> None:
    cases = json.load(sys.stdin)
    for module in sys.argv[1:]:
        if not module.startswith('benchmarks'):  # they define their flags when imported
            importlib.import_module(module)
    for name, module, arguments in cases:
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(reading)
            with os.fdopen(writing, 'w') as pipe:
                pipe.write(read(module, arguments))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            error = pipe.read()
        os.waitpid(pid, 0)
        print(json.dumps([name, error]), flush=True)


if __name__ == '__main__':
    main()
