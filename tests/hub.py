"""A Hugging Face Hub on the loopback interface: accounts, repositories, commits, large files. Only
what `huggingface_hub` asks of it here, with the real one's answers.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json

from huggingface_hub import constants
from huggingface_hub.utils import close_session
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.rewards.loopback import serving

CONVERTED = 'refs/convert/parquet'


@dataclasses.dataclass
class Repository:
    """private; branch -> {file: bytes}; and how many commits there were."""

    private: bool = True
    branches: dict = dataclasses.field(default_factory=lambda: {'main': {}})
    commits: int = 0

    def sha(self, branch):
        return hashlib.sha1(
            f'{branch} {sorted(self.branches[branch].items())}'.encode()
        ).hexdigest()

    def branch(self, revision):
        """The branch of that name or with that commit; None if there is none."""
        return next((b for b in self.branches if revision in (b, self.sha(b))), None)


class Hub:
    """tokens: token -> (account, role). repositories: 'models/OWNER/NAME' -> Repository. asked:
    every request, as 'METHOD path'. broken: words of paths that get status 500. refusal: arguments
    of `refused` that answer every request for a file.
    """

    def __init__(self):
        self.tokens = {'hf_write': ('ada', 'write'), 'hf_read': ('ada', 'read')}
        self.repositories, self.large, self.asked, self.broken = {}, {}, [], ()
        self.refusal = None
        self.url = ''

    def add(self, kind, name, files, branch='main', private=False):
        """Puts files on a branch of a repository."""
        repository = self.repositories.setdefault(f'{kind}/{name}', Repository(private))
        repository.branches.setdefault(branch, {}).update(files)
        return repository

    async def answer(self, request):
        """Any request."""
        path, method = request.url.path, request.method
        self.asked.append(f'{method} {path}')
        await request.body()  # a connection with unread bytes would be reset
        if any(word in path for word in self.broken):
            return JSONResponse({'error': 'asked to fail'}, 500)
        token = request.headers.get('authorization', '').removeprefix('Bearer ')
        account, role = self.tokens.get(token, (None, None))
        if token and account is None:
            return refused(401, 'Invalid credentials in Authorization header')
        parts = path.strip('/').split('/')
        if self.refusal and 'resolve' in parts:
            return refused(*self.refusal)
        if path == '/api/whoami-v2':
            access = {'displayName': 'test', 'role': role}
            orgs = [{'name': 'lab', 'roleInOrg': 'write'}]
            user = {'type': 'user', 'name': account, 'orgs': orgs}
            return JSONResponse(user | {'auth': {'type': 'access_token', 'accessToken': access}})
        if path == '/api/validate-yaml':
            return self.validated(await request.json())
        if path == '/api/repos/create':
            return self.created(await request.json(), account, role)
        if parts[0] == 'large':
            self.large[parts[1]] = await request.body()
            return Response()
        if path.endswith('.git/info/lfs/objects/batch'):
            return self.batch(await request.json())
        if parts[0] == 'api' and parts[1] in ('models', 'datasets'):
            return await self.api(request, '/'.join(parts[1:4]), parts[4:], account)
        if 'resolve' not in parts:  # an error here would close a connection that the client reuses
            return refused(404, 'Not found')
        return self.file(parts, account, method)

    def validated(self, sent):
        bad = [line for line in sent['content'].splitlines() if line.startswith('base_model:')]
        name = bad[0].partition(' ')[2] if bad else 'a/b'
        if name.count('/') != 1 or ':' in name:
            message = f'"base_model" with value "{name}" is not valid'
            return JSONResponse({'errors': [{'message': message}], 'warnings': []}, 400)
        return JSONResponse({'errors': [], 'warnings': []})

    def created(self, sent, account, role):
        if role != 'write':
            return refused(403, "You don't have the rights to create a model under this namespace")
        name = f'{sent["organization"] or account}/{sent["name"]}'
        if f'models/{name}' in self.repositories:
            return JSONResponse({'error': 'You already created this model repo'}, 409)
        private = sent.get('visibility') == 'private' or sent.get('private') is True
        self.repositories[f'models/{name}'] = Repository(private)
        return JSONResponse({'url': f'{self.url}/{name}', 'name': name})

    async def api(self, request, name, rest, account):
        repository = self.repositories.get(name)
        if repository is None or (repository.private and account is None):
            return refused(404 if account else 401, 'Repository not found', 'RepoNotFound')
        if rest[:1] == ['preupload']:
            files = (await request.json())['files']
            mode = lambda path: 'lfs' if path.endswith('.safetensors') else 'regular'
            answer = [
                {'path': f['path'], 'uploadMode': mode(f['path']), 'shouldIgnore': False}
                for f in files
            ]
            return JSONResponse({'files': answer})
        if rest[:1] == ['commit']:
            self.commit(repository, (await request.body()).decode().splitlines())
            sha = repository.sha('main')
            url = f'{self.url}/{name.partition("/")[2]}/commit/{sha}'
            return JSONResponse({'commitUrl': url, 'commitOid': sha, 'success': True})
        revision = '/'.join(rest[1:]) if rest[:1] in (['revision'], ['tree']) else 'main'
        branch = repository.branch(revision.replace('%2F', '/'))
        if branch is None:
            return refused(404, 'Invalid rev id', 'RevisionNotFound')
        if rest[:1] == ['tree']:
            files = repository.branches[branch].items()
            entry = lambda path, content: {'type': 'file', 'path': path, 'size': len(content)}
            digest = lambda content: hashlib.sha1(content).hexdigest()
            return JSONResponse([{**entry(*file), 'oid': digest(file[1])} for file in files])
        siblings = [{'rfilename': file} for file in sorted(repository.branches[branch])]
        about = {'id': name.partition('/')[2], 'private': repository.private, 'tags': []}
        return JSONResponse(about | {'sha': repository.sha(branch), 'siblings': siblings})

    def commit(self, repository, lines):
        files = repository.branches['main']
        for line in map(json.loads, lines):
            value = line['value']
            if line['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                files[value['path']] = self.large[value['oid']]
        repository.commits += 1

    def batch(self, sent):
        objects = [
            {**o, 'actions': {'upload': {'href': f'{self.url}/large/{o["oid"]}'}}}
            for o in sent['objects']
        ]
        return JSONResponse({'transfer': 'basic', 'objects': objects})

    def file(self, parts, account, method):
        """[datasets/]OWNER/NAME/resolve/REVISION/FILE."""
        kind = 'datasets' if parts[0] == 'datasets' else 'models'
        owner, name, _, revision, *rest = parts[kind == 'datasets' :]
        repository = self.repositories.get(f'{kind}/{owner}/{name}')
        if repository is None or (repository.private and account is None):
            return refused(401, 'Repository not found', 'RepoNotFound')
        branch = repository.branch(revision.replace('%2F', '/'))
        content = repository.branches[branch].get('/'.join(rest)) if branch else None
        if content is None:
            return refused(404, 'Entry not found', 'EntryNotFound')
        headers = {
            'x-repo-commit': repository.sha(branch),
            'etag': f'"{hashlib.sha1(content).hexdigest()}"',
            'content-length': str(len(content)),
        }
        return Response(b'' if method == 'HEAD' else content, headers=headers)


def refused(status, message, code=None):
    headers = {'X-Error-Message': message} | ({'X-Error-Code': code} if code else {})
    return JSONResponse({'error': message}, status, headers)


@contextlib.contextmanager
def hub(monkeypatch, folder, token='hf_write'):
    """A Hub that `huggingface_hub` talks to in this process, with its cache in `folder`."""
    made = Hub()
    methods = ['GET', 'HEAD', 'POST', 'PUT']
    app = Starlette(routes=[Route('/{path:path}', made.answer, methods=methods)])
    close_session()  # with connections to stand-ins of other tests
    # On a busy machine seconds pass between requests, and the client reuses its connection.
    with serving(app, timeout_keep_alive=600) as made.url:
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
        monkeypatch.setattr(constants, 'ENDPOINT', made.url)
        template = made.url + '/{repo_id}/resolve/{revision}/{filename}'
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(folder / 'hub'))
        monkeypatch.setattr(constants, 'HF_ASSETS_CACHE', str(folder / 'assets'))
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(folder / 'token'))
        monkeypatch.delenv('HF_TOKEN', raising=False)
        monkeypatch.delenv('HUGGING_FACE_HUB_TOKEN', raising=False)
        if token:
            monkeypatch.setenv('HF_TOKEN', token)
        yield made
