"""What is wrong with a flag, where the libraries that parse flags say it in Python's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from densegrpo_jax.config.given import given_flags

# a required flag that is not given
_ABSENT = re.compile(r'flag --(\w+)=None: Flag --\1 must have a value other than None\.')
# a key whose value has another type: the key, then the value and the library's words
_MISREAD = re.compile(r'flag --((?:no)?config\.([\w.]+))=(.*)', re.DOTALL)
_TYPES = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    tuple: "a tuple, as in \"('a', 'b')\"",
    ConfigDict: 'a group of keys: set each by its own flag, or all as Python, "{\'key\': value}"',
}


def plainly(message: str, args: Sequence[str]) -> str:
    """The message, after the flags of the command line `args` were read as far as they could be."""
    return _MISREAD.sub(lambda found: _misread(found, args), _ABSENT.sub(_lacking, message))


def _lacking(found: re.Match) -> str:
    # of a repeatable flag, the library adds a line to its help
    told = ' '.join((flags.FLAGS[found[1]].help or '').partition(';\n')[0].split())
    return f'--{found[1]} is missing: {told}' if told else f'--{found[1]} is missing'


def _misread(found: re.Match, args: Sequence[str]) -> str:
    value: Any = flags.FLAGS['config'].value
    for name in found[2].split('.'):
        value = value[name]
    if type(value) not in _TYPES:
        return found[0]
    # a value may have a colon itself; one of a flag file is not among those given
    given = (text for name, text in given_flags(args) if name == found[1])
    whole = (text for text in given if found[3].startswith(f'{text}: '))
    text = next(whole, found[3].partition(': ')[0])
    invalid = ', which this is not' if text.startswith('{') else ''
    return f'--{found[1]}={text}: expected {_TYPES[type(value)]}{invalid}'
