"""What errors of downloads from the Hugging Face Hub mean, and the ways out."""

from __future__ import annotations

import errno
import socket
import ssl

# What helps if the Hub refuses an account or its token.
_TOKEN = (
    'If you may read it, renew the token (`hf auth login`; HF_TOKEN, where it is set, is used '
    "instead), or, in its settings, give it 'Read access to contents of all public gated repos you "
    "can access'"
)
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)


def raise_if_local(error: Exception, name: str) -> None:
    """Raises the OSError of a download of `name` that is one of this machine: a full disk, or a
    cache that is read-only. One of the network is for the caller.
    """
    if not isinstance(error, OSError) or error.errno is None or error.errno in _UNREACHABLE:
        return
    if not isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
        said = f'{error.strerror}, while {name!r} was fetched into the cache of Hugging Face'
        raise OSError(error.errno, said, error.filename) from None


def answered(error: Exception) -> str:
    """What the Hub answered to a request that ended in `error`, and the way out, in a sentence
    without its end; '' if it did not answer.
    """
    for cause in (error, error.__cause__):  # a library that looks into its cache raises an own one
        response = getattr(cause, 'response', None)
        if response is None:
            continue
        status = response.status_code
        said = getattr(cause, 'server_message', None) or response.reason_phrase
        told = f'the Hub answered {status}: {" ".join(said.split())[:300]}'
        if status in (401, 403):
            return f'{told.rstrip(".")}. {_TOKEN}'
        return f'{told.rstrip(".")}. Try again later' if status == 429 or status >= 500 else told
    return ''


def refused(what: str, error: Exception, terms: str, name: str) -> FileNotFoundError:
    """The error to raise for a gated or unknown repository.

    Args:
      what: the repository, as the start of a sentence. error: huggingface_hub's.
      terms, name: what the Hub asks to accept, and what it is found by, in words of the user.
    """
    from huggingface_hub import errors

    way = (
        f'does not exist on Hugging Face, or is private: check the {name}, or run `hf auth login` '
        'with an account that may read it'
    )
    if isinstance(error, errors.GatedRepoError):
        way = (
            f'asks you to accept its {terms} first: do so on its page, run `hf auth login`, and '
            'retry'
        )
    answer = answered(error)
    return FileNotFoundError(f'{what} {way}' + (f' ({answer})' if answer else ''))


def not_fetched(told: str, error: Exception, way_out: str) -> FileNotFoundError:
    """The error to raise for a download that failed otherwise.

    Args:
      told: what is missing, a sentence without its end.
      way_out: what helps if the Hub did not answer.
    """
    if answer := answered(error):
        return FileNotFoundError(f'{told}: {answer}')
    offline = f'{type(error).__name__}: no network, or offline mode'
    return FileNotFoundError(f'{told} ({offline}). {way_out}')
