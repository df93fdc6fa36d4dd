"""Puts an export on the Hugging Face Hub: asked before the work whether it will be allowed to, sent
once the files are complete on disk, all in one commit.

The token comes from the environment (HF_TOKEN) or from `hf auth login`, never from a flag, and is
not logged.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from densegrpo_jax.runtime.outputs import RECORD

NAME = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')


class Target(NamedTuple):
    """A repository of models that may be written. name: OWNER/NAME. public: to everyone. there: it
    exists, and an earlier push made it.
    """

    name: str
    public: bool
    there: bool


def check_push(name: str, public: bool) -> Target:
    """Asks the Hub whether this machine's account may write the repository.

    A repository that exists is written only if an earlier push made it, and only if as many may see
    it as were asked for.

    Args:
      name: OWNER/NAME.
      public: whether everyone may see it.

    Raises:
      ValueError: the name has another form; there is no token, or it may not write; the name is
        taken; the Hub cannot be reached. The message names the way out.
    """
    import huggingface_hub
    from huggingface_hub import errors

    flag = f'--push={name}'
    if not NAME.fullmatch(name) or '--' in name or '..' in name:
        raise ValueError(f'{flag}: expected OWNER/NAME, as ada/flux-ocr')
    if huggingface_hub.get_token() is None:
        raise ValueError(
            f'{flag}: this machine has no token of the Hub; run `hf auth login`, or set HF_TOKEN '
            'to a token that may write'
        )
    api = huggingface_hub.HfApi()
    with _explained(flag):
        user = api.whoami()
        owner = name.partition('/')[0]
        owners = [user['name'], *(group['name'] for group in user.get('orgs', ()))]
        role = user.get('auth', {}).get('accessToken', {}).get('role')
        if role == 'read':
            raise ValueError(
                f'{flag}: the token of {user["name"]} may only read; make one that may write on '
                'the page Access Tokens of your settings'
            )
        if owner.lower() not in [known.lower() for known in owners]:
            raise ValueError(
                f'{flag}: the token is of {user["name"]}, who does not belong to {owner!r}; '
                f'OWNER may be {" or ".join(owners)}'
            )
        try:
            found = api.model_info(name)
        except errors.RepositoryNotFoundError:
            return Target(name, public, there=False)
        if RECORD not in [file.rfilename for file in found.siblings or ()]:
            raise ValueError(
                f'{flag}: there is a repository of that name, which this command did not make; '
                'choose another name'
            )
        if public == bool(found.private):
            seen, way = ('public', 'give --public') if not public else ('private', 'leave it out')
            asked = 'without --public' if not public else 'with --public'
            raise ValueError(
                f'{flag} {asked}, but that repository is {seen}: {way}, or change the repository '
                'on its page Settings'
            )
        return Target(name, public, there=True)


def push(target: Target, folder: pathlib.Path, names: Collection[str], message: str) -> str:
    """Sends files to the repository in one commit, and makes it first if it is not there.

    Args:
      folder: holds the export. names: of files and folders in it; those that are absent are not
        sent.

    Returns:
      The repository's address.

    Raises:
      ValueError: the Hub refused or could not be reached; the files stay in `folder`, and the
        message names the command that sends them.
    """
    import huggingface_hub

    files = [path for name in (*names, RECORD) for path in _files(folder / name)]
    sent = [
        huggingface_hub.CommitOperationAdd(path.relative_to(folder).as_posix(), path)
        for path in files
    ]
    api = huggingface_hub.HfApi()
    later = f'; the export is complete in {folder}: `hf upload {target.name} {folder}` sends it'
    with _explained(f'--push={target.name}', later):
        if not target.there:
            api.create_repo(target.name, private=not target.public)
        api.create_commit(target.name, sent, commit_message=message)
    return f'{api.endpoint}/{target.name}'


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """The file, or all files of the folder."""
    if path.is_dir():
        return sorted(inner for inner in path.rglob('*') if inner.is_file())
    return [path] if path.is_file() else []


@contextlib.contextmanager
def _explained(flag: str, later: str = '') -> Iterator[None]:
    """Turns errors of the Hub into one line; `later` says what is not lost."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise ValueError(f'{flag}: HF_HUB_OFFLINE is set; unset it{later}') from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        found = {
            401: 'the Hub does not know this token; run `hf auth login` again, or correct HF_TOKEN',
            403: 'the token may not write there; give it the right to, or choose another OWNER',
            409: 'there is a repository of that name; choose another',
        }.get(status, f'the Hub answered with status {status}: {_said(error)}')
        raise ValueError(f'{flag}: {found}{later}') from None
    except (errors.HTTPError, OSError) as error:  # the former of the Hub's HTTP library
        raise ValueError(
            f'{flag}: the Hub cannot be reached ({type(error).__name__}: {_said(error)}){later}'
        ) from None


def _said(error: Exception) -> str:
    return ' '.join(str(getattr(error, 'server_message', None) or error).split())[:200]
