"""Compares the outputs of two runs: checkpoints, metrics, tables, tensors, images.

It imports no module of the project and knows only the files of its work directories.
`compare_checkouts.py` uses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import ml_dtypes  # noqa: F401 (gives NumPy bfloat16)
import numpy as np
import safetensors

# Times, and values derived from others that are compared.
NOT_COMPARED = re.compile(
    r'(^|[/.])seconds([/.]|$)|(^|[/.])compile_s$|(^|[/.])config_hash$|^(digests|arrays)[.]|^seal$'
)
# Keys may come and go here: config.json of a run (not of a model), settings of records, ...
DESCRIBES_SETTINGS = re.compile(
    r'[.:](settings|fingerprint)[.]'
    r'|^(?!.*(transformer|vae|encoder\w*|tokenizer\w*)/).*config\.json:'
)
# Commands name the checkout, and a report repeats what the run's other files hold.
SKIPPED_FILES = re.compile(
    r'(^|/)(checkpoints|tensorboard|text|compiled|report)/'
    r'|(^|/)(lock|\.densegrpo\.json|(newest_)?command\.txt)$'
)


@dataclasses.dataclass
class Difference:
    """`where` names file and array, `what` describes the difference; None if a number has no
    meaning.
    """

    where: str
    what: str
    max_abs: float | None = None
    max_rel: float | None = None  # max_abs over the largest magnitude of the array on either side

    def __str__(self) -> str:
        if self.max_abs is None:
            return f'{self.where}: {self.what}'
        size = f'max abs {self.max_abs:.3g}, relative to the largest {self.max_rel:.3g}'
        return f'{self.where}: {self.what}; {size}'


def compare_arrays(
    where: str, a: np.ndarray, b: np.ndarray, tolerance: float, labels: Sequence[str] = ()
) -> list[Difference]:
    """At most one Difference of two arrays of any shape and dtype.

    Floats may differ by `tolerance` times the largest finite magnitude of either side; with 0 the
    bits must agree, also those of zeros and NaNs. Everything else must always be equal. `labels`
    name values for which an index would say little.
    """
    a, b = np.asarray(a), np.asarray(b)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        if a.dtype.kind == b.dtype.kind == 'U' and a.shape == b.shape:  # only the width differs
            return [] if np.array_equal(a, b) else [Difference(where, 'texts differ')]
        kind = lambda x: f'{x.dtype}{list(x.shape)}'
        return [Difference(where, f'{kind(a)} before, {kind(b)} after')]
    if a.tobytes() == b.tobytes():
        return []
    if a.dtype.kind in 'USO':
        return [Difference(where, f'{np.sum(a != b)} of {a.size} texts differ')]
    floating = a.dtype.kind not in 'biu'
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid='ignore'):
        gap = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
    largest = max((np.abs(v[np.isfinite(v)]).max(initial=0.0) for v in (x, y)), default=0.0)
    max_abs = float(np.where(np.isnan(gap), np.inf, gap).max(initial=0.0))
    if floating and 0 < tolerance and max_abs <= tolerance * largest:
        return []
    max_rel = max_abs / largest if largest else float(bool(max_abs))
    count = int(np.sum((gap > 0) | np.isnan(gap)))
    if not count:
        return [Difference(where, 'only bits differ', max_abs, max_rel)]
    first = int(np.flatnonzero((gap > 0) | np.isnan(gap))[0])
    label = labels[first] if len(labels) == a.size else f'[{first}]'
    values = f'{x.flat[first]:.9g} before, {y.flat[first]:.9g} after'
    what = f'{count} of {a.size} values differ, first {label}: {values}'
    return [Difference(where, what, max_abs, max_rel)]


def compare_tables(where: str, a: Mapping, b: Mapping, tolerance: float) -> list[Difference]:
    """The differences of two tables {name: array}; a name in only one of them is a Difference."""
    found = [Difference(f'{where}:{n}', 'only before') for n in a if n not in b]
    found += [Difference(f'{where}:{n}', 'only after') for n in b if n not in a]
    for name in a:
        if name in b:
            found += compare_arrays(f'{where}:{name}', a[name], b[name], tolerance)
    return found


def columns(document, renames: Sequence = ()) -> dict[str, np.ndarray]:
    """A JSON value as {path: array}: 'evaluations' gathers all numbers of nested lists in order.

    Null and numbers become float64, anything else text. Leaves out entries in `NOT_COMPARED`, and
    the hash of a policy's weights in a record's `policy`: the weights themselves are compared.
    """
    found: dict[str, list] = {}

    def walk(value, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f'{path}.{key}' if path else str(key))
        elif isinstance(value, list):
            found.setdefault(f'{path}.length', []).append(len(value))
            for inner in value:
                walk(inner, path)
        elif not NOT_COMPARED.search(path):
            if path == 'policy' and isinstance(value, str):
                value = re.sub(r'(step \d+) [0-9a-f]{6,}$', r'\1', value)
            found.setdefault(renamed(path, renames), []).append(value)

    walk(document, '')
    number = lambda v: v is None or (isinstance(v, int | float) and not isinstance(v, bool))
    return {
        path: np.array([np.nan if v is None else v for v in values], np.float64)
        if all(map(number, values))
        else np.array([json.dumps(v) for v in values])
        for path, values in found.items()
        if not NOT_COMPARED.search(path)
    }


def split_notes(found: Sequence[Difference]) -> tuple[list[Difference], list[Difference]]:
    """(differences, notes): a key that only one side's settings have is a note."""
    one_sided = lambda d: d.what in ('only before', 'only after')
    is_note = lambda d: one_sided(d) and DESCRIBES_SETTINGS.search(d.where) is not None
    return [d for d in found if not is_note(d)], [d for d in found if is_note(d)]


def compare_json(where: str, a, b, tolerance: float, renames: Sequence = ()) -> list[Difference]:
    """The differences of two JSON values, by path (see `columns`)."""
    return compare_tables(where, columns(a, renames), columns(b, renames), tolerance)


def compare_rows(
    where: str, a: Sequence[dict], b: Sequence[dict], tolerance: float, renames: Sequence = ()
) -> list[Difference]:
    """The differences of two lists of rows, such as metrics.jsonl, in steps, names and values."""
    steps = lambda rows: [row.get('step') for row in rows]
    if steps(a) != steps(b):
        return [Difference(where, f'rows of steps {steps(a)} before, {steps(b)} after')]
    found = []
    whole = columns(list(a), renames), columns(list(b), renames)
    named = [[columns(row, renames) for row in rows] for rows in (a, b)]
    places = [
        {n: [i for i, row in enumerate(rows) if n in row] for n in table}
        for rows, table in zip(named, whole, strict=True)
    ]
    for name in sorted(whole[0].keys() & whole[1].keys()):
        if places[0][name] != places[1][name]:
            rows = f'in rows {places[0][name]} before, {places[1][name]} after'
            found.append(Difference(f'{where}:{name}', rows))
            continue
        labels = [f'step {a[i]["step"]}' for i in places[0][name] if 'step' in a[i]]
        columns_of = (table[name] for table in whole)
        found += compare_arrays(f'{where}:{name}', *columns_of, tolerance, labels)
    one_sided = [{n: t[n] for n in t if n not in other} for t, other in (whole, whole[::-1])]
    return found + compare_tables(where, *one_sided, tolerance)


def compare_text(where: str, a: str, b: str, tolerance: float) -> list[Difference]:
    """The differences of two texts; numbers may differ by the tolerance, the rest must be equal."""
    if a == b:
        return []
    number = re.compile(r'(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])')
    if tolerance and number.sub('#', a) == number.sub('#', b):
        values = [np.array(number.findall(text), np.float64) for text in (a, b)]
        return compare_arrays(where, *values, tolerance)
    lines = a.splitlines(), b.splitlines()
    pairs = list(zip(*lines, strict=False))
    at = next((i for i, (x, y) in enumerate(pairs) if x != y), len(pairs))
    shown = [text[at][:160] if at < len(text) else '(end)' for text in lines]
    return [Difference(where, f'line {at + 1} is {shown[0]!r} before, {shown[1]!r} after')]


def compare_pixels(where: str, a: np.ndarray, b: np.ndarray, tolerance: float) -> list[Difference]:
    """The differences of two images; with a tolerance a pixel may differ by one of 256 levels, as
    rounding may cause.
    """
    if tolerance and a.shape == b.shape and a.dtype == b.dtype == np.uint8:
        if np.abs(a.astype(int) - b.astype(int)).max(initial=0) <= 1:
            return []
    return compare_arrays(where, a, b, 0)


def renamed(name: str, renames: Sequence) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    """(name -> array, metadata)."""
    with safetensors.safe_open(path, framework='numpy') as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def read_checkpoint(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    """(name -> array, the JSON document beside them) of one step's folder, by orbax alone."""
    import orbax.checkpoint as ocp

    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(folder / 'state').item_metadata.tree
    args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in tree}
    document = json.loads((folder / 'meta' / 'metadata').read_text(encoding='utf-8'))
    return reader.restore(folder / 'state', restore_args=args), document


def steps_of(folder: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


class Comparison:
    """Differences and notes of two folders, and counts of the compared items."""

    def __init__(self, tolerance: float, renames: Sequence = (), ignore: str = ''):
        self._tolerance, self._renames = tolerance, renames
        self._ignore = re.compile(ignore) if ignore else None
        self.differences: list[Difference] = []
        self.notes: list[Difference] = []
        self.counts = {'arrays': 0, 'rows': 0, 'files': 0}

    def add(self, found: Sequence[Difference]) -> None:
        differences, notes = split_notes(found)
        ignored = [d for d in differences if self._ignore and self._ignore.search(d.where)]
        self.differences += [d for d in differences if d not in ignored]
        self.notes += [*ignored, *notes]

    def folders(self, a: pathlib.Path, b: pathlib.Path) -> None:
        """Compares every file and each run's newest checkpoint; an unreadable file differs."""
        files = [self._files(folder) for folder in (a, b)]
        runs = [
            {p.parent.relative_to(f).as_posix() for p in f.rglob('checkpoints')} for f in (a, b)
        ]
        for name, sides in (('', files), ('checkpoints of ', runs)):
            for one, other, side in ((0, 1, 'before'), (1, 0, 'after')):
                missing = sorted(set(sides[one]) - set(sides[other]))
                self.add([Difference(name + m, f'only {side}') for m in missing])
        for run in sorted(runs[0] & runs[1]):
            self.checkpoints(run, a / run / 'checkpoints', b / run / 'checkpoints')
        both = files[0].keys() & files[1].keys()
        for name in sorted(both, key=lambda name: (name.endswith('.png'), name)):  # numbers first
            self.counts['files'] += 1
            with self._reading(name):
                self._file(name, files[0][name], files[1][name])

    def checkpoints(self, run: str, a: pathlib.Path, b: pathlib.Path) -> None:
        """Compares the steps of two folders of checkpoints, and the newest of each."""
        where = f'{run}/checkpoints'
        steps = [steps_of(folder) for folder in (a, b)]
        if steps[0] != steps[1] or not steps[0]:
            self.add([Difference(where, f'steps {steps[0]} before, {steps[1]} after')])
        if not all(steps):
            return
        where += f'/{steps[0][-1]}'
        with self._reading(where):
            newest = (f / str(step[-1]) for f, step in zip((a, b), steps, strict=True))
            (x, xs), (y, ys) = map(read_checkpoint, newest)
            x, y = ({renamed(n, self._renames): v for n, v in side.items()} for side in (x, y))
            self.counts['arrays'] += len(x)
            self.add(compare_tables(where, x, y, self._tolerance))
            self.add(compare_json(f'{where}/meta', xs, ys, self._tolerance, self._renames))

    @contextlib.contextmanager
    def _reading(self, where: str):
        try:
            yield
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            self.add([Difference(where, f'cannot be read: {type(error).__name__}: {error}')])

    def _files(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        names = {p.relative_to(folder).as_posix(): p for p in folder.rglob('*') if p.is_file()}
        return {
            renamed(n, self._renames): p for n, p in names.items() if not SKIPPED_FILES.search(n)
        }

    def _file(self, where: str, a: pathlib.Path, b: pathlib.Path) -> None:
        tolerance, kind = self._tolerance, a.suffix
        if kind == '.json':
            values = (json.loads(p.read_text(encoding='utf-8')) for p in (a, b))
            self.add(compare_json(where, *values, tolerance, self._renames))
        elif kind == '.jsonl':
            rows = [
                [json.loads(line) for line in p.read_text(encoding='utf-8').splitlines()]
                for p in (a, b)
            ]
            self.counts['rows'] += len(rows[0])
            self.add(compare_rows(where, *rows, tolerance, self._renames))
        elif kind == '.npz':
            tables = [dict(np.load(p, allow_pickle=False)) for p in (a, b)]
            self.add(compare_tables(where, *tables, tolerance))
        elif kind == '.safetensors':
            (x, xs), (y, ys) = read_safetensors(a), read_safetensors(b)
            self.counts['arrays'] += len(x)
            self.add(compare_tables(where, x, y, tolerance))
            self.add(compare_json(f'{where}:metadata', xs, ys, tolerance))
        elif kind == '.png':
            from PIL import Image

            self.add(compare_pixels(where, *(np.asarray(Image.open(p)) for p in (a, b)), tolerance))
        else:
            self.add(
                compare_text(
                    where,
                    *(p.read_text(errors='replace', encoding='utf-8') for p in (a, b)),
                    tolerance,
                )
            )
