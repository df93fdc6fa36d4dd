"""A search of four prompts with a real pipeline of a few thousand weights."""

import dataclasses

from densegrpo_jax.data.prompts import Prompt
from densegrpo_jax.search import run

PROMPTS = [Prompt('a red sign'), Prompt('a green sign'), Prompt('a blue sign')]
# Batches of two alone, which compile once.
EVEN = [*PROMPTS, Prompt('a grey sign')]


def changed(session, **options):
    """The session with other options of `search`."""
    config = session.config.copy_and_resolve_references()
    config.search.update(**options)
    return dataclasses.replace(session, config=config)


def searched(session, prompts, out, **given):
    """Of the base, into a folder."""
    results = run.open_results(session, None, prompts, out, **given)
    return run.search(session, None, prompts, results, **given)
