"""Model folders by name: a local folder, or a Hugging Face repository, downloaded or cached."""

import fnmatch
import pathlib
from collections.abc import Sequence

from densegrpo_jax.runtime.hub_errors import not_fetched, raise_if_local, refused
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
        raise refused(f'the repository {name!r}', error, 'licence', 'id') from None
    except (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
    ) as error:
        raise_if_local(error, name)
        told = f'the weights {name!r} are not on this machine and could not be fetched'
        way_out = (
            'Fetch them on a machine with network (accept the licence on its page, `hf auth '
            f'login`, `hf download {name} --local-dir DIR`) and pass --config.{option}=DIR, {holds}'
        )
        raise not_fetched(told, error, way_out) from None
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
