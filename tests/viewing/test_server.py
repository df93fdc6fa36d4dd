"""The live page's server: what it sends, and what it does not."""

import asyncio
import json
from urllib.parse import quote

import pytest

from densegrpo_jax.viewing.report import ASSETS
from densegrpo_jax.viewing.server import make_app
from tests.viewing.made_run import make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / 'runs' / 'run', updates=2, iterations=6)


def get(app, path, host='127.0.0.1:8090'):
    """(status, headers, body) of a request, without a socket."""
    path, _, query = path.partition('?')
    sent = []

    async def call():
        messages = iter([{'type': 'http.request', 'body': b'', 'more_body': False}])

        async def receive():
            return next(messages, None) or await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {
            'type': 'http', 'asgi': {'version': '3.0'}, 'http_version': '1.1', 'method': 'GET',
            'scheme': 'http', 'path': path, 'raw_path': path.encode(), 'root_path': '',
            'query_string': query.encode(), 'headers': [(b'host', host.encode())],
            'client': ('127.0.0.1', 5), 'server': ('127.0.0.1', 8090),
        }  # fmt: skip
        await app(scope, receive, send)

    asyncio.run(call())
    headers = {k.decode(): v.decode() for k, v in sent[0]['headers']}
    return sent[0]['status'], headers, b''.join(m.get('body', b'') for m in sent[1:])


def test_the_page_and_its_parts(run):
    app = make_app([run])
    for path in ('/', *(f'/{name}' for name in ASSETS), '/plotly.js', '/data.js'):
        status, headers, body = get(app, path)
        assert status == 200 and (body or path == '/data.js'), path
        assert "default-src 'none'" in headers['content-security-policy']
    assert get(app, '/')[1]['content-type'].startswith('text/html')
    assert get(app, '/nothing.js')[0] == 404


def test_data_comes_again_only_if_something_is_new(run):
    app = make_app([run])
    status, _, body = get(app, '/data.json?seen=')
    news = json.loads(body)
    assert status == 200 and news['runs'][0]['updates'] == 2
    seen = quote(news['seen'])
    assert get(app, f'/data.json?seen={seen}')[0] == 204
    with open(run / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 3, "train/reward": 0.7}\n')
    status, _, body = get(app, f'/data.json?seen={seen}')
    assert status == 200 and json.loads(body)['runs'][0]['updates'] == 3


def test_pictures_of_the_run_are_sent(run):
    for name in ('samples/step_000002.png', 'groups/step_000002_0.webp'):
        status, headers, body = get(make_app([run]), f'/runs/0/{name}')
        assert status == 200 and body == (run / name).read_bytes()
        assert headers['content-type'] in ('image/png', 'image/webp')


@pytest.mark.parametrize(
    'path',
    [
        '/runs/0/config.json',
        '/runs/0/metrics.jsonl',
        '/runs/0/../secret.png',
        '/runs/0/samples/../../secret.png',
        '/runs/0/samples/..%2f..%2fsecret.png',
        '/runs/0/samples/step_000099.png',
        '/runs/0//etc/passwd',
        '/runs/0/samples/step_000777.png',
        '/runs/1/samples/step_000002.png',
        '/runs/-1/samples/step_000002.png',
        '/../../etc/passwd',
    ],
)
def test_nothing_else_of_the_disk_is_sent(run, path):
    (run.parent / 'secret.png').write_bytes(b'secret')
    (run / 'samples' / 'step_000777.png').symlink_to(run.parent / 'secret.png')
    status, _, body = get(make_app([run]), path)
    assert status == 404 and b'secret' not in body


def test_a_page_of_another_site_gets_no_answer(run):
    app = make_app([run], hosts=('127.0.0.1', 'localhost'))
    assert get(app, '/data.json', host='localhost:8090')[0] == 200
    for path in ('/', '/data.json', '/runs/0/samples/step_000002.png'):
        assert get(app, path, host='evil.example:8090')[0] == 403


def test_a_run_that_vanishes_is_said(run, tmp_path):
    app = make_app([run])
    run.rename(tmp_path / 'elsewhere')
    status, _, body = get(app, '/data.json')
    assert status == 404 and b'holds no run' in body
