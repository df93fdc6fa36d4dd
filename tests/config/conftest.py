"""What tests of the command line share: a command, called with arguments."""

import sys

import pytest
from absl import app, flags

from densegrpo_jax.config import command_line


@pytest.fixture
def typed(monkeypatch, capsys):
    """(exit status, what was printed as an error, the configuration) of a command that was called
    with these arguments.
    """

    def typed(*arguments, main=None, extra=False, of_run=False, reads=''):
        values = flags.FlagValues()
        monkeypatch.setattr(flags, 'FLAGS', values)
        monkeypatch.setattr(sys, 'argv', ['command', *arguments])
        monkeypatch.setattr(app, 'run', lambda run, flags_parser: run(flags_parser(sys.argv)))
        flag = command_line.config_flags.DEFINE_config_file('config', None, flag_values=values)
        values['config'].parser = command_line._Configuration(of_run=of_run, reads=reads)
        flags.DEFINE_string('workdir', None, '', flag_values=values)
        with pytest.raises(SystemExit) as end:
            command_line.run_main(main or (lambda flag: 0), extra=extra)
        return end.value.code, capsys.readouterr().err, flag.value if end.value.code == 0 else None

    return typed
