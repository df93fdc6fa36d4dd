"""Prompts from files and data sets, whose names say their kind."""

from __future__ import annotations

import pathlib

from densegrpo_jax.data.geneval import geneval_prompts
from densegrpo_jax.data.hub import PREFIX, hub_prompts
from densegrpo_jax.data.prompts import PromptSet
from densegrpo_jax.data.tables import FILE, file_prompts


def prompts_from(name: str, use: str = 'eval', *, quoted_target: bool) -> PromptSet:
    """The prompts that `name` names: hf:OWNER/NAME[:COLUMN][@SPLIT], a data set of the Hugging Face
    Hub; FILE.csv[:COLUMN] or FILE.parquet[:COLUMN], a table; FILE.jsonl, GenEval prompts;
    FILE.txt, or a name without a suffix, a text file with one prompt per line. ~ is the home
    folder.

    Args:
      use: 'train' or 'eval', for data sets with splits.
      quoted_target: as in `PromptSet.from_text`.

    Raises:
      FileNotFoundError: it is not there. ModuleNotFoundError: it needs pyarrow.
      ValueError: it cannot be read, or holds no prompt.
    """
    name = str(name)
    if name.startswith(PREFIX):
        return hub_prompts(name, use, quoted_target=quoted_target)
    if name.startswith('~'):
        name = str(pathlib.Path(name).expanduser())
    if (found := FILE.fullmatch(name)) and not pathlib.Path(name).is_dir():
        return file_prompts(found['path'], found['column'] or '', quoted_target=quoted_target)
    suffix = pathlib.Path(name).suffix
    if suffix.lower() == '.jsonl':
        return geneval_prompts(name)
    if suffix.lower() not in ('', '.txt'):
        raise ValueError(
            f'prompt file {name}: files of the kind {suffix} are not read; expected .txt or no '
            'suffix (one prompt per line), .csv or .parquet (a table), .jsonl (GenEval prompts)'
        )
    return PromptSet.from_text(pathlib.Path(name), quoted_target=quoted_target)
