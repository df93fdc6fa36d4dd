"""Command: prints the reference page of all configuration keys.

python -m densegrpo_jax.config --markdown > docs/config.md
"""

import argparse

from densegrpo_jax.config.page import markdown

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--markdown', action='store_true', required=True, help='as Markdown')
    parser.parse_args()
    print(markdown(), end='')
