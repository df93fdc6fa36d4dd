"""The wire format: lossless both ways, and whatever is not exactly right is refused by the name of
its field.
"""

import math
import tracemalloc

import msgpack
import numpy as np
import pytest

from densegrpo_jax.rewards.remote.protocol import (
    ProtocolError,
    Request,
    _count,
    decode_check,
    decode_request,
    decode_response,
    encode_check,
    encode_request,
    encode_response,
)
from tests.rewards.loopback import PixelReward, pictures

REQUEST = Request(
    'a1',
    pictures(3),
    ['"A"', 'ß\n', ''],
    [{}, {'tag': 'counting', 'include': [{'class': 'cup', 'count': 2}], 'x': 0.1}, {}],
)
NAMES = ('pixel', 'mean')
ASKED = REQUEST, NAMES, 'f00'


def answer(request=REQUEST, **changes):
    scores = PixelReward()(request.images, request.prompts, request.metadata)
    message = msgpack.unpackb(encode_response(request, NAMES, scores.values, scores.valid, 'f00'))
    return msgpack.packb(
        {key: value for key, value in {**message, **changes}.items() if value is not None}
    ), message['scores']


def test_a_request_arrives_as_it_was_sent():
    found = decode_request(encode_request(REQUEST))
    np.testing.assert_array_equal(found.images, REQUEST.images)
    assert found.images.dtype == np.uint8 and found.images.flags.writeable
    assert (found.id, found.prompts, found.metadata) == (
        REQUEST.id,
        REQUEST.prompts,
        REQUEST.metadata,
    )
    assert decode_check(encode_check(REQUEST.prompts, REQUEST.metadata)) == (
        REQUEST.prompts,
        REQUEST.metadata,
    )


def test_scores_arrive_to_the_bit_and_what_has_none_is_nan():
    images = REQUEST.images.copy()
    images[1, 0, 0, 0] = 255
    request = REQUEST._replace(images=images)
    expected = PixelReward()(*request[1:])
    values, valid = decode_response(answer(request)[0], request, NAMES, 'f00', (0, 1))
    assert valid.tolist() == [True, False, True] and valid.dtype == bool
    for name in NAMES:
        assert values[name].dtype == np.float32
        np.testing.assert_array_equal(values[name], expected.values[name])


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'protocol': 2}, r'protocol: expected 1, found 2'),
        ({'protocol': True}, r'protocol: expected 1, found True'),
        ({'shape': [1, 1, 1048576, 3]}, r'shape: expected images of at most 8192 pixels a side'),
        ({'id': None}, r"missing \['id'\]"),
        ({'password': 1}, r"unknown \['password'\]"),
        ({'id': ''}, r'id: expected a string'),
        ({'shape': [3, 5, 7, 4]}, r'shape: expected \[N, H, W, 3\]'),
        ({'shape': [3, -5, -7, 3]}, r'shape: expected'),
        ({'shape': [3, 5, 7, True]}, r'shape: expected'),
        ({'shape': [3, 7, 7, 3]}, r'images\[0\]: expected 147 bytes, as shape says; found 105'),
        ({'shape': [10**9, 5, 7, 3]}, r'images: expected 1000000000 items'),
        ({'images': [b'', b'', 'x']}, r'images\[0\]: expected 105 bytes'),
        ({'images': 5}, r'images: expected a list'),
        ({'prompts': ['a', 'b']}, r'metadata: expected 2 items'),
        ({'prompts': ['a', 'b', 3]}, r'prompts\[2\]: expected a string'),
        ({'metadata': [{}, {}, 'x']}, r'metadata\[2\]: expected a map'),
        ({'metadata': [{}, {}, {'x': b'raw'}]}, r'metadata\[2\]: expected a map of JSON values'),
        (
            {'metadata': [{}, {}, {'x': msgpack.Timestamp(1)}]},
            r'metadata\[2\]: expected a map of JSON values',
        ),
    ],
)
def test_a_malformed_request_is_refused_by_field(changes, words):
    message = {**msgpack.unpackb(encode_request(REQUEST)), **changes}
    with pytest.raises(ProtocolError, match=words):
        decode_request(
            msgpack.packb({key: value for key, value in message.items() if value is not None})
        )


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'\xc1',
        b'\x93',
        b'\x80\x80',
        b'\x81\x01\x01',
        b'\xa1\xff',
        b'\x91' * 5000,
        b'\xdd' + b'\xff' * 4,
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ProtocolError, match=r'not one msgpack message|protocol|values'):
        decode_request(data)
    with pytest.raises(ProtocolError):
        decode_response(data, REQUEST, NAMES, 'f00')


BOMBS = {
    'flat': lambda n: b'\xdd' + n.to_bytes(4, 'big') + b'\x90' * n,
    'announced': lambda n: b'\xdd\x7f\xff\xff\xff' + b'\x90' * n,
    'nested': lambda n: (
        b'\xdd' + (n // 4096).to_bytes(4, 'big') + (b'\xdc\x10\x00' + b'\x80' * 4096) * (n // 4096)
    ),
    'maps': lambda n: b'\xdf' + (n // 2).to_bytes(4, 'big') + b'\x01\x02' * (n // 2),
}


@pytest.mark.parametrize('bomb', BOMBS)
def test_what_would_fill_the_memory_is_refused_before_it_is_decoded(bomb):
    data = BOMBS[bomb](2 << 20)  # decoded, at least 110 MiB
    tracemalloc.start()
    try:
        for decode in (decode_request, decode_check, lambda d: decode_response(d, *ASKED)):
            with pytest.raises(ProtocolError, match='values or more in'):
                decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_most_values_that_are_taken_need_less_than_40_mib():
    data = msgpack.packb({'a': [{} for _ in range(499_000)], 'b': bytes(2 << 20)})
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match='protocol: expected 1'):
            decode_request(data)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_counting_agrees_with_the_decoder_on_any_kind_of_value():
    values = [None, True, 5, -5, 200, -200, 70_000, 2**40, -(2**40), 1.5, 'x', 'y' * 40, 'z' * 300]
    values += ['w' * 70_000, b'', b'b' * 300, b'c' * 70_000, msgpack.Timestamp(1)]
    values += [msgpack.ExtType(3, b'e' * n) for n in (1, 2, 4, 8, 16, 17, 300, 70_000)]
    values += [{i: i for i in range(n)} for n in (3, 20, 70_000)]
    values += [list(range(n)) for n in (3, 20, 70_000)]
    number = 1 + len(values) + 2 * (3 + 20 + 70_000) + 3 + 20 + 70_000
    data = msgpack.packb(values)
    _count(data, number)
    with pytest.raises(ProtocolError, match=f'{number} values or more in {len(data)} bytes'):
        _count(data, number - 1)


def test_deep_metadata_is_refused_and_does_not_exhaust_the_stack():
    deep = {}
    for _ in range(500):
        deep = {'x': deep}
    message = {**msgpack.unpackb(encode_request(REQUEST)), 'metadata': [{}, {}, deep]}
    with pytest.raises(ProtocolError, match=r'metadata\[2\]'):
        decode_request(msgpack.packb(message))


def test_metadata_that_cannot_be_sent_is_named_by_the_sender():
    with pytest.raises(ProtocolError, match=r'metadata\[1\]'):
        encode_request(REQUEST._replace(metadata=[{}, {'x': np.float32(1)}, {}]))


def test_an_answer_to_anything_else_is_refused():
    body, scores = answer()
    wrong = {
        r"id: expected 'a1'": {'id': 'a2'},
        r"fingerprint: expected 'f00'": {'fingerprint': 'f01'},
        r'names: expected': {'names': ['mean', 'pixel']},
        r'scores: expected a list of 3': {'scores': scores[:2]},
        r'scores\[0\]\[0\]: expected the digest': {'scores': scores[::-1]},
        r'scores\[1\]\[1\]: expected 2 numbers': {
            'scores': [scores[0], [scores[1][0], [0.5]], scores[2]]
        },
        r'scores\[1\]\[1\]: expected finite': {
            'scores': [scores[0], [scores[1][0], [0.5, math.nan]], scores[2]]
        },
        r'scores\[1\]\[1\]: expected numbers': {
            'scores': [scores[0], [scores[1][0], [True, 0.5]], scores[2]]
        },
        r'pixel in \[0, 1\]': {'scores': [scores[0], [scores[1][0], [1.5, 0.5]], scores[2]]},
    }
    for words, changes in wrong.items():
        with pytest.raises(ProtocolError, match=words):
            decode_response(answer(**changes)[0], REQUEST, NAMES, 'f00', (0, 1))
    # An answer to the same pictures in another request, or to another prompt of the same picture.
    for other in (
        REQUEST._replace(id='b1'),
        REQUEST._replace(prompts=['"B"', *REQUEST.prompts[1:]]),
    ):
        with pytest.raises(ProtocolError, match=r'digest|id: expected'):
            decode_response(answer(other, id='a1')[0], REQUEST, NAMES, 'f00')
    decode_response(body, REQUEST, NAMES, 'f00', (0, 1))
