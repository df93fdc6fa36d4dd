"""Tables that say which tensor of a file is which parameter. A table is an ordered list of rules;
the first rule whose source matches a key applies.

One table serves reading and writing (`weights.load_weights`, `weights.save_weights`).
"""

import dataclasses
import functools
import re

# Axis k of a parameter is axis TRANSFORMS[name][k] of the stored tensor; None keeps all axes.
TRANSFORMS = {
    'copy': None,
    'linear': (1, 0),  # [out, in] -> [in, out]
    'conv': (2, 3, 1, 0),  # [out, in, h, w] -> [h, w, in, out]
    'embedding': None,
}
_FIELD = re.compile(r'\{(\w+)(?::([^{}]+))?\}')


@dataclasses.dataclass(frozen=True)
class WeightRule:
    """One row of a table.

    Both names are templates. A field `{name}` stands for one component of the name, and
    `{name:regex}` for what the regular expression matches; everything else is literal, and the
    whole name must match. A numeric field of the source that the target lacks is the block index of
    scanned blocks: the tensors it numbers are stacked along a new leading axis.

        # one subtree per block
        WeightRule('blocks.{i}.{p:to_q|to_k}.weight', 'blocks_{i}/{p}/kernel', 'linear')
        # scanned: leading axis i
        WeightRule('blocks.{i}.{p:to_q|to_k}.weight', 'blocks/{p}/kernel', 'linear')

    Args:
      source: key in the file.
      target: '/'-joined path in the parameter tree, or None for a known key that is not a parameter
        (ignored, never written).
      transform: a key of TRANSFORMS.
      first: the block index of a stack's first block, if a network has several stacks of one name.
      prefixed: the key carries the prefix, if any, that `save_weights` is given.
    """

    source: str
    target: str | None
    transform: str = 'copy'
    first: int = 0
    prefixed: bool = True

    def __post_init__(self):
        if self.transform not in TRANSFORMS:
            raise ValueError(
                f'rule {self.source!r}: transform {self.transform!r} is not one of '
                f'{sorted(TRANSFORMS)}'
            )
        if self.target is not None:
            source, target = (set(_fields(t)) for t in (self.source, self.target))
            if target - source or len(source - target) > 1:
                raise ValueError(
                    f'rule {self.source!r} -> {self.target!r}: the target must use all fields of '
                    f'the source, or all but one (the index to stack); fields are {sorted(source)} '
                    f'and {sorted(target)}'
                )

    @functools.cached_property
    def stack_field(self) -> str | None:
        """The field whose values are stacked, or None."""
        return next(iter(set(_fields(self.source)) - set(_fields(self.target))), None)

    @functools.cached_property
    def axes(self) -> tuple[int, ...] | None:
        return TRANSFORMS[self.transform]

    @functools.cached_property
    def _source_regex(self):
        return _compile(self.source, _fields(self.source), '.')

    @functools.cached_property
    def _target_regex(self):
        return _compile(self.target, _fields(self.source), '/')

    def read(self, key: str) -> tuple[str | None, int | None] | None:
        """(path, stack index or None) of a stored key; (None, None) if it is to be ignored; None if
        the rule does not apply.
        """
        match = self._source_regex.fullmatch(key)
        if match is None:
            return None
        if self.target is None:
            return None, None
        index = match[self.stack_field] if self.stack_field else None
        if index is not None and not index.isdigit():
            return None
        return _fill(self.target, match.groupdict()), None if index is None else int(
            index
        ) - self.first

    def write(self, path: str, index: int | None = None) -> str | None:
        """The stored key of a path (and block index), or None if the rule does not apply."""
        match = None if self.target is None else self._target_regex.fullmatch(path)
        if match is None:
            return None
        fields = match.groupdict()
        if self.stack_field:
            fields[self.stack_field] = str(index + self.first)
        return _fill(self.source, fields)


def linear_rules(source: str, target: str) -> list[WeightRule]:
    """Rules of a torch Linear: weight -> kernel (transposed), bias -> bias."""
    return [
        WeightRule(f'{source}.weight', f'{target}/kernel', 'linear'),
        WeightRule(f'{source}.bias', f'{target}/bias'),
    ]


def conv_rules(source: str, target: str) -> list[WeightRule]:
    """Rules of a torch Conv2d: weight -> kernel (channels last), bias -> bias."""
    return [
        WeightRule(f'{source}.weight', f'{target}/kernel', 'conv'),
        WeightRule(f'{source}.bias', f'{target}/bias'),
    ]


def norm_rules(source: str, target: str) -> list[WeightRule]:
    """Rules of a torch LayerNorm or GroupNorm: weight -> scale, bias -> bias."""
    return [
        WeightRule(f'{source}.weight', f'{target}/scale'),
        WeightRule(f'{source}.bias', f'{target}/bias'),
    ]


def _fields(template: str) -> dict[str, str | None]:
    return {m[1]: m[2] for m in _FIELD.finditer(template)}


def _fill(template: str, values: dict[str, str]) -> str:
    return _FIELD.sub(lambda m: values[m[1]], template)


def _compile(template: str, fields: dict[str, str | None], separator: str) -> re.Pattern:
    """Regular expression of a template; a bare field is one component, without `separator`."""
    parts, end = [], 0
    for m in _FIELD.finditer(template):
        # A name inside a component, as in blocks_{i}/..., must not swallow the rest of it: bare
        # fields there are digits or words alike.
        parts += [
            re.escape(template[end : m.start()]),
            f'(?P<{m[1]}>{fields[m[1]] or rf"[^{re.escape(separator)}]+"})',
        ]
        end = m.end()
    return re.compile(''.join(parts) + re.escape(template[end:]))
