"""GenEval prompts (arXiv 2310.11513): rows that say what to show, in files of one JSON per line."""

from pathlib import Path

from densegrpo_jax.data.prompts import Prompt, PromptSet, check_text
from densegrpo_jax.runtime.reading import parse_json, read_text

TAGS = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
COLOURS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white')
RELATIONS = ('left of', 'right of', 'above', 'below')
# COCO's 80 classes in COCO's order, under the names that the prompts use.
OBJECTS = (
    'person',
    'bicycle',
    'car',
    'motorcycle',
    'airplane',
    'bus',
    'train',
    'truck',
    'boat',
    'traffic light',
    'fire hydrant',
    'stop sign',
    'parking meter',
    'bench',
    'bird',
    'cat',
    'dog',
    'horse',
    'sheep',
    'cow',
    'elephant',
    'bear',
    'zebra',
    'giraffe',
    'backpack',
    'umbrella',
    'handbag',
    'tie',
    'suitcase',
    'frisbee',
    'skis',
    'snowboard',
    'sports ball',
    'kite',
    'baseball bat',
    'baseball glove',
    'skateboard',
    'surfboard',
    'tennis racket',
    'bottle',
    'wine glass',
    'cup',
    'fork',
    'knife',
    'spoon',
    'bowl',
    'banana',
    'apple',
    'sandwich',
    'orange',
    'broccoli',
    'carrot',
    'hot dog',
    'pizza',
    'donut',
    'cake',
    'chair',
    'couch',
    'potted plant',
    'bed',
    'dining table',
    'toilet',
    'tv',
    'laptop',
    'computer mouse',
    'tv remote',
    'computer keyboard',
    'cell phone',
    'microwave',
    'oven',
    'toaster',
    'sink',
    'refrigerator',
    'book',
    'clock',
    'vase',
    'scissors',
    'teddy bear',
    'hair drier',
    'toothbrush',
)


def geneval_prompts(path: str | Path) -> PromptSet:
    """Reads one JSON object per line (`read_text`; blank lines skipped), such as

        {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}],
         "prompt": "a photo of a red cup"}   (on one line)

    The object is the prompt's metadata, see `check_metadata`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line is not such an object, or the file has no prompts; the message names the
        file and the line number.
    """
    prompts = []
    for number, line in enumerate(read_text(path, 'prompt file').split('\n'), start=1):
        if line.strip():
            row = parse_json(line, f'{path}:{number}')
            try:
                check_metadata(row)
                if not isinstance(row.get('prompt'), str) or not row['prompt'].strip():
                    raise ValueError(f'prompt is {row.get("prompt")!r}; expected text')
            except ValueError as error:
                raise ValueError(f'{path}:{number}: not a GenEval prompt: {error}') from None
            check_text(row['prompt'], f'{path}:{number}')
            prompts.append(Prompt(row['prompt'], row))
    if not prompts:
        raise ValueError(f'{path}: the file holds no prompt; write one JSON object per line')
    return PromptSet(tuple(prompts))


def check_metadata(metadata: dict, objects: tuple[str, ...] = OBJECTS) -> None:
    """Checks what a GenEval prompt asks for.

    Args:
      metadata: `tag` (one of TAGS); `include`, a list of clauses that must hold: `class` (one of
        `objects`), `count` (of at least 1), optionally `color` (one of COLOURS) and `position`,
        [relation (one of RELATIONS), index of an earlier clause of `include`]; optionally
        `exclude`, a list of {class, count}: the image must show fewer than `count` of the class;
        optionally `prompt`.
      objects: the classes that prompts may name.

    Raises:
      ValueError: the message names the key, what was found and what was expected.
    """
    if not isinstance(metadata, dict):
        raise ValueError(f'expected an object with tag and include, found {metadata!r}')
    _known_keys('', metadata, ('tag', 'include', 'exclude', 'prompt'))
    _one_of('tag', metadata.get('tag'), TAGS)
    if not isinstance(metadata.get('include'), list) or not metadata['include']:
        raise ValueError(
            f'include is {metadata.get("include")!r}; expected a list of at least one clause'
        )
    if not isinstance(metadata.get('exclude', []), list):
        raise ValueError(f'exclude is {metadata["exclude"]!r}; expected a list of clauses')
    for i, clause in enumerate(metadata['include']):
        where = f'include[{i}]'
        _check_clause(where, clause, ('class', 'count', 'color', 'position'), objects)
        if 'color' in clause:
            _one_of(f'{where}.color', clause['color'], COLOURS)
        if 'position' in clause:
            _check_position(f'{where}.position', clause['position'], before=i)
    for i, clause in enumerate(metadata.get('exclude', [])):
        _check_clause(f'exclude[{i}]', clause, ('class', 'count'), objects)


def _check_clause(where: str, clause, known: tuple[str, ...], objects: tuple[str, ...]) -> None:
    if not isinstance(clause, dict):
        raise ValueError(f'{where} is {clause!r}; expected an object with class and count')
    _known_keys(f'{where}.', clause, known)
    _one_of(f'{where}.class', clause.get('class'), objects)
    count = clause.get('count')
    if type(count) is not int or count < 1:
        raise ValueError(f'{where}.count is {count!r}; expected a whole number of at least 1')


def _check_position(where: str, position, before: int) -> None:
    if not isinstance(position, (list, tuple)) or len(position) != 2:
        raise ValueError(
            f'{where} is {position!r}; expected [relation, index of an earlier clause]'
        )
    _one_of(f'{where}[0]', position[0], RELATIONS)
    if type(position[1]) is not int or not 0 <= position[1] < before:
        raise ValueError(
            f'{where}[1] is {position[1]!r}; expected the index of an earlier clause of include, '
            f'below {before}'
        )


def _known_keys(where: str, found: dict, known: tuple[str, ...]) -> None:
    if unknown := [key for key in found if key not in known]:
        raise ValueError(f'unknown key {where}{unknown[0]}; known keys: {", ".join(known)}')


def _one_of(where: str, value, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f'{where} is {value!r}; expected one of: {", ".join(allowed)}')
