"""The flags that commands share, and their handling of mistakes in the arguments: one line, and
status 2.

Commands import what they run inside their `main`: it takes seconds, and mistakes are told before.
"""

from __future__ import annotations

import inspect
import pathlib
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from densegrpo_jax.config.flag_messages import plainly
from densegrpo_jax.config.flag_types import define_whole, refuse
from densegrpo_jax.config.given import NONE, check_flag_files, check_given
from densegrpo_jax.config.help import show_help
from densegrpo_jax.config.key import SCIENCE
from densegrpo_jax.config.label import Told, relabel, told
from densegrpo_jax.config.loading import load
from densegrpo_jax.config.of_run import told_otherwise, with_own_configuration
from densegrpo_jax.config.reads import READS, REFUSE, WARN, check_reads
from densegrpo_jax.config.unknown import check_key
from densegrpo_jax.runtime import console, entry, full_memory, paths
from densegrpo_jax.runtime.backends import BACKENDS, HEARTBEAT_SECONDS
from densegrpo_jax.runtime.leaving import leave

UNUSABLE = entry.UNUSABLE  # exit status: arguments, settings or files that cannot be used
# the errors that such arguments raise, wherever they are found
UNUSABLE_ERRORS = (app.UsageError, ValueError, OSError, ModuleNotFoundError)

# flags defined here belong to the calling command, whose --help lists them
flags.disclaim_key_flags()


def run_main(main: Callable[..., int | None], *, extra: bool = False) -> None:
    """Parses the flags, calls `main(flags.FLAGS)` and exits with the status that it returns.

    `UNUSABLE_ERRORS` become one line and status 2; any other exception is a fault of the program
    and keeps its traceback, with what helps after it if a device's memory is full.

    Args:
      extra: the command takes arguments that are not flags, as `main(flags.FLAGS, arguments)`.
    """

    def run(argv):
        try:
            if argv[1:] and not extra:
                raise app.UsageError(
                    f'unexpected arguments {argv[1:]}; settings are given as --config.key=value'
                )
            console.start()
            with entry.interruptible():
                sys.exit(main(flags.FLAGS, argv[1:]) if extra else main(flags.FLAGS))
        except UNUSABLE_ERRORS as error:
            _refuse(error)
        except RuntimeError as error:
            if 'home directory' not in str(error):  # pathlib's, of ~NAME/folder
                full_memory.explain(error)
                raise
            _refuse(
                f'a path begins with ~ and the name of a user whom this machine lacks ({error})'
            )

    def run_to_its_end(argv):
        try:
            run(argv)
        except SystemExit as end:
            leave(end)

    app.run(run_to_its_end, flags_parser=_parse)


def define_config(
    help_string: str,
    *,
    training: bool = True,
    listed: bool = False,
    reads: str = '',
    of_run: bool = False,
) -> None:
    """The flag --config=RECIPE[:VARIANT], whose keys are set by --config.key=value.

    Args:
      training: the configuration is one of a training run, with every key of the table.
      listed: --help lists the keys.
      reads: the command, a name in `reads.READS`: keys that it does not read are refused, unless
        its flag --unread says otherwise; '': it reads all.
      of_run: without --config it is that of the run in --workdir.
    """
    try:
        check_flag_files(sys.argv)
        # reads --flagfile already now
        config_flags.DEFINE_config_file('config', None, help_string, lock_config=True)
    except (flags.Error, ValueError, OSError) as error:
        _refuse(error)
    # the library's own flag lets any error through
    flags.FLAGS['config'].parser = _Configuration(training, listed, reads, of_run)
    if reads:
        what = 'What happens to keys of the command line that decide results and are not read.'
        flags.DEFINE_enum('unread', REFUSE, [REFUSE, WARN], what)


def define_folder(name: str, default: str | None, help_string: str) -> None:
    """A flag that names a folder of this machine, as a path without ~; None if optional. Those that
    cannot be used (`runtime.paths.folder_problem`) are refused before anything is written.
    """
    flags.DEFINE(_Folder(), name, default, help_string, serializer=flags.ArgumentSerializer())
    refuse(name, paths.folder_problem)


def define_runs() -> None:
    """The flag --workdir of commands that show several runs: repeatable, at least one."""
    flags.DEFINE_multi_string('workdir', None, 'A training run. Repeatable: runs side by side.')
    refuse('workdir', lambda folders: next(filter(None, map(paths.folder_problem, folders)), None))
    flags.mark_flag_as_required('workdir')


def goes_with(name: str, other: str) -> None:
    """Makes it an error to give the flag `name` without the flag `other`."""
    flags.register_multi_flags_validator(
        [name, other],
        lambda values: bool(values[other] or not flags.FLAGS[name].present),
        f'--{name} is given without --{other}, and would be ignored',
    )


def define_seeds(count: int) -> None:
    """The flag --seeds of commands that train several; by default 0 ... count - 1."""
    help_string = 'Seeds; every variant runs with each.'
    flags.DEFINE_list('seeds', [str(seed) for seed in range(count)], help_string)
    flags.register_validator(
        'seeds',
        lambda seeds: (
            bool(seeds)
            and len(set(seeds)) == len(seeds)
            and all(s.isascii() and s.isdecimal() and int(s) < 2**32 for s in seeds)
        ),
        'expected different whole numbers below 2^32, as in --seeds=0,1,2',
    )


def define_run_flags(*, listed: bool = False, reads: str = '') -> None:
    """Defines the flags of `sampling.execution.execute`. Only commands call it: importing a module
    defines none. listed, reads: as in `define_config`.
    """
    what = 'Recipe, by its name or file, with :devices=N,method=NAME; see docs/config.md.'
    define_config(what, listed=listed, reads=reads)
    define_folder('workdir', None, 'Where checkpoints, metrics and images go.')
    define_process_flags()


def define_policy_flags(use: str) -> None:
    """The flags of commands that draw prompts with a policy; `use` describes its use."""
    define_folder('workdir', None, f'Training run whose policy is {use}; none: the base model.')
    flags.DEFINE_string('checkpoint', 'best', "'best', 'latest' or a step of that run.")
    goes_with('checkpoint', 'workdir')
    flags.DEFINE_multi_string('prompt', [], 'A prompt; may be given more than once.')
    flags.DEFINE_string('prompts', None, 'Prompts: a file or a data set, as in data.eval.')


def define_process_flags() -> None:
    """The flags for devices and processes."""
    flags.DEFINE_enum(
        'device',
        '',
        ['', *BACKENDS],
        'The device that the run needs, else it ends; empty: any device.',
    )
    virtual = 'Virtual devices on a CPU; 0 = one per core, as far as the batch divides.'
    define_whole('cpu_devices', 0, virtual, 0, 1024)
    flags.DEFINE_enum(
        'distributed',
        'auto',
        ['auto', 'on', 'off'],
        'Whether this is one of several processes of the run.',
    )
    flags.DEFINE_string(
        'coordinator', '', 'HOST:PORT of process 0, if no cluster manager knows it.'
    )
    most = 1_000_000
    define_whole('num_processes', 0, 'With --coordinator: the number of processes.', 0, most)
    define_whole('process_id', -1, 'With --coordinator: the index of this one, from 0.', -1, most)
    dead = 'Seconds after which a dead process ends the others.'
    define_whole('heartbeat', HEARTBEAT_SECONDS, dead, 1, 86_400)


def say_start(command: str, results: str | pathlib.Path = '') -> None:
    """The first line of a command: its configuration, and the folder or file of its results. For
    `main`, before its imports.
    """
    parser = _configuration()
    named = f' with --config={parser.argument}' if parser else ''
    where = f', results go to {pathlib.Path(results).expanduser().absolute()}' if results else ''
    logging.info('%s%s%s', command, named, where)


def given_recipe() -> str:
    """The configuration that --config names, without the keys of the command line, as JSON; ''
    where no command line was read.
    """
    return getattr(flags.FLAGS['config'].parser, 'recipe', '') if 'config' in flags.FLAGS else ''


def given_keys() -> set[str]:
    """The keys that the command line sets, after the flags were parsed."""
    if _configuration() is None or flags.FLAGS['config'].value is None:
        return set()
    return {*config_flags.get_override_values(flags.FLAGS['config'])}


def check_read_keys() -> None:
    """Refuses keys that the command does not read, or says so."""
    parser, given = _configuration(), given_keys()
    if parser is None or not parser.reads or not given:
        return
    if parser.training:
        from densegrpo_jax.config.identity import kind_of  # imports jax

        given = {key for key in given if kind_of(key) == SCIENCE}
    try:
        check_reads(parser.reads, READS[parser.reads], given)
    except ValueError as error:
        if flags.FLAGS.unread == REFUSE:
            raise
        print(f'note: {error}', file=sys.stderr)


def _tell_otherwise() -> None:
    """Says what a named configuration sets otherwise than the run whose policy is used. Keys of the
    command line are meant as they are.
    """
    parser = _configuration()
    if parser is None or not (parser.of_run and parser.reads and flags.FLAGS.workdir):
        return
    reads, given = READS[parser.reads], given_keys()
    asked = reads._replace(but=(*reads.but, *given))
    if told := told_otherwise(pathlib.Path(flags.FLAGS.workdir), flags.FLAGS.config, asked):
        print(
            f"note: --config={parser.argument} sets {told}: leave --config out to take the run's",
            file=sys.stderr,
        )


class _Folder(flags.ArgumentParser):
    """A path whose ~ is the home folder."""

    def parse(self, argument: str) -> str:
        return str(pathlib.Path(argument).expanduser()) if argument.startswith('~') else argument

    def flag_type(self) -> str:
        return 'string'


class _Configuration(flags.ArgumentParser):
    """Loads the file, and checks the keys that the command line sets before the library looks for
    them. The arguments are those of `define_config`.
    """

    def __init__(
        self, training: bool = True, listed: bool = False, reads: str = '', of_run: bool = False
    ):
        self.training, self.listed, self.reads, self.of_run = training, listed, reads, of_run
        self.argument = self.recipe = ''
        self.told: Told | None = None  # by the recipe's label

    def parse(self, argument: str) -> ConfigDict:
        try:
            config = load(argument)
            self.argument, self.recipe = argument, config.to_json_best_effort(indent=2)
            if self.training:
                from densegrpo_jax.config.validation import check_names  # imports jax

                check_names(config)
                self.told = told(config)
            for given in flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False):
                if key := re.match(r'--?(?:no)?config\.([^=]*)', given):
                    check_key(config, key[1], given)
        except ValueError as error:
            raise flags.Error(str(error)) from error
        return config.lock()

    def flag_type(self) -> str:
        return 'configuration file'


def _configuration() -> _Configuration | None:
    """The parser of --config; None for a command without it."""
    parser = flags.FLAGS['config'].parser if 'config' in flags.FLAGS else None
    return parser if isinstance(parser, _Configuration) else None


def _parse(args: list[str]) -> list[str]:
    config = _configuration()
    try:
        check_flag_files(args)
        if any(arg.lstrip('-').startswith('help') for arg in args[1:]):
            training = config is not None and config.training
            show_help(args, keys=training, listed=config is not None and config.listed)
        if config is not None and config.of_run:
            args = with_own_configuration(args)
        left = flags.FLAGS(args)
        may_lack = _may_lack()
        check_given(args, [f'config.{key}' for key in may_lack])
        if lacking := [key for key in given_keys() & may_lack if _override(key) == NONE]:
            flags.FLAGS.config.update_from_flattened_dict(dict.fromkeys(lacking, ''))
        if config is not None and config.told and 'label' not in given_keys():
            relabel(flags.FLAGS.config, config.told)
        check_read_keys()
        _tell_otherwise()
        return left
    except flags.UnrecognizedFlagError as error:
        _refuse(f'{error}{_keys_of(error.flagname)}\n(--help lists the flags)')
    # ValueError: also for --noswitch=value. RuntimeError: a path that begins with ~NOBODY.
    except (flags.Error, ValueError, OSError, RuntimeError) as error:
        _refuse(f'{plainly(str(error), args)}\n(--help lists the flags)')


def _keys_of(name: str) -> str:
    """For messages: the keys of a training's configuration that a flag's name may be meant for."""
    parser = _configuration()
    if parser is None or not parser.training:
        return ''
    from densegrpo_jax.config.schema import KEYS  # imports jax

    found = [f'--config.{key}' for key in KEYS if key.rpartition('.')[2] == name]
    return f'; did you mean {" or ".join(found[:3])}?' if found else ''


def _may_lack() -> set[str]:
    """The keys that may be without a value: those whose default is '', options of rewards among
    them, whose signature tells it. Of a configuration without a schema all texts.
    """
    parser = _configuration()
    if parser is None or not given_keys():
        return set()
    texts = {key for key in given_keys() if isinstance(_override(key), str)}
    options = {key for key in texts if key.startswith(('reward.', 'eval.panel.'))}
    may_lack = {key for key in options if _reward_default(key) == ''}
    if not parser.training:
        return may_lack | (texts - options)
    from densegrpo_jax.config.schema import KEYS  # imports jax

    return may_lack | {name for name, key in KEYS.items() if key.default == ''}


def _reward_default(key: str) -> object:
    """The default in a reward's signature of its option reward.NAME.OPTION, or
    eval.panel.NAME.OPTION; None if it has none.
    """
    from densegrpo_jax.rewards.build import resolve

    config = flags.FLAGS.config
    panel = key.startswith('eval.panel.')
    rewards = config.eval.panel if panel else config.reward
    name, *option = key.removeprefix('eval.panel.' if panel else 'reward.').split('.')
    kind = rewards[name].get('kind', name)
    parameter = inspect.signature(resolve(kind)).parameters.get('.'.join(option))
    return parameter and parameter.default


def _override(key: str) -> object:
    return config_flags.get_override_values(flags.FLAGS['config'])[key]


def said(error: object) -> str:
    """An error as a readable line; a system error with its file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        names = ' and '.join(str(n) for n in (error.filename, error.filename2) if n is not None)
        return f'{names}: {error.strerror}'
    return str(error)


def _refuse(reason: object) -> NoReturn:
    print(f'error: {said(reason)}', file=sys.stderr)
    sys.exit(UNUSABLE)
