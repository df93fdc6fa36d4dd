import collections
import re
from pathlib import Path

import numpy as np
import pytest

from densegrpo_jax.data import scenes as S
from densegrpo_jax.data.prompts import PromptSet, quoted_target

# Flow-GRPO's test set, where a copy lies beside the repository
OCR_TEST = Path(__file__).parents[3] / 'shared' / 'data' / 'ocr_test.txt'


@pytest.fixture(scope='module')
def generated():
    return S.scene_prompts(20_000, seed=0)


def test_twenty_thousand_distinct_varied_prompts(generated):
    assert len({p.text for p in generated}) == 20_000
    assert len({p.target for p in generated}) > 8_000
    words = collections.Counter(len(p.target.split()) for p in generated)
    assert set(words) == {1, 2, 3, 4, 5} and max(words.values()) < 12_000
    assert len({p.metadata['domain'] for p in generated}) >= 24


def test_each_prompt_has_one_pair_of_quotes_and_a_clean_target(generated):
    for prompt in generated:
        assert (
            prompt.text.count('"') == 2
            and quoted_target(prompt.text) == prompt.target == prompt.metadata['target']
        )
        assert re.fullmatch(r'[A-Za-z0-9]+( [A-Za-z0-9]+)*', prompt.target)
        assert len(prompt.target) <= S.MAX_CHARACTERS
        assert '{' not in prompt.text and prompt.text[0].isupper()


def test_seeded_and_a_longer_set_starts_with_the_shorter():
    assert S.scene_prompts(50, 3) == PromptSet(S.scene_prompts(80, 3)[:50])
    assert S.scene_prompts(50, 4) != S.scene_prompts(50, 3)


def test_every_phrase_of_the_grammar_can_be_used():
    rng = np.random.default_rng(0)
    for domain in S.grammar()['domain']:
        slots = S.grammar()['shared'] | domain.get('slots', {})
        for phrase in domain['phrases']:
            fits = [
                p
                for p in (S.expand(phrase, slots, rng) for _ in range(40))
                if len(p.split()) <= 5 and len(p) <= 30
            ]
            assert fits, f'{domain["name"]}: {phrase}'


def test_articles_fit_the_nouns():
    for domain in S.grammar()['domain']:
        for text in (*domain['carriers'], *domain['places'], *domain['details']):
            assert not re.search(r'\ba [aeio]|\ban [^aeio]', text), text


def test_expand():
    rng = np.random.default_rng(0)
    slots = {'name': ['Ada', 'Bo'], 'pair': ['{name} and {name}'], 'only': ['x']}
    seen = {S.expand('{pair} {1-3}', slots, rng) for _ in range(200)}
    assert seen == {f'{pair} {n}' for pair in ('Ada and Bo', 'Bo and Ada') for n in (1, 2, 3)}
    with pytest.raises(
        ValueError, match=r'unknown slot \{nam\} in .*known slots: name, only, pair'
    ):
        S.expand('{nam}', slots, rng)


def test_excluded_targets_are_never_generated(monkeypatch):
    common = collections.Counter(p.target for p in S.scene_prompts(500, 0)).most_common(8)
    banned = {S.target_hash(target.upper()) for target, _ in common}
    monkeypatch.setattr(S, 'excluded_hashes', lambda: frozenset(banned))
    assert not {t for t, _ in common} & {p.target for p in S.scene_prompts(500, 0)}


def test_too_many_prompts_is_an_error(monkeypatch):
    tiny = {
        'frames': ['a {carrier} "{phrase}"'],
        'shared': {},
        'domain': [
            {
                'name': 'd',
                'carriers': ['cup'],
                'places': [''],
                'details': [''],
                'phrases': ['Hi', 'Ho'],
            }
        ],
    }
    monkeypatch.setattr(S, 'grammar', lambda: tiny)
    assert {p.text for p in S.scene_prompts(2, 0)} == {'A cup "Hi"', 'A cup "Ho"'}
    with pytest.raises(ValueError, match='count = 3: the grammar yielded only 2'):
        S.scene_prompts(3, 0)


@pytest.mark.skipif(not OCR_TEST.is_file(), reason="Flow-GRPO's ocr_test.txt is not at hand")
def test_disjoint_from_the_ocr_test_set(generated):
    test = PromptSet.from_text(OCR_TEST)
    assert len(test) == 1018
    assert not {p.target.lower() for p in test} & {p.target.lower() for p in generated}
    assert not {p.text.lower() for p in test} & {p.text.lower() for p in generated}
    assert {S.target_hash(p.target) for p in test} == S.excluded_hashes()
