"""The wire format between a training run and a reward server: pure functions, bytes out and bytes
in.

POST /score carries a msgpack map, and so does its answer (status 200):

    request   {protocol: 1, id: str, shape: [N, H, W, 3], images: [N x bytes],
               prompts: [N x str], metadata: [N x map]}
    answer    {protocol: 1, id: str, fingerprint: str, names: [K x str],
               scores: [N x [digest, [K x float] or nil]]}

Every image is the raw bytes of uint8 [H, W, 3] (RGB, row by row): lossless, with nothing to decode.
PNG, lossless too, would halve the bytes but take tens of milliseconds of a core per image; base64
in JSON would add a third. Neither side ever unpickles anything.

An answer cannot be credited to the wrong image: it repeats the request's id, and gives each image's
scores together with the server's digest of what it scored, `digest(id, index, prompt, image)`. nil
stands for an image that could not be scored. NaN is never sent, and a NaN that arrives is an error.
`fingerprint` names the reward: all servers of a run must show the same one.

POST /check carries {protocol, prompts, metadata}. Decoding is strict: a missing or unknown key, or
a wrong type, shape, number or value, raises ProtocolError, which names the field. This file needs
only NumPy and msgpack, and may be copied next to a reward model in another environment.
"""

import hashlib
import math
import reprlib
from collections.abc import Sequence
from typing import NamedTuple

import msgpack
import numpy as np

PROTOCOL = 1
MEDIA_TYPE = 'application/msgpack'
MAX_SIDE = 8192  # pixels, as of a configuration's height and width
# Decoded, a value of one byte takes up to 75 bytes of memory. A rightful message, of images and
# texts, has fewer values than these: at most MAX_VALUES, and one for every four bytes beyond the
# first FREE_VALUES. They are counted before anything is decoded.
MAX_VALUES, FREE_VALUES = 500_000, 4096


class ProtocolError(ValueError):
    """A message that violates this protocol; the error names the field."""


class TooManyValues(ProtocolError):
    """A message consists of more values than one of its size may."""


class Request(NamedTuple):
    """N images to score: id, uint8 [N, H, W, 3], N prompts, N dicts of JSON values."""

    id: str
    images: np.ndarray
    prompts: list[str]
    metadata: list[dict]


def digest(request_id: str, index: int, prompt: str, image: bytes | np.ndarray) -> bytes:
    """The digest that ties a score to image `index` of a request: blake2b of 16 bytes over
    'id/index/prompt', a zero byte and the raw image.
    """
    state = hashlib.blake2b(f'{request_id}/{index}/{prompt}\0'.encode(), digest_size=16)
    state.update(image)
    return state.digest()


def digests(request: Request) -> list[bytes]:
    """The `digest` of every image of a request."""
    pairs = zip(np.ascontiguousarray(request.images), request.prompts)
    return [digest(request.id, i, prompt, image) for i, (image, prompt) in enumerate(pairs)]


def encode_request(request: Request) -> bytes:
    """Raises ProtocolError if a server could not decode the request, for example metadata that JSON
    cannot hold.
    """
    _texts(request.prompts, request.metadata)
    images = request.images
    _require(
        images.dtype == np.uint8 and images.ndim == 4,
        'images',
        'uint8 [N, H, W, 3]',
        f'{images.dtype}{images.shape}',
    )
    return _packed(
        {
            'protocol': PROTOCOL,
            'id': request.id,
            'shape': list(images.shape),
            'images': [image.tobytes() for image in images],
            'prompts': request.prompts,
            'metadata': request.metadata,
        }
    )


def decode_request(data: bytes) -> Request:
    """Raises ProtocolError."""
    message = _open(data, ('protocol', 'id', 'shape', 'images', 'prompts', 'metadata'))
    name, shape, images = message['id'], message['shape'], message['images']
    _require(
        isinstance(name, str) and 0 < len(name) <= 64, 'id', 'a string of 1 to 64 characters', name
    )
    sizes = (
        isinstance(shape, list)
        and len(shape) == 4
        and all(type(size) is int and size > 0 for size in shape)
    )
    _require(sizes and shape[3] == 3, 'shape', '[N, H, W, 3] of positive integers', shape)
    _require(
        max(shape[1:3]) <= MAX_SIDE, 'shape', f'images of at most {MAX_SIDE} pixels a side', shape
    )
    _texts(message['prompts'], message['metadata'])
    _require(isinstance(images, list), 'images', 'a list', type(images).__name__)
    for field in ('images', 'prompts', 'metadata'):
        _require(
            len(message[field]) == shape[0],
            field,
            f'{shape[0]} items, as shape says',
            len(message[field]),
        )
    for i, image in enumerate(images):
        right = isinstance(image, bytes) and len(image) == math.prod(shape[1:])
        _require(
            right,
            f'images[{i}]',
            f'{math.prod(shape[1:])} bytes, as shape says',
            len(image) if isinstance(image, bytes) else image,
        )
    # writable, unlike an array over bytes
    pictures = np.frombuffer(bytearray().join(images), np.uint8).reshape(shape)
    return Request(name, pictures, message['prompts'], message['metadata'])


def encode_check(prompts: Sequence[str], metadata: Sequence[dict]) -> bytes:
    """The body of POST /check, which asks whether prompts can be scored. Raises ProtocolError;
    after TooManyValues fewer of them at once may fit.
    """
    _texts(prompts, metadata)
    return _packed({'protocol': PROTOCOL, 'prompts': list(prompts), 'metadata': list(metadata)})


def decode_check(data: bytes) -> tuple[list[str], list[dict]]:
    """Raises ProtocolError."""
    message = _open(data, ('protocol', 'prompts', 'metadata'))
    _texts(message['prompts'], message['metadata'])
    return message['prompts'], message['metadata']


def encode_response(
    request: Request,
    names: Sequence[str],
    values: dict[str, np.ndarray],
    valid: np.ndarray,
    fingerprint: str,
) -> bytes:
    """The answer to a request: values name -> float32 [N], valid bool [N]."""
    rows = np.stack([values[name] for name in names], axis=1).astype(np.float32).tolist()
    scores = [
        [mark, row if good else None]
        for mark, row, good in zip(digests(request), rows, valid.tolist(), strict=True)
    ]
    message = {
        'protocol': PROTOCOL,
        'id': request.id,
        'fingerprint': fingerprint,
        'names': list(names),
        'scores': scores,
    }
    return msgpack.packb(message, use_single_float=True)


def decode_response(
    data: bytes,
    request: Request,
    names: Sequence[str],
    fingerprint: str,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Scores of `request`, from an answer after checking that it answers this request.

    Args:
      names, fingerprint: the score names and the fingerprint that the reward must have.
      bounds: lowest and highest value of names[0].

    Returns:
      name -> float32 [N], NaN where the image could not be scored, and bool [N]: whether it
      could.

    Raises:
      ProtocolError: a check fails.
    """
    # a row of scores and its digest, its two lists; the names, and the message around them
    values = len(request.images) * (4 + len(names)) + len(names) + 16
    message = _open(data, ('protocol', 'id', 'fingerprint', 'names', 'scores'), values)
    _require(
        message['id'] == request.id,
        'id',
        f'{request.id!r}, the request that was sent',
        message['id'],
    )
    _require(
        message['fingerprint'] == fingerprint,
        'fingerprint',
        f'{fingerprint!r}, the reward of this run',
        message['fingerprint'],
    )
    _require(message['names'] == list(names), 'names', str(list(names)), message['names'])
    scores, marks = message['scores'], digests(request)
    _require(
        isinstance(scores, list) and len(scores) == len(marks),
        'scores',
        f'a list of {len(marks)}',
        scores,
    )
    table = np.full((len(marks), len(names)), np.nan, np.float32)
    low, high = np.float32(bounds)
    for i, (score, mark) in enumerate(zip(scores, marks)):
        _require(
            isinstance(score, list) and len(score) == 2, f'scores[{i}]', '[digest, values]', score
        )
        _require(
            score[0] == mark, f'scores[{i}][0]', f'the digest {mark.hex()} of image {i}', score[0]
        )
        if score[1] is None:
            continue
        _require(
            isinstance(score[1], list) and len(score[1]) == len(names),
            f'scores[{i}][1]',
            f'{len(names)} numbers',
            score[1],
        )
        _require(
            all(type(value) in (float, int) for value in score[1]),
            f'scores[{i}][1]',
            'numbers',
            score[1],
        )
        # values too large for float32 become infinite, and are refused
        with np.errstate(over='ignore'):
            table[i] = score[1]
        _require(
            np.isfinite(table[i]).all(),
            f'scores[{i}][1]',
            'finite numbers (nil where there is no score)',
            score[1],
        )
        _require(
            low <= table[i, 0] <= high,
            f'scores[{i}][1]',
            f'{names[0]} in [{low:g}, {high:g}]',
            score[1],
        )
    valid = np.array([score[1] is not None for score in scores], bool)
    return {name: table[:, k].copy() for k, name in enumerate(names)}, valid


def _packed(message: dict) -> bytes:
    """The body of a request. Raises TooManyValues if a server would."""
    data = msgpack.packb(message)
    _count(data, _most_values(data))
    return data


def _most_values(data: bytes) -> int:
    return min(MAX_VALUES, FREE_VALUES + len(data) // 4)


def _open(data: bytes, keys: tuple[str, ...], values: int | None = None) -> dict:
    """The msgpack map in `data`, with exactly these keys and this protocol's number; it may consist
    of at most so many `values`.
    """
    _count(data, _most_values(data) if values is None else values)
    try:
        message = msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(
            f'{len(data)} bytes are not one msgpack message: {error or type(error).__name__}'
        ) from error
    _require(isinstance(message, dict), 'message', 'a map', type(message).__name__)
    number = message.get('protocol')
    if number != PROTOCOL or type(number) is not int:  # first: another version may have other keys
        raise ProtocolError(
            f'protocol: expected {PROTOCOL}, found {number!r}; server and run need the same version'
        )
    missing, unknown = (
        [key for key in keys if key not in message],
        [key for key in message if key not in keys],
    )
    if missing or unknown:
        raise ProtocolError(
            f'message: expected the keys {", ".join(keys)}; missing {missing}, unknown '
            f'{reprlib.repr(unknown)}'
        )
    return message


# First byte of a msgpack value -> (bytes of its length or of the number itself, what is counted):
# 'data' is skipped, 'items' are values, 'pairs' two each.
_HEADS = {
    **{0xC4 + i: (1 << i, 'data') for i in range(3)},  # bin
    **{0xC7 + i: (1 << i, 'ext') for i in range(3)},
    0xCA: (4, ''),  # float
    0xCB: (8, ''),
    **{0xCC + i: (1 << i, '') for i in range(4)},  # uint
    **{0xD0 + i: (1 << i, '') for i in range(4)},  # int
    **{0xD4 + i: (1 + (1 << i), '') for i in range(5)},  # fixext
    **{0xD9 + i: (1 << i, 'data') for i in range(3)},  # str
    0xDC: (2, 'items'),
    0xDD: (4, 'items'),
    0xDE: (2, 'pairs'),
    0xDF: (4, 'pairs'),
}


def _count(data: bytes, most: int) -> None:
    """Raises TooManyValues if `data` announces more than `most` msgpack values; decodes none. What
    is no message otherwise is left to the decoder.
    """
    place, values, end = 0, 1, len(data)  # values announced so far, read or not
    read = 0
    while read < values and place < end:
        if values > most:
            raise TooManyValues(
                f'message: {values} values or more in {len(data)} bytes; expected at most {most}'
            )
        head = data[place]
        place, read = place + 1, read + 1
        if head <= 0x7F or head >= 0xE0 or head in (0xC0, 0xC2, 0xC3):
            continue
        if head <= 0x9F:
            values += (head & 15) << (head < 0x90)
        elif head <= 0xBF:
            place += head & 31
        else:
            size, counts = _HEADS.get(head, (0, ''))
            number = int.from_bytes(data[place : place + size], 'big')
            place += size
            if counts in ('data', 'ext'):
                place += number + (counts == 'ext')
            elif counts:
                values += number << (counts == 'pairs')


def _texts(prompts, metadata) -> None:
    """Raises ProtocolError unless these are lists of equal length, of strings and of dicts of JSON
    values.
    """
    for field, value in (('prompts', prompts), ('metadata', metadata)):
        _require(isinstance(value, list | tuple), field, 'a list', type(value).__name__)
    _require(
        len(prompts) == len(metadata),
        'metadata',
        f'{len(prompts)} items, one per prompt',
        len(metadata),
    )
    for i, (prompt, extra) in enumerate(zip(prompts, metadata)):
        _require(isinstance(prompt, str), f'prompts[{i}]', 'a string', prompt)
        _require(
            isinstance(extra, dict) and _is_json(extra),
            f'metadata[{i}]',
            'a map of JSON values',
            extra,
        )


def _is_json(value, depth: int = 32) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(
            isinstance(key, str) and _is_json(item, depth - 1) for key, item in value.items()
        )
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_json(item, depth - 1) for item in value)
    return (
        value is None
        or isinstance(value, bool | float | str)
        or (isinstance(value, int) and -(2**63) <= value < 2**64)
    )


def _require(met: bool, field: str, expected: str, found) -> None:
    if not met:
        raise ProtocolError(f'{field}: expected {expected}; found {reprlib.repr(found)}')
