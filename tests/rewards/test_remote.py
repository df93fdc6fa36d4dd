"""The client of reward servers over real sockets, well and ill: every picture gets its own score,
or the run is told why not.
"""

import contextlib
import random
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from densegrpo_jax.rewards import CompositeReward, JpegReward, RewardError, Scorer, build_reward
from densegrpo_jax.rewards.base import RewardsGone
from densegrpo_jax.rewards.remote.client import TooLarge
from tests.rewards.loopback import (
    Faulty,
    PixelReward,
    assert_own_scores,
    batch,
    client,
    service,
    serving,
    unused_port,
)


@pytest.fixture(scope='module')
def faulty():
    app = Faulty(service().app)
    with serving(app) as url:
        app.url = url
        yield app


def test_remote_scores_equal_local_ones(healthy):
    asked = batch(11)
    asked[0][4, 0, 0, 0] = 255
    assert_own_scores(client(healthy, batch_size=4)(*asked), asked)
    # not one valid picture: no error here, the run's own Scorer sees whole batches
    alone = [part[4:5] for part in asked]
    assert_own_scores(client(healthy)(*alone), alone)
    renamed = client(healthy, prefix='deqa_')
    assert renamed.names == ('deqa_pixel', 'deqa_mean') and set(renamed(*asked).values) == set(
        renamed.names
    )
    with Scorer(client(healthy, batch_size=3), 3, chunk_size=2) as scorer:
        assert_own_scores(scorer.submit(*asked).result(20), asked)


@pytest.mark.parametrize('seed', range(3))
def test_whatever_the_faults_every_picture_gets_its_own_score(faulty, healthy, seed):
    """Two faulty servers and threads that score at once: all faults in a random order, nothing
    lost, nothing swapped.
    """
    chance = random.Random(seed)
    with serving(other := Faulty(service().app)) as url:
        for app in (faulty, other):
            kinds = [kind for kind in Faulty.KINDS if kind != 'slow'] + ['slow'] * (app is other)
            app.faults.extend(chance.sample(kinds, len(kinds)))
        # The slow answer alone meets the time limit; a good one may take a while on a busy machine.
        options = {'retries': 40, 'timeout_s': 2.0, 'give_up_s': 60.0, 'batch_size': 3}
        reward, asked = client(faulty.url, url, **options), batch(48, seed)
        with Scorer(reward, 4, chunk_size=3) as scorer:
            for start in range(0, 48, 24):
                part = [p[start : start + 24] for p in asked]
                assert_own_scores(scorer.submit(*part).result(60), part)
        faulty.faults.clear()


REASONS = {
    '500': 'status 500.*CUDA out of memory',
    'busy': 'status 429',
    'slow': 'TimeoutError',
    'truncated': 'IncompleteRead|ends after',
    'cut': 'status 500|RemoteDisconnected',
    'garbage': 'not one msgpack message',
    'wrong count': 'scores: expected a list of 2',
    'swapped': r'scores\[0\]\[0\]: expected the digest',
    'nan': 'expected finite',
    'infinite': 'expected finite',
    'text': 'expected numbers',
    'out of range': r'pixel in \[0, 1\]',
    'duplicate': 'id: expected',
    'wrong version': 'protocol: expected 1, found 2',
    'other reward': "fingerprint: expected 'f00'",
    'other names': 'names: expected',
    'extra key': r'unknown \[',
}


@pytest.mark.parametrize('fault', Faulty.KINDS)
def test_each_fault_is_recognised_and_asked_again(faulty, caplog, fault):
    reward, asked = client(faulty.url, timeout_s=2.0 if fault == 'slow' else 30.0), batch(2)
    reward(*batch(2, seed=1))  # an earlier answer, for a server that repeats itself
    faulty.faults.append(fault)
    before = faulty.asked
    assert_own_scores(reward(*asked), asked)
    assert faulty.asked == before + 2
    assert re.search(REASONS[fault], caplog.text), caplog.text


def test_retries_after_wrong_answers_are_bounded(faulty):
    faulty.faults.extend(['500'] * 9)
    before = faulty.asked
    with pytest.raises(
        RewardError, match=rf'3 unusable answers, the last from {faulty.url}: .*CUDA'
    ) as caught:
        client(faulty.url, retries=2)(*batch(2))
    faulty.faults.clear()
    assert faulty.asked == before + 3 and not isinstance(caught.value, RewardsGone)


def test_a_dead_server_is_passed_over(healthy, caplog):
    asked, dead = batch(12), f'http://127.0.0.1:{unused_port()}'
    patient = lambda: SimpleNamespace(uniform=lambda low, high: 600.0)
    reward = client(dead, healthy, batch_size=2, make_rng=patient)
    assert_own_scores(reward(*asked), asked)
    assert caplog.text.count('ConnectionRefusedError') == 1  # then the server rests


def test_gone_servers_end_the_wait_with_what_each_of_them_did():
    urls = [f'http://127.0.0.1:{unused_port()}' for _ in range(2)]
    began = time.monotonic()
    with pytest.raises(
        RewardsGone, match=f'for 0.2 s.*{urls[0]} .*refused.*{urls[1]} .*refused.*same command'
    ):
        client(*urls, give_up_s=0.2)(*batch(1))
    assert time.monotonic() - began >= 0.2


def test_turns_and_patience(healthy):
    servers = client(healthy, 'http://x', give_up_s=100)._endpoints
    first, second = servers._next(0, None), servers._next(0, None)
    # whose turn it is, but not again the one that has just failed
    assert first is not second and servers._next(0, first) is second
    reward = client(healthy, give_up_s=100)
    reward(*batch(1))
    # a call that has waited for its place among others is not one that has waited for servers
    now = time.monotonic()
    assert now < reward._endpoints._limit(now - 1000) <= now + 100


def test_closing_the_scorer_ends_a_wait_for_servers_that_are_gone(faulty):
    pausing, faulty.held = threading.Event(), threading.Event()
    endless = lambda: SimpleNamespace(uniform=lambda low, high: (pausing.set(), 600.0)[1])
    # In a pause; while the server computes.
    for url, waiting in ((f'http://127.0.0.1:{unused_port()}', pausing), (faulty.url, faulty.held)):
        reward = client(url, give_up_s=600, timeout_s=600, make_rng=endless)
        # A run that has begun has checked its prompts.
        reward._met, reward.check = True, lambda *_: None
        faulty.faults.extend(['slow'] * 2)
        with contextlib.suppress(KeyError), Scorer(CompositeReward([(reward, 1.0)]), 1) as scorer:
            future = scorer.submit(*batch(1))
            assert waiting.wait(60)
            raise KeyError
        # Leaving the scorer has waited for its threads: the answer would never have come, and the
        # end of patience in ten minutes.
        error = future.exception(0)
        assert isinstance(error, RewardError) and not isinstance(error, RewardsGone)
        faulty.faults.clear()


def test_a_restart_in_the_middle_of_an_epoch_loses_nothing():
    port, asked = unused_port(), batch(40)
    up, gate = threading.Event(), threading.Event()
    reward = client(f'http://127.0.0.1:{port}', batch_size=2, give_up_s=60, retries=0)
    held = PixelReward(lambda images: (up.set(), gate.wait(60)))
    with Scorer(reward, 2, chunk_size=2) as scorer:
        with serving(
            service(held).app, port, closing=gate.set
        ):  # what is under way is answered, and no more
            future = scorer.submit(*asked)
            assert up.wait(60)
        assert not future.done()
        with serving(service().app, port):
            assert_own_scores(future.result(60), asked)


def test_a_server_restarted_with_another_reward_is_refused():
    port = unused_port()
    reward = client(f'http://127.0.0.1:{port}', retries=1)
    with serving(service().app, port):
        reward(*batch(1))
    with (
        serving(service(name='f01').app, port),
        pytest.raises(RewardError, match="fingerprint: expected 'f00', the reward of this run"),
    ):
        reward(*batch(1))


def test_requests_too_large_are_cut_up(caplog):
    asked = batch(10)
    with serving(service(max_request_bytes=400).app) as url:  # room for two of the pictures
        assert_own_scores(client(url)(*asked), asked)
        assert 'from now on 2' in caplog.text
        with pytest.raises(TooLarge, match='larger than 400 bytes'):
            client(url)(np.zeros((1, 20, 20, 3), np.uint8), ['a'], [{}])


def test_a_served_sum_has_no_score_where_one_that_is_only_logged_is_missing():
    asked = batch(3)
    asked[0][1, 0, 0, 0] = 255
    with serving(service(CompositeReward([(JpegReward(), 1.0), (PixelReward(), 0.0)])).app) as url:
        scores = client(
            url, names=('total', 'jpeg', 'pixel', 'mean'), range=(-np.inf, 0), retries=0
        )(*asked)
    assert scores.valid.tolist() == [True, False, True]


def test_prompts_are_checked_before_a_run_and_once(faulty):
    reward = client(faulty.url)
    reward.check(['a', 'b'], [{}, {}])
    reward.check(['b', 'a'], [{}, {}])
    with pytest.raises(ValueError, match="cannot score the prompts: prompt 0: 'unscorable x'"):
        reward.check(['a', 'unscorable x'], [{}, {}])


def test_prompts_with_many_values_are_checked_in_parts(faulty):
    """A server takes 4096 values in a request, and one more for every four bytes."""
    layouts = [{'layout': list(range(40))}] * 255 + [{'layout': [0] * 3000}]
    client(faulty.url).check([str(i) for i in range(256)], layouts)
    with pytest.raises(ValueError, match='6011 values or more .* expected at most'):
        client(faulty.url).check(['x'], [{'layout': [0] * 6000}])


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'names': ('mean',)}, r"names \('pixel', 'mean'\); this run expects \('mean',\)"),
        ({'fingerprint': 'abc'}, "fingerprint 'f00'; this run expects 'abc'"),
    ],
)
def test_servers_of_another_reward_are_found_out_at_the_start(healthy, options, words):
    with pytest.raises(ValueError, match=f'{healthy}/info has .*{words}'):
        client(healthy, **options).check(['a'], [{}])


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({}, 'no servers'),
        ({'urls': 'ftp://x'}, "'ftp://x' is not a base URL"),
        ({'urls': 'http://user:pass@x'}, 'without credentials'),
        ({'urls': 'http://x:port'}, 'is not a base URL'),
        ({'urls': 'http://x', 'names': ()}, 'remote.names'),
        ({'urls': 'http://x', 'range': (1, 0)}, 'remote.range'),
        ({'urls': 'http://x', 'batch_size': 0}, 'remote.batch_size'),
        ({'urls': 'http://x', 'timeout_s': 0}, 'timeout_s 0'),
        ({'urls': 'http://x', 'url': 'http://y'}, "no option 'url'.*urls"),
    ],
)
def test_options_that_cannot_be_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        build_reward({'remote': {'names': 'pixel', **options}})


def test_two_sets_of_servers_in_one_sum():
    servers = lambda name: {
        'kind': 'remote',
        'urls': ('http://x', 'http://y/path/'),
        'names': (name,),
    }
    reward = build_reward(
        ConfigDict(
            {'deqa': {'weight': 0.5, **servers('deqa')}, 'imagereward': servers('imagereward')}
        )
    )
    assert reward.names == ('total', 'deqa', 'imagereward')


def answering(path, body, status=200):
    """An application that gives one answer to requests of a path, /info's own to others."""
    info = b'{"fingerprint": "f00", "names": ["pixel", "mean"], "protocol": 1}'

    async def app(scope, receive, send):
        if scope['type'] == 'http':
            own = scope['path'] == path
            start = {'type': 'http.response.start', 'status': status if own else 200}
            await send({**start, 'headers': []})
            await send({'type': 'http.response.body', 'body': body if own else info})

    return app


@pytest.mark.parametrize(
    ('body', 'error', 'said'),
    [
        (b'{"fingerprint": "f", "names": ["pixel", "mean"], "protocol": true}', ValueError, 'True'),
        (b'{"fingerprint": "f", "names": "ab", "protocol": 1}', RewardError, "names is 'ab'"),
        (b'[' * 100_000, RewardError, 'nested too deeply'),
        (b'[' + b'[],' * 400_000 + b'[]]', RewardError, 'where at most 1048576 are expected'),
        (b'[]', RewardError, 'expected an object'),
        (b'\xff', RewardError, 'unexpected answer'),
    ],
)
def test_what_a_server_says_of_itself_is_checked(body, error, said):
    with serving(answering('/info', body)) as url, pytest.raises(error, match=said):
        client(url, retries=0).check(['a'], [{}])


@pytest.mark.parametrize('body', [b'{"error": "\\u001b[2J\\u0007 no"}', b'\x1b[2J\x07 no'])
def test_the_text_of_a_refusal_cannot_steer_a_terminal(body):
    with serving(answering('/check', body, 422)) as url, pytest.raises(ValueError) as refused:
        client(url).check(['a'], [{}])
    assert str(refused.value).endswith(r'\x1b[2J\x07 no')
