"""The Dockerfiles, without Docker: what they copy is there, and the steps that they run install the
package.
"""

import fnmatch
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / 'containers').glob('*.Dockerfile'))


def steps(path):
    """[(instruction, its text)] of a Dockerfile."""
    lines = re.sub(r'\\\n', ' ', path.read_text(encoding='utf-8')).splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith('#')]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def copied(path):
    """Every file and folder that a Dockerfile copies, relative to the repository."""
    return [
        source
        for instruction, text in steps(path)
        if instruction == 'COPY'
        for source in text.split()[:-1]
    ]


def built_in(path, folder):
    """Does what COPY does, into `folder`."""
    for instruction, text in steps(path):
        if instruction == 'COPY':
            *sources, target = text.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns('__pycache__')
                    shutil.copytree(ROOT / source, folder / target, symlinks=True, ignore=ignored)
                else:
                    shutil.copy(ROOT / source, folder / target)


def test_there_is_one_for_each_kind_of_machine():
    assert [path.stem for path in FILES] == ['cpu', 'cuda', 'tpu']


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_what_is_copied_is_there_and_not_ignored(path):
    ignore = (ROOT / '.dockerignore').read_text(encoding='utf-8').splitlines()
    kept = [line[1:] for line in ignore if line.startswith('!')]
    for source in copied(path):
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_steps_are_in_an_order_that_works(path):
    """Requirements are copied, with those that they include, before they are installed; what the
    build of the package reads, before the package is.
    """
    here, installed = set(), []
    for instruction, text in steps(path):
        if instruction == 'COPY':
            here.update(text.split()[:-1])
        if instruction == 'RUN':
            words = shlex.split(text)
            assert words[:2] == ['pip', 'install'], text
            if '-r' in words:
                name = words[words.index('-r') + 1]
                inner = re.findall(r'^-r (\S+)', (ROOT / name).read_text(), re.MULTILINE)
                assert {name, *inner} <= here
            installed.append(words[-1])
    suffix = '' if path.stem == 'cpu' else f'-{path.stem}'
    assert installed == [f'requirements{suffix}.txt', '.']
    assert {'pyproject.toml', 'README.md', 'LICENSE', 'configs', 'densegrpo_jax'} <= here
    [image] = [text for instruction, text in steps(path) if instruction == 'FROM']
    # 3.11 is the Python whose requirements are pinned
    assert image.startswith('python:3.11-')


def test_the_head_of_each_file_builds_that_file():
    for path in FILES:
        [build] = re.findall(r'^#   docker build (.*)$', path.read_text(), re.MULTILINE)
        assert build == f'-f containers/{path.name} -t densegrpo:{path.stem} .'


@pytest.mark.slow
def test_the_steps_install_a_command_that_answers(tmp_path):
    """The CPU's steps, from a copy, in an environment that sees this one's packages."""
    [path] = [path for path in FILES if path.stem == 'cpu']
    image, installed = tmp_path / 'image', tmp_path / 'installed'
    image.mkdir()
    built_in(path, image)
    pip = [sys.executable, '-m', 'pip', 'install', '--disable-pip-version-check', '--no-index']
    met = subprocess.run(
        [*pip, '--dry-run', '-r', 'requirements.txt'], cwd=image, capture_output=True, text=True
    )
    assert met.returncode == 0 and 'Would install' not in met.stdout, met.stdout + met.stderr
    done = subprocess.run(
        [*pip, '--no-deps', '--no-build-isolation', '--target', str(installed), '.'],
        cwd=image,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = subprocess.run(
        [sys.executable, '-P', '-m', 'densegrpo_jax', '--help'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(installed)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0 and 'usage: densegrpo COMMAND' in answer.stdout, answer.stderr
    assert (installed / 'densegrpo_jax' / 'configs' / 'tiny_ocr.py').is_file()
    assert (installed / 'bin' / 'densegrpo').is_file()
