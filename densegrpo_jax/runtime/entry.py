"""What a command does before its imports, which take seconds: texts are UTF-8 in any locale, and
Ctrl-C is one line. Imports nothing large.
"""

import codecs
import contextlib
import os
import signal
import sys

INTERRUPTED = 130  # exit status: 128 + SIGINT, as shells have it
UNUSABLE = 2  # exit status: arguments, settings or files that cannot be used


def begin(package: str) -> None:
    """Call it when `package` is imported and sys.argv is ['-m']: then Python is looking for the
    module that `python -m` names. Without effect if that is not a module of `package`.
    """
    given = sys.orig_argv
    if '-m' in given and given[given.index('-m') + 1].partition('.')[0] == package:
        begin_command()


def begin_command() -> None:
    """Call once, first in a command, in the main thread.

    In a locale that is not UTF-8, such as C with PYTHONUTF8=0, the process starts itself anew in
    Python's UTF-8 mode, and so do the processes that it starts. Characters that a stream cannot
    show, as with PYTHONIOENCODING=ascii, are written as escapes. In a folder that has been removed,
    which no path can start from, the process ends with one line and UNUSABLE.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        os.write(2, b'error: the current folder has been removed; change to another one\n')
        sys.exit(UNUSABLE)
    encoding = codecs.lookup(sys.getfilesystemencoding()).name
    # If the mode is set and has no effect (python -E), starting anew would never end.
    if encoding != 'utf-8' and os.environ.get('PYTHONUTF8') != '1' and sys.executable:
        os.environ['PYTHONUTF8'] = '1'
        arguments = [a.encode('utf-8', 'surrogateescape') for a in sys.orig_argv]
        os.execv(sys.executable, arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # None if closed
            stream.reconfigure(errors='backslashreplace')
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def interruptible():
    """A context in which Ctrl-C cleans up like an error, then ends the process with one line and
    INTERRUPTED. `runtime.stop` takes it over where there is something to save.
    """
    try:
        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the clean-up too
        print('stopped by SIGINT', file=sys.stderr)
        sys.exit(INTERRUPTED)


def _end(number, frame):
    """The handler during imports: nothing has begun that needs an end of its own."""
    del number, frame
    os.write(2, b'stopped by SIGINT before any work\n')
    os._exit(INTERRUPTED)
