"""transformers without its notice that PyTorch is absent: only tokenizers of it are used."""

import os
from types import ModuleType

_SILENT = 'TRANSFORMERS_NO_ADVISORY_WARNINGS'


def import_transformers() -> ModuleType:
    """Imports it, which takes a second: for where a tokenizer is opened or written."""
    given = os.environ.get(_SILENT)
    os.environ[_SILENT] = '1'
    try:
        import transformers
    finally:
        os.environ.pop(_SILENT)
        if given is not None:
            os.environ[_SILENT] = given
    return transformers
