"""How tests check the shapes and types that core states; conftest.py puts it in place."""

from beartype import BeartypeConf, beartype

# An int stands where a float is expected, as everywhere in Python.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
