"""GenEval's rules: they compare what was found in an image with what its prompt asks for. Pure
functions, no model.

Three verdicts: Flow-GRPO's partial score, which training uses, its strict rule (both from the
reward server of arXiv 2505.05470), and the accuracy that GenEval reports (arXiv 2310.11513).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from densegrpo_jax.data.geneval import OBJECTS, check_metadata

THRESHOLD = 0.3  # least confidence of an object, exclusive
COUNTING_THRESHOLD = 0.9  # the same if the tag is 'counting'
MAX_OBJECTS = 16  # most objects of each class that count, the most confident ones
POSITION_THRESHOLD = 0.1  # share of the summed sizes by which centres must differ


class Detection(NamedTuple):
    """An object in an image.

    name: one of `data.geneval.OBJECTS`. box: x0, y0, x1, y1 in pixels, y downwards. score:
    confidence in [0, 1]. colour: one of `data.geneval.COLOURS`, or None if not determined;
    `colours_needed` says which objects need one.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float
    colour: str | None = None


class GenevalScores(NamedTuple):
    """Verdicts on one image.

    score: Flow-GRPO's partial score in [2 - MAX_OBJECTS, 1]. strict: every count, colour and
    position exactly as asked (`exclude` is ignored). correct: GenEval's accuracy: at least the
    count of objects, the most confident ones as asked, and nothing of `exclude`. reason: what
    failed, for a log; '' if nothing did.
    """

    score: float
    strict: bool
    correct: bool
    reason: str


def geneval_scores(
    detections: Sequence[Detection],
    metadata: dict,
    *,
    half_for_wrong_position: bool = True,
    objects: tuple[str, ...] = OBJECTS,
) -> GenevalScores:
    """Scores one image by what was found in it.

    The partial score is the mean of parts. A clause of `include` that asks for n objects, with m
    found, gives 1 - |n - m| / n, which falls below 0 for m > 2n. A clause with a colour or a
    position has a second part. It is 0 if m != n; else the share of objects that have the colour,
    or 1 or 0 for the position (0 also if the clause that it refers to fails).

    Args:
      detections: all objects found, in any order. Those at or below the threshold of the prompt's
        tag do not count, nor do more than MAX_OBJECTS of a class. Overlapping boxes are not merged
        (GenEval: max_overlap 1).
      metadata: see `check_metadata`.
      half_for_wrong_position: a wrong position counts as two parts, 0 and 1, as in Flow-GRPO's
        code, so that published scores are reproduced; False counts it as 0, as the rule intends.
        Only `score` depends on it.
      objects: the classes that a prompt may name.

    Raises:
      ValueError: from `check_metadata`; or a colour that `colours_needed` asks for is None.
    """
    check_metadata(metadata, objects)
    for i in colours_needed(detections, metadata):
        if detections[i].colour is None:
            raise ValueError(
                f'detection {i} ({detections[i].name}) has no colour, and the prompt asks for one'
            )
    found = {
        name: [detections[i] for i in rows]
        for name, rows in _kept(detections, metadata['tag']).items()
    }
    wrong_position = [0.0, 1.0] if half_for_wrong_position else [0.0]
    parts, failures = _judge(found, metadata['include'], wrong_position, exact=True)
    _, misses = _judge(found, metadata['include'], wrong_position, exact=False)
    for clause in metadata.get('exclude', []):
        if (number := len(found.get(clause['class'], []))) >= clause['count']:
            misses.append(
                f'expected fewer than {clause["count"]} {clause["class"]}, found {number}'
            )
    reason = '; '.join(dict.fromkeys(failures + misses))
    return GenevalScores(float(np.mean(parts)), not failures, not misses, reason)


def colours_needed(detections: Sequence[Detection], metadata: dict) -> list[int]:
    """Indices of the detections whose colour the verdicts depend on: the n most confident of a
    clause that asks for n of a colour, and none if there are fewer than n."""
    kept, rows = _kept(detections, metadata['tag']), set()
    for clause in metadata['include']:
        found = kept.get(clause['class'], [])
        if 'color' in clause and len(found) >= clause['count']:
            rows.update(found[: clause['count']])
    return sorted(rows)


def relations(a: Detection, b: Detection) -> set[str]:
    """Where a lies relative to b: a subset of RELATIONS, at most one per axis.

    The distance between the centres is shortened on each axis by POSITION_THRESHOLD of the summed
    sizes; an axis counts if what remains is more than half of the whole distance.
    """
    box_a, box_b = (np.asarray(d.box, float).reshape(2, 2) for d in (a, b))
    offset = box_a.mean(0) - box_b.mean(0)
    sizes = np.abs(box_a[1] - box_a[0]) + np.abs(box_b[1] - box_b[0])
    shortened = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0)
    if np.all(np.abs(shortened) < 1e-3):
        return set()
    dx, dy = shortened / np.linalg.norm(offset)
    holds = {'left of': dx < -0.5, 'right of': dx > 0.5, 'above': dy < -0.5, 'below': dy > 0.5}
    return {name for name, yes in holds.items() if yes}


def _kept(detections: Sequence[Detection], tag: str) -> dict[str, list[int]]:
    """The detections that count, by name and with the most confident first, as indices."""
    threshold = COUNTING_THRESHOLD if tag == 'counting' else THRESHOLD
    kept: dict[str, list[int]] = {}
    for i in sorted(range(len(detections)), key=lambda i: -detections[i].score):
        if (
            detections[i].score > threshold
            and len(kept.setdefault(detections[i].name, [])) < MAX_OBJECTS
        ):
            kept[detections[i].name].append(i)
    return kept


def _judge(
    objects: dict[str, list[Detection]], include, wrong_position: list[float], *, exact: bool
) -> tuple[list[float], list[str]]:
    """The parts of the partial score, and what failed. A clause asks for exactly its count of
    objects if `exact`, else for at least that many.
    """
    # matches: the objects of each clause, None if it failed
    parts, failures, matches = [], [], []
    for clause in include:
        name, n, found = clause['class'], clause['count'], objects.get(clause['class'], [])
        parts.append(1 - abs(n - len(found)) / n)
        before = len(failures)
        if len(found) != n if exact else len(found) < n:
            failures.append(
                f'expected {"" if exact else "at least "}{n} {name}, found {len(found)}'
            )
            if 'color' in clause or 'position' in clause:
                parts.append(0.0)
        else:
            found = found[:n]
            if 'color' in clause:
                colours = [d.colour for d in found]
                parts.append(colours.count(clause['color']) / n)
                if parts[-1] < 1:
                    failures.append(
                        f'expected {n} {clause["color"]} {name}, found {", ".join(colours)}'
                    )
            if 'position' in clause and len(failures) == before:
                relation, target = clause['position']
                if matches[target] is None:
                    parts.append(0.0)
                    failures.append(
                        f'no {include[target]["class"]} as asked for {name} to be {relation}'
                    )
                elif all(relation in relations(a, b) for a in found for b in matches[target]):
                    parts.append(1.0)
                else:
                    parts += wrong_position
                    failures.append(f'expected {name} {relation} {include[target]["class"]}')
        matches.append(found if len(failures) == before else None)
    return parts, failures
