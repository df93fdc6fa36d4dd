"""The bytes that a compiled program sends between devices, read from its HLO text; bodies of loops
count as often as they run.
"""

from __future__ import annotations

import re
from collections import Counter

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) .*\{$')
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?[\w.\-]+ = (?P<type>\(.*?\)|\S+) (?P<name>[\w\-]+)\(')
_CALLED = re.compile(
    r'(?:body|calls|to_apply|branch_computations|called_computations)='
    r'\{?((?:%?[\w.\-]+(?:, )?)+)\}?'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r'condition=%?([\w.\-]+)')
_CONSTANT = re.compile(r'%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)')
_COUNTER = re.compile(r'= [su]32\[\]\S* get-tuple-element\(.*\), index=(\d+)')
_NAME = re.compile(r'%([\w.\-]+)')
_CHANNEL = re.compile(r'channel_id=(\d+)')
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')
_BITS = {
    'pred': 8,
    's4': 4,
    'u4': 4,
    's8': 8,
    'u8': 8,
    'bf16': 16,
    'f16': 16,
    's16': 16,
    'u16': 16,
    'f32': 32,
    's32': 32,
    'u32': 32,
    'f64': 64,
    's64': 64,
    'u64': 64,
}


def collective_bytes(hlo: str) -> Counter:
    """Bytes that one device receives in one run of the program, by the kind of collective.

    A collective counts the size of its result; for reduce-scatter, whose result shrinks, the larger
    of operand and result. A loop runs as often as the compiler notes. Without a note (on TPUs) its
    counter goes from 0 up to the only constant of its condition. A collective that is spread over
    several fusions, which share its channel, counts once.

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
    done: dict[str, dict] = {}

    def rounds(line: str, body: str) -> int:
        if match := _TRIPS.search(line):
            return int(match[1])
        condition = _CONDITION.search(line)
        return (
            _trips(computations.get(condition[1], ()), computations.get(body, ()))
            if condition
            else 1
        )

    def total(name: str) -> dict:
        """(kind, channel) -> bytes; collectives without a channel are added up."""
        if name not in done:
            done[name] = found = {}  # a computation does not call itself
            for line in computations.get(name, ()):
                parts = list(_line(line).items())
                if match := _CALLED.search(line):
                    for called in match[1].split(', '):
                        called = called.lstrip('%')
                        trips = rounds(line, called) if ' while(' in line else 1
                        parts += [(key, trips * size) for key, size in total(called).items()]
                for key, size in parts:
                    found[key] = (
                        found.get(key, 0) + size if key[1] is None else max(found.get(key, 0), size)
                    )
        return done[name]

    result = Counter()
    for (kind, _), size in (total(entry) if entry else {}).items():
        result[kind] += size
    return result


def _trips(condition: list[str], body: list[str]) -> int:
    """How often a loop with a counter from 0 runs: limit / step, or 1 if its text does not say."""
    limits = [int(match[2]) for line in condition if (match := _CONSTANT.search(line))]
    places = [int(match[1]) for line in condition if (match := _COUNTER.search(line))]
    if len(limits) != 1:
        return 1
    step = 1
    if len(places) == 1:
        constants = {match[1]: int(match[2]) for line in body if (match := _CONSTANT.search(line))}
        roots = [
            _NAME.findall(line.split(' tuple(', 1)[1].split(')', 1)[0])
            for line in body
            if 'ROOT' in line and ' tuple(' in line
        ]
        counter = roots[0][places[0]] if roots and places[0] < len(roots[0]) else None
        for line in body:
            if f'%{counter} = ' in line and ' add(' in line:
                added = [
                    constants[name]
                    for name in _NAME.findall(line.split(' add(', 1)[1].split(')', 1)[0])
                    if name in constants
                ]
                step = added[0] if len(added) == 1 else 1
    return -(-limits[0] // max(step, 1))


def _line(line: str) -> dict:
    """{(kind, channel or None): bytes} of a line with a collective, {} of any other line."""
    match = _OPERATION.match(line)
    if match is None:
        return {}
    kind = match['name'].removesuffix('-start')
    if kind not in COLLECTIVES:
        return {}
    result = [_size(*array) for array in _ARRAY.findall(match['type'])]
    if match['name'].endswith('-start') and kind != 'all-reduce':
        result = [max(result)]  # (operand, result, ...) of an asynchronous one
    size = sum(result)
    if kind == 'reduce-scatter':
        operands = line[match.end() :].split(')', 1)[0]
        size = max(size, sum(_size(*array) for array in _ARRAY.findall(operands)))
    channel = _CHANNEL.search(line)
    return {(kind, channel and channel[1]): size}


def _size(dtype: str, dims: str) -> int:
    count = 1
    for dim in filter(None, dims.split(',')):
        count *= int(dim)
    return count * _BITS.get(dtype, 32) // 8
