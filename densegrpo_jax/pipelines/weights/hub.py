"""Model folders by name: a local folder, or a Hugging Face repository, downloaded or cached."""

import fnmatch
import pathlib
from collections.abc import Sequence

from densegrpo_jax.data.hub import answered, in_brackets, raise_if_local
from densegrpo_jax.runtime.reading import missing


def find_folder(
    name: str,
    *,
    option: str,
    holds: str,
    example: str,
    files: Sequence[str],
    ignored: Sequence[str] = (),
) -> pathlib.Path:
    """The folder `name` itself, or a local copy of the Hugging Face repository of that id.

    Args:
      option: the configuration key that `name` came from; with `holds` (what the folder must be)
        and `example` (an id) for messages.
      files, ignored: glob patterns of files to download, and of files to skip.

    Raises:
      FileNotFoundError: neither exists, the repository cannot be read, or one of the `files` is a
        link to nothing, a pipe or a device; the message says what to do. OSError: the cache cannot
        be read or written.
    """
    folder = pathlib.Path(name).expanduser()
    if name and folder.is_dir():
        _check_files(folder, files, ignored)
        return folder
    if name.count('/') != 1 or name.startswith(('.', '/', '~')):
        raise FileNotFoundError(
            f'{option}={name!r} is not a folder. Give {holds}, or a Hugging Face id such as '
            f'{example}'
        )
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = pathlib.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=list(files), ignore_patterns=list(ignored)
            )
        )
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        way = (
            'does not exist on Hugging Face, or is private: check the id, or run `hf auth login` '
            'with an account that may read it'
        )
        if isinstance(error, errors.GatedRepoError):
            way = (
                'asks you to accept its licence first: do so on its page, run `hf auth login`, and '
                'retry'
            )
        told = f'the repository {name!r} {way}{in_brackets(error)}'
        raise FileNotFoundError(told) from None
    except (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
    ) as error:
        raise_if_local(error, name)
        told = f'the weights {name!r} are not on this machine and could not be fetched'
        if answer := answered(error):
            raise FileNotFoundError(f'{told}: {answer}') from None
        raise FileNotFoundError(
            f'{told} ({type(error).__name__}: no network, or offline mode). Fetch them on a '
            f'machine with network (accept the licence on its page, `hf auth login`, `hf download '
            f'{name} --local-dir DIR`) and pass --config.{option}=DIR, {holds}'
        ) from None
    _check_files(folder, files, ignored)
    return folder


def _check_files(folder: pathlib.Path, files: Sequence[str], ignored: Sequence[str]) -> None:
    """Raises FileNotFoundError if one is no file, but a pipe, for example, or a link to nothing:
    Hugging Face's cache has links to its `blobs`, which tools that free disk space remove.
    """
    matches = lambda name, patterns: any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    for path in sorted((*folder.iterdir(), *folder.glob('*/*'))):
        name = path.relative_to(folder).as_posix()
        if path.is_file() or path.is_dir() or not matches(name, files) or matches(name, ignored):
            continue
        if path.exists():
            raise missing(path, str(path))
        raise FileNotFoundError(
            f'{path} is a link to {path.readlink()}, which does not exist: the file was removed '
            'from the cache, or its disk is absent. Delete the link and fetch the file again (`hf '
            f'download REPOSITORY {name}`)'
        )
