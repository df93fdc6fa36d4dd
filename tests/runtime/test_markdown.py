"""Tables of the pages that commands write."""

from densegrpo_jax.runtime.markdown import table


def test_a_table_keeps_its_columns_whatever_a_cell_says():
    assert (
        table(('a', 'b'), [('1', 'x | y'), ('', '2')])
        == '| a | b |\n| --- | --- |\n| 1 | x \\| y |\n|  | 2 |'
    )
