"""Console output of the commands: their own lines, plain; all warnings and errors; no information
lines of libraries.
"""

import logging as std_logging

from absl import logging

# the last two are the Hub's HTTP library, which tells of every request
CHATTER = ('orbax', 'jax', 'jaxlib', 'flax', 'httpx', 'httpx2')


class _Plain(std_logging.Formatter):
    """The message alone; warnings and errors are marked."""

    def format(self, record: std_logging.LogRecord) -> str:
        text = super().format(record)
        return (
            text if record.levelno < std_logging.WARNING else f'{record.levelname.lower()}: {text}'
        )


def _worth_showing(record: std_logging.LogRecord) -> bool:
    """False for information logged from a file of one of the CHATTER packages (orbax logs through
    absl, under absl's own name).
    """
    parts = record.pathname.replace('\\', '/').split('/')
    return record.levelno >= std_logging.WARNING or not any(name in parts for name in CHATTER)


def start() -> None:
    """Call once, first in a command's main."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(_Plain())
    handler.addFilter(_worth_showing)
