"""The judge on a real server that speaks the chat completions protocol: what cannot be parsed is no
score.
"""

import base64
import collections
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from densegrpo_jax.rewards import RewardError, build_reward
from densegrpo_jax.rewards.base import RewardsGone
from densegrpo_jax.rewards.remote.judge import PRESETS, JudgeReward, parse_final_score, parse_json
from tests.rewards.loopback import Steady, pictures, serving, unused_port


@pytest.mark.parametrize(
    ('text', 'score'),
    [
        ('{"score": 7}', 7),
        ('{"reason": "blurred", "score": 7.5}', 7.5),
        ('I think {so}.\n```json\n{"score": 0}\n```', 0),
        ('{"score": 3} {"score": 3}', 3),
        ('{"score": 3} {"score": 4}', None),
        ('{"score": "7"}', None),
        ('{"score": true}', None),
        ('{"score": null}', None),
        ('{"rating": 7}', None),
        ('{"score": 7', None),
        ('{"score": 1' + '0' * 400 + '}', None),
        ('{"alignment": {"score": 9}, "quality": {"score": 9}, "score": 4}', 4),
        ('{"details": {"score": 10}, "reason": "bad", "score": 2}', 2),
        ('{"details": {"score": 10}}', None),
        ('{"details": {"score": 10}, "score": 2,}', None),
        ('{"details": {"score": 10}, "score": 2', None),
        ('{"reason": "sign reads {HELLO}", "score": 7}', 7),
        ('{"reason": "a } and a {", "score": 7} and {"score": 8}', None),
        pytest.param('{"a": ' * 100_000, None, id='deep'),
        ('7', None),
        ('', None),
    ],
)
def test_json_answers(text, score):
    assert parse_json(text, 10) == score


@pytest.mark.parametrize(
    ('text', 'score'),
    [
        ('The text is wrong.\nFinal Score: 3.', 3),
        ('**Final Score:** 4.25', 4.25),
        ('Final Score: **4**', 4),
        ('Final Score: 4/5', 4),
        ('Final Score: 4/10', None),
        ('Final Score: 4 / 5', 4),
        ('Final Score: **4** out of 5.\nIt shows 2 of 3 cats.', 4),
        ('Final Score: 4 / 10', None),
        ('Final Score: 4 out of 10', None),
        ('Final Score: 4 out of 50', None),
        ('Final Score: 3 to 4', None),
        ('Final Score: 4 - a clear picture', 4),
        ('Final Score: 3-4', None),
        ('Final Score: 3 or so. Final Score: 4', None),
        ('Final Score: 4 and again Final Score: 4.0', 4),
        ('Final Score: four', None),
        ('Score: 4', None),
    ],
)
def test_final_score_answers(text, score):
    assert parse_final_score(text, 5) == score


class Chat:
    """A server of chat completions: answers with the mean of the picture it is sent, or with what
    is queued in `faults`.
    """

    def __init__(self):
        self.faults, self.bodies = collections.deque(), []
        routes = [
            Route('/v1/models', self.models),
            Route('/v1/chat/completions', self.completions, methods=['POST']),
        ]
        self.app = Starlette(routes=routes)

    async def models(self, request):
        return JSONResponse({'data': [{'id': 'judge-7b'}]})

    async def completions(self, request):
        self.bodies.append(body := await request.json())
        image, text = body['messages'][0]['content']
        header, data = image['image_url']['url'].split(',')
        assert header == 'data:image/png;base64'
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        score = picture.mean() / 25.5
        answer = {
            'choices': [
                {'message': {'content': json.dumps({'score': score})}, 'finish_reason': 'stop'}
            ]
        }
        fault = self.faults.popleft() if self.faults else None
        if fault == '500':
            return JSONResponse({'error': 'engine died'}, 500)
        if fault == 'no choices':
            return JSONResponse({'choices': []})
        if fault == 'cut off':
            answer['choices'][0]['finish_reason'] = 'length'
        elif fault == 'in its reasoning':  # as vLLM's reasoning parsers
            answer['choices'][0] = {'message': {'content': None}, 'finish_reason': 'length'}
        elif fault == 'refused':
            answer['choices'][0]['message'] = {'refusal': 'I cannot judge this.'}
        elif fault == 'parts':
            answer['choices'][0]['message']['content'] = [{'type': 'text', 'text': '{"score": 1}'}]
        elif fault == 'blind':
            return JSONResponse({'error': 'at most 0 images'}, 400)
        elif fault is not None:
            answer['choices'][0]['message']['content'] = fault
        return JSONResponse(answer)


@pytest.fixture(scope='module')
def chat():
    server = Chat()
    with serving(server.app) as url:
        server.url = url + '/v1'
        yield server


def judge(chat, **options):
    options = {
        'model': 'judge-7b',
        'timeout_s': 5.0,
        'give_up_s': 5.0,
        'make_rng': Steady,
        **options,
    }
    return JudgeReward(chat.url, **options)


def expected(images):
    return (images.mean((1, 2, 3)) / 25.5).astype(np.float32)


def test_pictures_arrive_losslessly_and_prompts_in_the_rubric(chat):
    images, prompts = pictures(9), [f'a sign that says "{i} {{score}}"' for i in range(9)]
    reward = judge(chat, concurrency=4)
    reward.check(prompts, [{}] * 9)
    chat.bodies.clear()
    scores = reward(images, prompts, [{}] * 9)
    np.testing.assert_allclose(scores.values['judge'], expected(images), rtol=1e-6)
    assert scores.valid.all() and scores.values['judge'].dtype == np.float32
    assert {body['temperature'] for body in chat.bodies} == {0} and {
        body['model'] for body in chat.bodies
    } == {'judge-7b'}
    texts = sorted(body['messages'][0]['content'][1]['text'] for body in chat.bodies)
    assert texts == [PRESETS['json'].rubric.replace('{prompt}', prompt) for prompt in prompts]


def test_what_cannot_be_parsed_is_asked_again_and_then_invalid(chat, caplog):
    images = pictures(2)
    chat.faults.extend(['I would say seven.', 'cut off', '{"score": 11}', '{"score": NaN}'])
    chat.bodies.clear()
    scores = judge(chat, concurrency=1, asks=4)(images[:1], ['p'], [{}])
    assert not scores.valid[0] and math.isnan(scores.values['judge'][0]) and len(chat.bodies) == 4
    assert "no score in 4 answers for an image of 'p'" in caplog.text
    varied = [(body.pop('temperature') > 0, body.pop('seed', None)) for body in chat.bodies]
    # what always answers a request alike is asked another
    assert varied == [(False, None), (True, 1), (True, 2), (True, 3)]
    assert all(body == chat.bodies[0] for body in chat.bodies)
    chat.faults.extend(['?', '500', 'no choices'])
    scores = judge(chat, concurrency=1)(images, ['p', 'q'], [{}] * 2)
    np.testing.assert_allclose(scores.values['judge'], expected(images), rtol=1e-6)
    chat.faults.extend(['refused', 'refused', 'in its reasoning'])
    scores = judge(chat, concurrency=1, retries=0)(images, ['p', 'q'], [{}] * 2)
    assert scores.valid.tolist() == [False, True]
    assert "in 3 answers for an image of 'p'; the last one: ''" in caplog.text
    assert 'it was cut off at judge.max_tokens=512; a larger one lets it end' in caplog.text
    # In a sum, a picture that the judge does not score has no total.
    chat.faults.extend(['?'] * 3)
    options = {'urls': chat.url, 'model': 'judge-7b', 'concurrency': 1}
    scores = build_reward({'judge': options, 'jpeg': {'weight': 0.1}})(images, ['p', 'q'], [{}] * 2)
    assert scores.valid.tolist() == [False, True] and np.isnan(scores.values['total']).tolist() == [
        True,
        False,
    ]


def test_unified_reward(chat):
    chat.faults.extend(['The caption is met.\nFinal Score: 4.5'])
    reward = judge(chat, preset='unified_reward', score='unified')
    scores = reward(pictures(1), ['p'], [{}])
    assert reward.range == (1, 5) and scores.values['unified'].tolist() == [4.5]
    assert 'Text caption: [p]' in chat.bodies[-1]['messages'][0]['content'][1]['text']


def test_errors_and_absence(chat):
    chat.faults.extend(['500'] * 3)
    with pytest.raises(RewardError, match='3 unusable answers.*engine died'):
        judge(chat, retries=2)(pictures(1), ['p'], [{}])
    chat.faults.append('parts')
    with pytest.raises(RewardError, match='no text but list'):
        judge(chat, retries=0)(pictures(1), ['p'], [{}])
    with pytest.raises(
        ValueError, match=re.escape("does not list judge.model='judge-70b'; it lists ['judge-7b']")
    ):
        judge(chat, model='judge-70b').check(['p'], [{}])
    with pytest.raises(RewardsGone, match='refused'):
        JudgeReward(f'http://127.0.0.1:{unused_port()}', 'm', give_up_s=0.1, make_rng=Steady)(
            pictures(3), ['p'] * 3, [{}] * 3
        )


@pytest.mark.parametrize('lists', [True, False])
def test_the_check_asks_each_server_for_an_answer_to_an_image(chat, lists, monkeypatch):
    chat.bodies.clear()
    if not lists:
        monkeypatch.setattr(Chat, 'models', lambda self, request: JSONResponse({}, 404))
    root = chat.url.removesuffix('/v1')
    options = dict(model='judge-7b', give_up_s=5.0, make_rng=Steady)
    twice = JudgeReward([chat.url, chat.url + '/'], **options)
    twice.check(['p'], [{}])
    twice.check(['p'], [{}])
    assert [body['max_tokens'] for body in chat.bodies] == [1, 1]
    for urls in ([root], [chat.url, root], [f'{chat.url}/chat/completions']):
        said = re.escape(f'{urls[-1]}/chat/completions refuses an image: status 404')
        with pytest.raises(ValueError, match=f'{said}.*base URLs that end in /v1, such as'):
            JudgeReward(urls, **options).check(['p'], [{}])
    chat.faults.append('blind')
    with pytest.raises(ValueError, match='refuses an image: status 400: .*at most 0 images'):
        judge(chat).check(['p'], [{}])


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'urls': ''}, 'no servers'),
        ({'model': ''}, 'judge.model'),
        ({'preset': 'gpt'}, "judge.preset is 'gpt'; expected one of json, unified_reward"),
        ({'rubric': 'How good is it?'}, r'judge.rubric does not contain \{prompt\}'),
        ({'range': (5, 1)}, 'judge.range'),
        ({'asks': 0}, 'judge.asks'),
    ],
)
def test_options_that_cannot_be_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        build_reward({'judge': {'urls': 'http://x/v1', 'model': 'm', **options}})
