import re

import pytest

from densegrpo_jax.data import prompts as P
from densegrpo_jax.data.prompt_files import prompts_from
from densegrpo_jax.data.words import held_out_words, train_words


def test_templates_are_short_and_quote_their_word_once():
    for template in P.SCENES.values():
        before, after = template.split('{}')
        assert before.endswith(' "') and after == '"'
        assert len(before.split()) - 1 <= 7


def test_tiny_sets_hold_every_word_and_no_held_out_word_is_trained():
    train, evaluation = P.tiny_train_prompts(), P.tiny_eval_prompts()
    assert len(train) == len(P.SCENES) * len(train_words())
    assert len({p.text for p in train}) == len(train)
    assert sorted(p.target for p in evaluation) == sorted(held_out_words())
    assert {
        s: sum(p.metadata['scene'] == s for p in evaluation) for s in P.SCENES
    } == dict.fromkeys(P.SCENES, 40)
    assert P.tiny_eval_prompts() == evaluation
    held_out = set(held_out_words())
    for prompt in train:
        assert not held_out & set(re.findall('[A-Z]+', prompt.text.upper())), prompt.text


def test_prompt_carries_its_target():
    prompt = P.scene_prompt('neon', 'HELLO')
    assert prompt.text == 'A neon sign that says "HELLO"'
    assert prompt.target == prompt.metadata['target'] == P.quoted_target(prompt.text) == 'HELLO'
    with pytest.raises(ValueError, match="unknown scene 'moon'.*neon"):
        P.scene_prompt('moon', 'HELLO')


def test_text_file_with_targets(tmp_path):
    path = tmp_path / 'prompts.txt'
    path.write_text('A cup with "Café No 9" and "more"\n\n  A wall: " Hi "  \n', encoding='utf-8')
    prompts = P.PromptSet.from_text(path)
    assert [p.target for p in prompts] == ['Café No 9', 'Hi']
    assert prompts[1].text == 'A wall: " Hi "'
    assert prompts[0].metadata == {'target': 'Café No 9'}


@pytest.mark.parametrize('line', ['a cat', 'a "cat', 'a sign that says ""', 'a “cat”', 'a " " cat'])
def test_line_without_target_is_named(tmp_path, line):
    path = tmp_path / 'prompts.txt'
    path.write_text(f'A sign "OK"\n\n{line}\n', encoding='utf-8')
    with pytest.raises(
        ValueError, match=r'prompts\.txt:3: expected a target between straight double quotes'
    ):
        P.PromptSet.from_text(path)
    assert P.PromptSet.from_text(path, quoted_target=False)[1] == P.Prompt(line)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.txt'):
        P.PromptSet.from_text(tmp_path / 'nowhere.txt')
    (tmp_path / 'empty.txt').write_text('\n\n')
    with pytest.raises(ValueError, match='empty.txt'):
        P.PromptSet.from_text(tmp_path / 'empty.txt')


def test_joined_files_leave_no_mark_in_a_prompt(tmp_path):
    part = 'A sign "ONE"\n'.encode('utf-8-sig')
    (tmp_path / 'p.txt').write_bytes(part + part)
    assert {p.text for p in P.PromptSet.from_text(tmp_path / 'p.txt')} == {'A sign "ONE"'}
    assert P.check_text('\ufeffa\ufeffb ', 'here') == 'ab'


@pytest.mark.parametrize('name', ['p', 'p.txt', 'p.TXT'])
def test_a_text_file_may_be_called(tmp_path, name):
    (tmp_path / name).write_text('A sign "ONE"\n')
    assert [p.target for p in prompts_from(tmp_path / name, quoted_target=True)] == ['ONE']


@pytest.mark.parametrize('name, text', [('p', 'A "ONE"'), ('p.csv:caption', 'caption\nA "ONE"')])
def test_a_file_of_the_home_folder(tmp_path, monkeypatch, name, text):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / name.partition(':')[0]).write_text(text)
    assert [p.target for p in prompts_from(f'~/{name}', quoted_target=True)] == ['ONE']
