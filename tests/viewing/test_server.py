"""The live page's server: what it sends, and what it does not."""

import asyncio
import json
import os
import re
import time
from urllib.parse import quote

import pytest

from densegrpo_jax.runtime.files import LOCK, lock
from densegrpo_jax.runtime.listening import LOOPBACK
from densegrpo_jax.viewing import server
from densegrpo_jax.viewing.report import ASSETS
from densegrpo_jax.viewing.server import make_app, names_here
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
        policy = headers['content-security-policy']
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
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
    app = make_app([run], hosts=LOOPBACK)
    assert get(app, '/data.json', host='localhost:8090')[0] == 200
    for path in ('/', '/data.json', '/runs/0/samples/step_000002.png'):
        assert get(app, path, host='evil.example:8090')[0] == 403


@pytest.mark.parametrize(
    'host',
    [
        '',
        '[',
        '127.1',
        'localhost@evil.example',
        'evil.example@localhost',
        'localhost.evil.example',
        'localhost/evil.example',
        'localhost#evil.example',
        'evil.example\\@localhost',
        'localhost:8090:80',
    ],
)
def test_neither_does_a_name_that_is_no_name(run, host):
    app = make_app([run], hosts=LOOPBACK)
    assert get(app, '/data.json', host=host)[0] == 403
    for known in ('LOCALHOST', '[::1]:8090', '127.0.0.1'):
        assert get(app, '/', host=known)[0] == 200


def test_other_machines_ask_by_address_or_by_a_name_of_this_one(run, monkeypatch):
    monkeypatch.setattr(server.socket, 'gethostname', lambda: 'Box')
    monkeypatch.setattr(server.socket, 'getfqdn', lambda: 'box.lab.example')
    app = make_app([run], names_here('Given.example'))
    for known in (
        '192.168.1.7:8090', '[fe80::1]:8090', 'given.example', 'box', 'BOX.lab.example:8090',
        'localhost:8090',
    ):  # fmt: skip
        assert get(app, '/data.json', host=known)[0] == 200, known
    for path in ('/', '/data.json', '/runs/0/samples/step_000002.png'):
        status, _, body = get(app, path, host='evil.example:8090')
        assert status == 403 and b"by its IP address or as 'box.lab.example'" in body
    assert get(app, '/', host='192.168.1.7.evil.example')[0] == 403


@pytest.mark.parametrize(
    'path', [f'/runs/{"9" * 5000}/x.png', f'/runs/0/samples/step_{"0" * 400}.png', '/%ff%fe']
)
def test_names_of_any_length_are_not_found(run, path):
    assert get(make_app([run]), path)[0] == 404


def test_a_link_to_itself_is_not_found(run):
    (run / 'samples' / 'step_000007.png').symlink_to('step_000007.png')
    assert get(make_app([run]), '/runs/0/samples/step_000007.png')[0] == 404


GROUP = 'groups/step_000002_0.json'


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        (GROUP, b'{"a": NaN}'),
        (GROUP, b'{"step": 2, "prompt": '),
        (GROUP, b'{"a": "\\ud800"}'),
        (GROUP, b'{"a": 1e999}'),
        ('metrics.jsonl', b'{"step": 1' + b'0' * 400 + b', "a": 1}\n'),
        ('metrics.jsonl', b'{"step": 1, "a": 1' + b'0' * 5000 + b'}\n\xff\n[1]\n{"step": 2, "b'),
        ('metrics.jsonl', b'{"step": 1, "\\ud800": 1}\n'),
        ('summary.json', b'{"updates": NaN}'),
    ],
)
def test_damaged_files_leave_the_rest_of_the_page(run, name, content):
    """As a run writes them, or a disk loses them."""
    (run / name).write_bytes(content)
    status, _, body = get(make_app([run]), '/data.json')
    shown = json.loads(body)['runs'][0]
    assert status == 200 and len(shown['groups']) == (0 if name == GROUP else 1)


def news_of(app):
    status, _, body = get(app, '/data.json')
    assert status == 200
    return json.loads(body)


def test_a_damaged_configuration_is_said(run):
    (run / 'config.json').write_text('{"iterations": 1, "rollout": 5}')
    news = news_of(make_app([run]))
    assert news['runs'] == [] and 'rollout.prompts=5: expected a whole' in news['problems'][0]


def test_a_run_that_vanishes_is_said_and_the_others_have_news(run, tmp_path):
    other = make_run(tmp_path / 'runs' / 'other')
    app = make_app([run, other])
    seen = news_of(app)['seen']
    run.rename(tmp_path / 'elsewhere')
    news = news_of(app)
    assert news['seen'] != seen
    assert [(r['name'], r['files']) for r in news['runs']] == [('other', 'runs/1')]
    assert len(news['problems']) == 1 and 'run holds no run' in news['problems'][0]


def test_a_run_that_is_loading_is_waited_for(run, monkeypatch, caplog):
    """`densegrpo watch` may be started with the run, which reads its model for minutes first."""
    monkeypatch.setattr(server.uvicorn.Server, 'run', lambda *_, sockets: sockets[0].close())
    config, away = run / 'config.json', run / 'away.json'
    config.rename(away)
    with pytest.raises(FileNotFoundError, match='holds no run'):
        server.serve([run], '127.0.0.1', 0)
    app = make_app([run])
    with lock(run), caplog.at_level('INFO'):
        server.serve([run], '127.0.0.1', 0)
        news = news_of(app)
        assert news['runs'] == [] and 'run: the run is still loading' in news['problems'][0]
        away.rename(config)
        begun = news_of(app)
    assert 'still loading; it writes its config.json when it begins, and the page' in caplog.text
    assert begun['seen'] != news['seen'] and len(begun['runs']) == 1 and not begun['problems']


@pytest.mark.parametrize(
    ('text', 'minutes', 'said'),
    [
        ('process 7 on elsewhere', 7, 'may be loading a run: it writes its config.json'),
        ('process 7 of train on elsewhere', 7, 'machine wrote there, the last time 7 min ago; it'),
        ('process 7 of train on elsewhere', 180, 'holds no run: .*; a process .* time 3 h ago$'),
        ('process 7 of evaluate on elsewhere', 7, 'holds no run: .* a training that has begun'),
        (None, 7, 'holds no run: .* a training that has begun'),
    ],
)
def test_of_a_run_elsewhere_that_has_not_begun_its_silence_is_told(tmp_path, text, minutes, said):
    """Its process may be loading, or may have died before it began."""
    if text:
        (tmp_path / LOCK).write_text(text)
        then = time.time() - 60 * minutes - 1
        os.utime(tmp_path / LOCK, (then, then))
    app = make_app([tmp_path])
    news = news_of(app)
    assert re.search(said, news['problems'][0])
    assert get(app, f'/data.json?seen={quote(news["seen"])}')[0] == 204


def test_another_command_that_makes_a_folder_is_no_run_that_loads(tmp_path):
    with lock(tmp_path, 'evaluate'):
        problem = news_of(make_app([tmp_path]))['problems'][0]
    assert 'holds no run' in problem and 'evaluate writes there' in problem
