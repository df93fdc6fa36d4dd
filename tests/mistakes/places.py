"""Makers of what a case finds in its folder before the command runs: (folder) -> None."""

import json
import pathlib
import shutil

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ROOT / 'densegrpo_jax' / 'assets' / 'tiny'


def write(name, content=''):
    """A file with this text or these bytes."""

    def make(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def ours(name, content=''):
    """The same, in a folder whose record says that our commands wrote the file."""
    place = pathlib.Path(name)
    record = write(place.with_name('.densegrpo.json'), json.dumps([place.name]))
    return both(record, write(name, content))


def link(name, target):
    """A symbolic link in the folder, to `target` beside it, whether that exists or not."""
    return lambda folder: (folder / name).symlink_to(folder / target)


def both(*makers):
    """All of these."""

    def make(folder):
        for maker in makers:
            maker(folder)

    return make


def model(name, content=None):
    """A folder `model`: the miniature, with one file of another content, or without it (None).

    content: text, bytes, or a function that changes the parsed JSON.
    """

    def make(folder):
        base, spoilt = folder / 'model', pathlib.Path(name)
        for path in TINY.rglob('*'):
            if path.is_file():
                copy = base / path.relative_to(TINY)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(path)
        text = (base / spoilt).read_text() if callable(content) else None
        (base / spoilt).unlink(missing_ok=True)
        if callable(content):
            value = json.loads(text)
            changed = content(value)
            (base / spoilt).write_text(json.dumps(value if changed is None else changed))
        elif content is not None:
            write(spoilt, content)(base)

    return make


def without(name):
    """A folder `model`: the miniature without one of its folders."""

    def make(folder):
        shutil.copytree(TINY, folder / 'model', ignore=shutil.ignore_patterns(name))

    return make


def config(body, name='own.py'):
    """A recipe: the miniature's, then these lines on its configuration `c`."""
    lines = ''.join(f'    {line}\n' for line in body.splitlines())
    return write(
        name,
        'from densegrpo_jax.configs import tiny_ocr\n\n\ndef get_config():\n'
        f'    c = tiny_ocr.get_config()\n{lines}    return c\n',
    )
