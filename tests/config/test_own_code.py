"""A user's own code that changes: what was made with the code before is told from what is made now,
and goes on only where that is accepted.
"""

from densegrpo_jax.runtime.named import code_digest


def test_code_of_a_package_is_that_of_all_its_modules(tmp_path, monkeypatch):
    package = tmp_path / 'own_package'
    for folder in (package / 'inner', package / '.venv'):
        folder.mkdir(parents=True)
    for name in ('__init__', 'rewards', 'model', 'inner/loss', 'notes-1', '.venv/lib'):
        (package / f'{name}.py').write_text('')
    (tmp_path / 'own_module.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    digest = lambda: code_digest('own_package.rewards:Mine')
    seen = [digest()]
    for name in ('notes-1', '.venv/lib', '../own_module'):  # which it cannot import as its own
        (package / f'{name}.py').write_text('x = 1')
        assert digest() == seen[0]
    for name in ('__init__', 'rewards', 'model', 'inner/loss'):
        (package / f'{name}.py').write_text('x = 1')
        seen.append(digest())
    assert len({*seen, code_digest('own_module:x')}) == 6 and all(map(len, seen))
    assert code_digest('own_absent.rewards:Mine') == code_digest('sys:path') == ''
