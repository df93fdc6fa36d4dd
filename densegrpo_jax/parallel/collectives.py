"""What a compiled program sends between devices, read from its HLO text; bodies of loops count as often as they run."""

from __future__ import annotations

import re
from collections import Counter

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) .*\{$')
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?[\w.\-]+ = (?P<type>\(.*?\)|\S+) (?P<name>[\w\-]+)\(')
_CALLED = re.compile(r'(?:body|calls|to_apply|branch_computations|called_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r'condition=%?([\w.\-]+)')
_LIMIT = re.compile(r'= s32\[\]\S* constant\((\d+)\)')
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')
_BITS = {'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 'bf16': 16, 'f16': 16, 's16': 16, 'u16': 16, 'f32': 32, 's32': 32, 'u32': 32,
         'f64': 64, 's64': 64, 'u64': 64}  # fmt: skip


def collective_bytes(hlo: str) -> Counter:
    """Bytes that one device receives in one run of the program, by the kind of collective.

    A collective counts the size of its result (the larger of operand and result where it shrinks: reduce-scatter). A loop runs as
    often as the compiler notes; where it notes nothing (on TPUs), up to the only constant of its condition, as a `lax.scan` does.

    Args:
      hlo: `compiled.as_text()`.
    """
    computations, entry, current = {}, None, None
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[1], [])
            entry = match[1] if line.startswith('ENTRY') else entry
        elif current is not None:
            current.append(line)
    done: dict[str, Counter] = {}

    def rounds(line: str) -> int:
        if match := _TRIPS.search(line):
            return int(match[1])
        condition = _CONDITION.search(line)
        limits = [int(n) for text in computations.get(condition[1], ()) for n in _LIMIT.findall(text)] if condition else []
        return limits[0] if len(limits) == 1 else 1

    def total(name: str) -> Counter:
        if name not in done:
            done[name] = Counter()  # a computation does not call itself
            for line in computations.get(name, ()):
                done[name] += _line(line)
                if match := _CALLED.search(line):
                    trips = rounds(line) if ' while(' in line else 1
                    for called in match[1].split(', '):
                        for kind, size in total(called.lstrip('%')).items():
                            done[name][kind] += trips * size
        return done[name]

    return total(entry) if entry else Counter()


def _line(line: str) -> Counter:
    match = _OPERATION.match(line)
    if match is None:
        return Counter()
    kind = match['name'].removesuffix('-start')
    if kind not in COLLECTIVES:
        return Counter()
    result = [_size(*array) for array in _ARRAY.findall(match['type'])]
    if match['name'].endswith('-start') and kind != 'all-reduce':
        result = [max(result)]  # (operand, result, ...) of an asynchronous one
    size = sum(result)
    if kind == 'reduce-scatter':
        operands = line[match.end() :].split(')', 1)[0]
        size = max(size, sum(_size(*array) for array in _ARRAY.findall(operands)))
    return Counter({kind: size})


def _size(dtype: str, dims: str) -> int:
    count = 1
    for dim in filter(None, dims.split(',')):
        count *= int(dim)
    return count * _BITS.get(dtype, 32) // 8
