"""The page of runs, live: a small server for a browser on this machine."""

from __future__ import annotations

import ipaddress
import json
import mimetypes
import pathlib
import re
import socket
from collections.abc import Sequence

import uvicorn
from absl import logging
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from densegrpo_jax.config.command_line import said
from densegrpo_jax.runtime.arrivals import bounded
from densegrpo_jax.runtime.listening import LOOPBACK, listen
from densegrpo_jax.viewing.folder import picture, real
from densegrpo_jax.viewing.report import ASSETS, asset, plotly
from densegrpo_jax.viewing.run_data import Loading, names, read_run, version

MOST = 256  # connections at a time
HEADERS = {
    # The page runs its own scripts only; Plotly sets styles in elements.
    'Content-Security-Policy': (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-cache',
}


def make_app(workdirs: Sequence[pathlib.Path], hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """The application. It reads the runs anew on every request and sends their pictures and its own
    files, nothing else of the folders.

    Args:
      hosts: names under which a browser may ask for it, besides any IP address, in lower case and
        without a port; a page of another site that points its own name here is refused.
    """
    script = plotly().encode()  # once, however many read it

    async def page(request: Request) -> Response:
        _check_host(request, hosts)
        name = request.path_params.get('name', 'index.html')
        if name == 'data.js':  # only the page in a folder has its data in a script
            return Response('', media_type='text/javascript', headers=HEADERS)
        if name == 'plotly.js':
            return Response(script, media_type='text/javascript', headers=HEADERS)
        if name not in ASSETS:
            raise HTTPException(404)
        kind = mimetypes.guess_type(name)[0]
        return Response(asset(name), media_type=kind, headers=HEADERS)

    def data(request: Request) -> Response:
        _check_host(request, hosts)
        seen = ' '.join(map(version, workdirs))
        if request.query_params.get('seen') == seen:
            return Response(status_code=204, headers=HEADERS)
        runs, problems = [], []
        for number, (workdir, name) in enumerate(zip(workdirs, names(workdirs))):
            try:
                runs.append(read_run(workdir) | {'name': name, 'files': f'runs/{number}'})
            except (OSError, ValueError) as error:  # the others have news all the same
                problems.append(said(error))
        news = {'seen': seen, 'runs': runs, 'problems': problems}
        # ASCII: names in a damaged file may hold what has no encoding
        text = json.dumps(news, allow_nan=False)
        return Response(text, media_type='application/json', headers=HEADERS)

    def image(request: Request) -> Response:
        _check_host(request, hosts)
        number, name = request.path_params['number'], request.path_params['name']
        folder = dict(zip(map(str, range(len(workdirs))), workdirs)).get(number)
        path = picture(real(folder), name) if folder else None
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, headers=HEADERS)

    return Starlette(
        routes=[
            Route('/', page),
            Route('/data.json', data),
            Route('/runs/{number}/{name:path}', image),
            Route('/{name}', page),
        ]
    )


def serve(workdirs: Sequence[pathlib.Path], host: str, port: int) -> None:
    """Answers until a signal ends it. Main thread only.

    Args:
      host, port: to listen on; port 0 = any free one.

    Raises:
      ValueError: it cannot listen there.
      FileNotFoundError: a folder is not a run's.
    """
    for workdir in workdirs:
        try:
            read_run(workdir)
        except Loading as loading:
            logging.info('%s, and the page shows it then', loading)
    listening, where = listen(host, port)
    local = host in LOOPBACK
    if not local:
        logging.warning('anyone who can reach %s sees these runs', host)
    logging.info('open %s in a browser; Ctrl-C ends this, not the run', where)
    app = make_app(workdirs, LOOPBACK if local else names_here(host))
    settings = uvicorn.Config(
        app,
        http=bounded(),
        limit_concurrency=MOST,
        ws='none',
        lifespan='off',
        log_config=None,
        log_level='warning',
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(settings).run(sockets=[listening])


def names_here(host: str) -> tuple[str, ...]:
    """The names of this machine, and the one that was given to listen on, in lower case."""
    names = (host, socket.gethostname(), socket.getfqdn())
    return (*LOOPBACK, *(name.lower() for name in names))


def _check_host(request: Request, hosts: Sequence[str]) -> None:
    given = request.headers.get('host', '')
    name = re.sub(r':\d*$', '', given).lower()
    name = name[1:-1] if name.startswith('[') and name.endswith(']') else name
    if name in hosts or _is_address(name):
        return
    raise HTTPException(
        403,
        f'this server does not answer for {given[:100]!r}: open it by its IP address or as '
        f'{hosts[-1]!r}, or start it with --host and that name',
    )


def _is_address(name: str) -> bool:
    """An address is nobody's to point elsewhere, as a name is."""
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False
