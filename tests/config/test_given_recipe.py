"""The recipe that a command is given, or takes from its run, and mistakes in one's own file."""

import json
import pathlib

import pytest

TINY = str(pathlib.Path(__file__).parents[2] / 'configs' / 'tiny_ocr.py')


def test_a_label_tells_the_credit_and_the_reward_of_the_run(typed, tmp_path):
    recipe, credit = f'--config={TINY}', '--config.credit.rule=examples.own_method:rule'
    label = lambda *given: typed(*given)[2].label
    assert label(recipe, '--config.seed=3') == 'miniature FLUX, held-out OCR, dense credit'
    own = 'miniature FLUX, held-out OCR, credit examples.own_method:rule'
    assert label(recipe, credit) == own
    mine = f'{own}, but the reward is jpeg + mine'
    reward = "{'mine': {'kind': 'm:Mine'}, 'jpeg': {}}"
    assert label(recipe, credit, f'--config.reward={reward}') == mine
    assert label(recipe, credit, '--config.label=as given') == 'as given'
    assert label(f'{recipe}:method=gae', '--config.credit.rule=sparse').endswith(
        'OCR, gae, credit sparse'
    )
    file = tmp_path / 'own.yaml'
    file.write_text("recipe: tiny_ocr\nreward: {ocr: {kind: 'm:Mine'}}\ncredit: {rule: sparse}\n")
    of_file = 'miniature FLUX, held-out OCR, credit sparse, but the reward is m:Mine'
    assert label(f'--config={file}') == of_file
    assert label(f'--config={file}', '--config.credit.rule=gae').endswith(
        'but the reward is m:Mine, credit gae'
    )
    file.write_text('recipe: tiny_ocr\nlabel: Mine\ncredit: {rule: sparse}\n')
    assert label(f'--config={file}') == 'Mine'


def test_none_unsets_what_a_recipe_sets(typed, tmp_path):
    (tmp_path / 'own.yaml').write_text('recipe: tiny_ocr\nnoise.psi_path: psi.json\n')
    own = f'--config={tmp_path / "own.yaml"}'
    assert typed(own, '--config.label=x')[2].noise.psi_path == 'psi.json'
    _, _, config = typed(own, '--config.noise.psi_path=none', '--config.model.path=none')
    assert config.noise.psi_path == '' and config.model.path == 'none' and config.is_locked
    status, printed, _ = typed(own, '--config.noise.psi_path', ' ')
    assert status == 2 and '--config.noise.psi_path=none unsets' in printed
    assert typed(own, '--config.reward.ocr.mode=none')[2].reward.ocr.mode == 'none'  # as it is
    (tmp_path / 'own.yaml').write_text(
        'recipe: tiny_ocr\nreward: {remote: {urls: x, names: [a], token_env: TOKEN}}\n'
    )
    _, printed, config = typed(own, '--config.reward.remote.token_env=none')
    assert config.reward.remote.token_env == '', printed


def test_a_recipe_is_known_by_its_name_anywhere(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, given = (
        typed(f'--config={recipe}:method=flow_grpo', '--config.rollout.steps=4')
        for recipe in ('tiny_ocr', TINY)
    )
    assert named[:2] == given[:2] == (0, '') and named[2].is_locked
    assert named[2].to_json() == given[2].to_json() and named[2].credit.rule == 'sparse'
    # a file of one's own is found by its path alone
    (tmp_path / 'tiny_ocr').mkdir()
    assert typed('--config=tiny_ocr')[2].rollout.steps == 6


def test_without_a_recipe_a_command_takes_that_of_the_run(typed, tmp_path):
    run = lambda *arguments: typed(*arguments, of_run=True)
    (tmp_path / 'config.json').write_text('{"recipe": "tiny_ocr", "model": {"guidance": 2.5}}')
    key = '--config.model.width=64'
    for given in ([f'--workdir={tmp_path}', key], [key, '--workdir', str(tmp_path)]):
        code, said, config = run(*given)
        assert (code, config.model.guidance, config.model.width) == (0, 2.5, 64)
        assert f'it is that of the run, {tmp_path}/config.json' in said
    assert run(f'--workdir={tmp_path}', f'--config={TINY}')[2].model.guidance == 1.5
    code, said, _ = run(f'--workdir={tmp_path}/nowhere')
    assert code == 2 and f'there is no {tmp_path}/nowhere/config.json' in said
    code, said, _ = run(key)
    assert code == 2 and 'error: give --config=RECIPE, or --workdir=RUN, whose own' in said
    assert typed(f'--workdir={tmp_path}')[2] is None  # `train` begins with a recipe


def test_a_recipe_beside_a_run_is_told_from_the_run_s_own(typed, tmp_path):
    own = {'recipe': 'tiny_ocr', 'model.guidance': 2.5, 'model.width': 64, 'optim.eps': 1e-6}
    (tmp_path / 'config.json').write_text(json.dumps(own))
    run = lambda *given: typed(f'--workdir={tmp_path}', *given, of_run=True, reads='sample')[:2]
    code, said = run('--config=tiny_ocr', '--config.model.width=48')
    assert code == 0 and said == (
        'note: --config=tiny_ocr sets model.guidance=1.5, and the run has 2.5: leave --config out '
        "to take the run's\n"
    )
    code, said = run('--config.model.width=48')
    assert code == 0 and 'and the run has' not in said
    (tmp_path / 'config.json').write_text('damaged')
    assert run('--config=tiny_ocr') == (0, '')


def test_a_mistake_in_the_file_is_shown_where_it_is(typed, tmp_path):
    file = tmp_path / 'some.py'
    file.write_text(
        'from densegrpo_jax.config.schema import default_config\n\n\n'
        'def get_config():\n    c = default_config()\n    c.rollout.stepz = 3\n    return c\n'
    )
    status, printed, _ = typed(f'--config={file}')
    assert (
        status == 2
        and f'line 6 of {file}' in printed
        and 'c.rollout.stepz = 3' in printed
        and '"stepz" does not exist' in printed
    )


def test_options_without_a_default_take_any_value(typed, tmp_path):
    file = tmp_path / 'some.py'
    file.write_text(
        'from densegrpo_jax.config.schema import default_config\n'
        '\n'
        '\n'
        'def get_config():\n'
        '    c = default_config()\n'
        "    c.reward = {'asked': {'kind': 'judge'}}\n"
        '    return c\n'
    )
    options = ['urls=http://a:1', 'range=(0.0, 5.0)', 'timeout_s=7']
    status, printed, config = typed(
        f'--config={file}', *(f'--config.reward.asked.{option}' for option in options)
    )
    assert status == 0, printed
    expected = {'kind': 'judge', 'urls': 'http://a:1', 'range': (0.0, 5.0), 'timeout_s': 7.0}
    assert dict(config.reward.asked) == expected


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('def get_config():\n    pass\n', 'get_config() returned None; expected a configuration'),
        ('def get_config():\n    return {}\n', 'get_config() returned {}'),
        ('x = 1\ny = missing\n', "line 2 of {file}, 'y = missing': NameError"),
        ('def get_config():\n    return\n  1\n', "of {file}, '1': IndentationError"),
        ('def get_config():\n    a = {}\n    return a["b"]\n', 'KeyError: b'),
        (
            'import no_such_module\n',
            "line 1 of {file}, 'import no_such_module': ModuleNotFoundError",
        ),
        (
            'from configs.tiny_ocr import get_config as base\ndef get_config():\n'
            '    c = base()\n    c.rollout.steps = "six"\n    return c\n',
            'line 4 of {file}, ',
        ),
        (
            'import ml_collections\ndef get_config():\n'
            '    return ml_collections.ConfigDict({"dataset": "words"})\n',
            'the configuration has no key seed; start it from',
        ),
    ],
)
def test_a_mistake_in_a_configuration_file_is_a_line_of_it(typed, tmp_path, text, message):
    file = tmp_path / 'mine.py'
    file.write_text(text)
    status, error, _ = typed(f'--config={file}')
    assert status == 2 and message.replace('{file}', str(file)) in error, error
    assert 'Traceback' not in error


def test_a_line_is_named_where_the_path_is_relative_too(typed, tmp_path, monkeypatch):
    (tmp_path / 'mine.py').write_text('x = 1\ny = 1 / 0\n')
    monkeypatch.chdir(tmp_path)
    for name in ('mine.py', './mine.py'):
        status, error, _ = typed(f'--config={name}')
        assert status == 2 and "line 2 of mine.py, 'y = 1 / 0': ZeroDivisionError" in error
