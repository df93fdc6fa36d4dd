"""What a run's folder says of how it was started."""

import json

import pytest

from densegrpo_jax.config.schema import default_config
from densegrpo_jax.viewing.command import COMMAND, NEWEST, read_command
from densegrpo_jax.viewing.run_data import RECIPE
from densegrpo_jax.viewing.started import Start, write_start


def test_the_first_start_stays_where_the_run_continues_by_its_own_file(tmp_path):
    recipe = default_config()
    config = recipe.copy_and_resolve_references()
    config.iterations = 3
    of = lambda config: config.to_json_best_effort()
    read = lambda name: (tmp_path / name).read_text().strip()

    write_start(tmp_path, config, Start('train --config=a --config.iterations=3', of(recipe)))
    assert json.loads(read('config.json'))['iterations'] == 3
    assert json.loads(read(RECIPE))['iterations'] == recipe.iterations

    write_start(tmp_path, config, Start('train --config=config.json', of(config)))
    assert read(COMMAND) == 'train --config=a --config.iterations=3'
    assert json.loads(read(RECIPE))['iterations'] == recipe.iterations

    config.iterations = 5
    write_start(tmp_path, config, Start('train --config=b', of(config)))
    assert read(COMMAND) == 'train --config=b' and json.loads(read(RECIPE))['iterations'] == 5


def test_the_configuration_of_an_earlier_version_is_the_run_s_own_too(tmp_path):
    """It lacks keys that came later, which have their defaults then."""
    of = default_config().to_json_best_effort()
    write_start(tmp_path, default_config(), Start('train --config=a', of))
    earlier = json.loads(of)
    del earlier['guard'], earlier['eval']['groups']
    earlier['credit']['completion_solver'] = 'euler'  # a key of then
    (tmp_path / 'config.json').write_text(json.dumps(earlier))
    write_start(tmp_path, default_config(), Start('train --config=config.json', of))
    assert read_command(tmp_path).command == 'train --config=a'


@pytest.mark.parametrize('folder', ['/home/a b', ''])
@pytest.mark.parametrize('processes', [1, 16])
def test_the_folder_of_the_command_and_its_processes_are_kept_with_it(tmp_path, folder, processes):
    command = "densegrpo train --config=a --config.reward='{\n# in /x\n}'"
    write_start(tmp_path, default_config(), Start(command, '', folder), processes)
    assert read_command(tmp_path) == (command, folder, processes)


def test_a_later_start_is_kept_apart(tmp_path):
    config = default_config()
    of = config.to_json_best_effort()
    write_start(tmp_path, config, Start('train --config=a --device=gpu', of, '/a'))
    write_start(tmp_path, config, Start('train --config=config.json --device=cpu', of, '/b'), 2)
    assert read_command(tmp_path) == ('train --config=a --device=gpu', '/a', 1)
    newest = ('train --config=config.json --device=cpu', '/b', 2)
    assert read_command(tmp_path, NEWEST) == newest


def test_nothing_is_said_where_nothing_is_known(tmp_path):
    write_start(tmp_path, default_config(), Start())
    assert [path.name for path in tmp_path.iterdir()] == ['config.json']
