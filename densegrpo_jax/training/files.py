"""Files that others rely on are whole: the old content or the new one, whatever happens meanwhile."""

import os
import pathlib


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
