"""Checks which folders the libraries can work in."""

import pathlib


def problem(folder: str | pathlib.Path) -> str | None:
    """What is wrong with a folder's name, and what to do; None if nothing is.

    Every character that the file system allows works, except those named here.
    """
    text = str(folder)
    if not text:
        return 'it is empty: is a variable of the shell unset? Name a folder, . for this one'
    if '://' in text:  # else a folder of that name would be created, where nobody looks
        return (
            'expected a folder of this machine; mount the bucket (launch/tpu.sh setup --bucket=B '
            'does, at ~/bucket) and name the folder there'
        )
    full = str(pathlib.Path(text).expanduser().absolute())
    if '\\' in full:
        return (
            f'{full} has a backslash, which tensorstore takes for a slash; use a path without one'
        )
    try:
        full.encode()
    except UnicodeEncodeError:
        return f'{ascii(full)} is not UTF-8, which tensorstore needs; use a path that is'
    return None
