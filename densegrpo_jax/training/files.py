"""Files that others rely on are whole: the old content or the new one, whatever happens meanwhile."""

import errno
import os
import pathlib

# tensorstore raises ValueError whatever happened; what the system said is in its text.
_SYSTEM_SAID = tuple(map(os.strerror, (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE)))


def replace_file(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file in one step: a process that is killed, or a machine that stops, leaves the old file or the new one.

    Args:
      content: a str is written as UTF-8.
    """
    temporary = path.with_name(path.name + '.tmp')
    with open(temporary, 'wb') as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def may_pass(error: BaseException) -> bool:
    """Whether a read failed for what the machine did, not for what is stored."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | PermissionError)
    return isinstance(error, ValueError) and any(said in str(error) for said in _SYSTEM_SAID)
