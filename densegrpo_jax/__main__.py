"""One command for all: `densegrpo train ...`, the same as `python -m densegrpo_jax.main ...`.

Every command has its own module; this one finds it and passes the arguments on. It imports little
else, so that `densegrpo --help` answers at once.
"""

import difflib
import os
import runpy
import sys

from densegrpo_jax import __version__
from densegrpo_jax.runtime import entry

# Command -> its module in this package, and its purpose.
COMMANDS = {
    'train': ('main', 'align a model with DenseGRPO, or continue a run'),
    'preflight': ('preflight', 'before training: what a reward teaches, at what price'),
    'sample': ('sample', 'draw images with a base model or a trained one'),
    'search': ('search', 'spend a budget on better images of given prompts'),
    'evaluate': ('evaluate', 'score a base model and checkpoints side by side'),
    'calibrate': ('calibrate', 'find the noise level of every step before training'),
    'direction': ('direction', 'learn a direction that guides an embedding reward'),
    'process-reward': ('process_reward', 'fit a reward of noisy latents, which guides rollouts'),
    'export': ('export', 'write a trained model for Diffusers, ComfyUI and others'),
    'watch': ('watch', 'follow runs in a browser'),
    'report': ('report', 'a page of runs, as a folder for a browser'),
    'plan': ('plan', 'memory, time and cost on a machine that need not be present'),
    'reward-server': ('reward_server', 'serve a reward to training runs on other machines'),
}
ALIASES = {'serve-rewards': 'reward-server'}


def usage() -> str:
    """The text of `densegrpo --help`."""
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {text}' for name, (_, text) in COMMANDS.items()]
    return '\n'.join(
        [
            f'densegrpo {__version__}: align flow-matching image models with online RL.',
            '',
            'usage: densegrpo COMMAND [--flag=value ...]',
            '',
            *lines,
            '',
            'densegrpo COMMAND --help lists the flags of a command. Try:',
            '  densegrpo train --config=tiny_ocr --workdir=runs/tiny_ocr',
        ]
    )


def main() -> None:
    """Runs the command that the first argument names. Exits with its status; 2 for an unknown
    command.
    """
    entry.begin_command()
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ('', [])
    if name in ('--help', '-h', 'help'):
        print(usage())
        return
    if name == '--version':
        print(__version__)
        return
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        found = f'unknown command {name!r}' if name else 'no command given'
        hint = f'; did you mean {close[0]!r}?' if close else ''
        print(f'error: {found}{hint}\n\n{usage()}', file=sys.stderr)
        sys.exit(2)
    module, _ = COMMANDS[name]
    sys.argv = [sys.argv[0], *arguments]
    # As `python -m` does: a user's own rewards and losses lie in the current folder.
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    # As `python -m` runs it: the module is __main__, whose docstring and flags --help shows.
    runpy.run_module(f'{__package__}.{module}', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    main()
