"""What is wrong with a flag, where the libraries that parse flags say it in Python's own words."""

from __future__ import annotations

import re
from typing import Any

from absl import flags
from ml_collections import ConfigDict

# a required flag that is not given
_ABSENT = re.compile(r'flag --(\w+)=None: Flag --\1 must have a value other than None\.')
# a key whose value has another type
_MISREAD = re.compile(r'flag --((?:no)?config\.([\w.]+)=.*?): .*', re.DOTALL)
_TYPES = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    tuple: "a tuple, as in \"('a', 'b')\"",
    ConfigDict: 'a group of keys: set each by its own flag, or all by "{\'key\': value}"',
}


def plainly(message: str) -> str:
    """The message, after the flags were read as far as they could be."""
    return _MISREAD.sub(_misread, _ABSENT.sub(_lacking, message))


def _lacking(found: re.Match) -> str:
    # of a repeatable flag, the library adds a line to its help
    told = ' '.join((flags.FLAGS[found[1]].help or '').partition(';\n')[0].split())
    return f'--{found[1]} is missing: {told}' if told else f'--{found[1]} is missing'


def _misread(found: re.Match) -> str:
    value: Any = flags.FLAGS['config'].value
    for name in found[2].split('.'):
        value = value[name]
    return f'--{found[1]}: expected {_TYPES[type(value)]}' if type(value) in _TYPES else found[0]
