"""Renders docs/methods.md: every method's idea, what is exact and what is our reading, its cost and
its result on the miniature.

    python -m tools.methods_page > docs/methods.md

Texts and settings are the rows of densegrpo_jax/config/methods.py and published.py. Costs are
counted in a run's own rollouts. Results are those of docs/results/methods.
"""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Iterator, Mapping

from densegrpo_jax.config.loading import load
from densegrpo_jax.config.method_row import Published
from densegrpo_jax.config.methods import METHODS
from densegrpo_jax.config.published import FLUX, PUBLISHED, RECIPES, SD35
from densegrpo_jax.runtime.markdown import table
from densegrpo_jax.sampling.cost import SampleCost
from experiments.equal_cost.budget import cost
from experiments.reproduction.records import Records

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = 'tiny_ocr'
STEPS = (6, 10)  # T of the miniature, and of the SD3.5 recipes
RESULTS = ROOT / 'docs' / 'results'
# Methods whose runs are variants of the reproduction, and one that trains on another reward.
VARIANTS = {'dense_grpo': 'dense', 'flow_grpo_weighted': 'sparse_weighted_2', 'gae': 'gae_0.5'}
ELSEWHERE = {'d2_align': 'its own reward 1.009 → 1.055 ([d2_align.md](d2_align.md))'}
WITH_EMBEDDING = 'tiny_scene'  # D2-Align needs a reward with an embedding
# Methods that train with a file -> the command that makes it, the variant that it takes, the file,
# and the key that names it.
FILES = {
    'euphonium': ('process_reward', ':{}', 'process.npz', 'guide.file'),
    'd2_align': ('direction', '', 'direction.npz', 'd2.file'),
}

INTRODUCTION = f"""# Methods

Made by `python -m tools.methods_page > docs/methods.md` from the rows of
[methods.py](../densegrpo_jax/config/methods.py) and
[published.py](../densegrpo_jax/config/published.py). docs/config.md lists the keys that they set.

One engine trains with any of these. The recipe keeps its model, prompts, reward and amounts; the
method decides where noise is added, which images are scored, how their rewards become credit, and
the loss:

    python -m densegrpo_jax.main --config=configs/{RECIPE}.py:method=flow_grpo --workdir=runs/sparse
    python -m densegrpo_jax.main --config=configs/flux_ocr.py:devices=8,method=dense_grpo \\
        --workdir=runs/flux

With `settings=paper` beside the method, the recipe also takes the amounts that were published of
the method for the recipe's model, {FLUX} or {SD35}: steps, samples, size, learning rate. They
are those of the method's paper or code, or of the other source that is named, as the run's label
names it. What is not listed stays the method's or the recipe's. These settings are validated;
nothing was trained with them here.

- **evaluations, images**: network evaluations and scored images of one sample, on the miniature's
  grid with T steps, as they are executed.
- **result**: held-out OCR accuracy of the miniature before → after 60 updates of 24 samples (all
  weights at 1e-4, `configs/claims_ocr.py`), with the standard error over the 320 prompts. Costs
  differ from row to row, no method has a learning rate of its own, and a single run of a miniature
  ranks no methods: the figure says where that run ended
  ([all runs](results/methods/README.md)).
"""

OWN = """## Yours in 40 lines

A method needs no row and no change to the package.
[examples/own_method.py](../examples/own_method.py) has a credit rule and a loss that are not in it:

```python
{code}```

This trains with both:

    python -m densegrpo_jax.main --config=configs/tiny_ocr.py --workdir=runs/own \\
        --config.credit.rule=examples.own_method:rule \\
        --config.loss.kind=examples.own_method:loss

And this trains with both and with DenseGRPO's, each over three seeds, and draws the curves; keys
that change together are joined by +, and so are their values:

    python -m experiments.compare --config=configs/tiny_ocr.py --seeds=0,1,2 \\
        --vary=credit.rule+loss.kind=dense+grpo,examples.own_method:rule+examples.own_method:loss \\
        --workdir=runs/own_compared --out=runs/own_compared/report

Modules are found in the current folder and on PYTHONPATH: a file `own_method.py` that lies there is
named `own_method:rule`. A run goes on only with the code that it began with, of all modules of the
package, unless `--own_code=warn` is given. [A test](../tests/training/test_own_method.py) trains
with the code of this page: its update is that of the formula, on policy and off, and a first update
is that of `gae` with λ = 1 and the clipped loss. Kernels, noise tables and shapes of rollouts are
named in the same way: [Contributing](../CONTRIBUTING.md#a-credit-rule) says what each is given.
"""


def counted(method: str, steps: int) -> SampleCost:
    """What a sample costs on the miniature's grid of `steps` steps."""
    config = load(f'{RECIPE}:method={method}')
    config.rollout.steps = steps
    return cost(config)


def result(runs: Mapping[str, Records], method: str) -> str:
    """Scores before and after: of a seed with the error over prompts, or the means of several."""
    if method in ELSEWHERE:
        return ELSEWHERE[method]
    variant = VARIANTS.get(method)
    curves = runs['methods' if variant is None else 'reproduction'].curves(variant or method)
    ends = [(rows[0]['score'], rows[-1]['score']) for rows in curves.values()]
    if not ends:
        return 'no run yet'
    before, after = (statistics.fmean(of) for of in zip(*ends))
    error = next(iter(curves.values()))[-1]['standard_error']
    spread = f'± {error:.3f}' if len(ends) == 1 else f'({len(ends)} seeds)'
    return f'{before:.3f} → {after:.3f} {spread}'


def markdown() -> str:
    """The text of docs/methods.md."""
    runs = {name: Records.load(RESULTS / name) for name in ('methods', 'reproduction')}
    rows = []
    for name, method in METHODS.items():
        costs = [f'{c.nfe:.4g}, {c.images:.4g}' for c in (counted(name, steps) for steps in STEPS)]
        rows.append((f'[`{name}`](#{name})', method.idea, *costs, result(runs, name)))
    head = ('method', 'idea', *(f'evaluations, images at T = {t}' for t in STEPS), 'result')
    return '\n'.join([INTRODUCTION, table(head, rows), '', *map(_section, METHODS), own_method()])


def own_method() -> str:
    """The last section: a method that is no row, its code and its command."""
    return OWN.format(code=(ROOT / 'examples' / 'own_method.py').read_text(encoding='utf-8'))


def _section(name: str) -> str:
    method = METHODS[name]
    facts = {
        'Source': method.source,
        'Exact': method.exact,
        'Our reading': method.reading,
        'Evaluations of a sample': method.cost,
        'Sets': _keys(method.overrides),
        'Published settings': _published(PUBLISHED.get(name, {})),
    }
    lines = [f'- {what}: {text}' for what, text in facts.items()]
    return '\n'.join([f'## {name}', '', method.idea, '', *lines, '', *_commands(name), ''])


def _keys(overrides: Mapping[str, object]) -> str:
    return ', '.join(f'`{key}={value}`' for key, value in overrides.items())


def _published(found: Mapping[str, Published]) -> str:
    """The settings for each model, then for some rewards, and the notes."""
    texts = []
    for model, published in found.items():
        more = [f'; with `{r}` {_keys(of)}' for r, of in published.by_reward.items()]
        of = f', those of {published.borrowed}' if published.borrowed else ''
        text = f'{model}{of}: {_keys(published.overrides)}{"".join(more)}.'
        texts.append(f'{text} {published.note}'.strip())
    return ' '.join(texts) or f'beyond this, none for {FLUX} or {SD35}.'


def _commands(name: str) -> Iterator[str]:
    """The lines of the commands that train the miniature, and with the published settings."""
    beside = ', then with the published settings' if name in PUBLISHED else ''
    yield from (f'On the miniature{beside}:', '')  # without words the block would be of the list
    yield from _training(name, RECIPE, f'method={name}', name)
    for model in PUBLISHED.get(name, {}):
        recipe = RECIPES[model]
        workdir = f'{name}_{recipe.partition("_")[0]}'
        variant = f'devices=8,method={name},settings=paper'
        yield from _training(name, recipe, variant, workdir)


def _training(name: str, recipe: str, variant: str, workdir: str) -> Iterator[str]:
    extra = []
    if name == 'd2_align':
        recipe = WITH_EMBEDDING
    if name in FILES:
        module, takes, file, key = FILES[name]
        made = f'runs/{workdir}_{module}'
        config = f'--config=configs/{recipe}.py{takes.format(variant)}'
        yield from _command(module, config, f'--workdir={made}')
        extra = [f'--config.{key}={made}/{file}']
    config = f'--config=configs/{recipe}.py:{variant}'
    yield from _command('main', config, f'--workdir=runs/{workdir}', *extra)


def _command(module: str, *arguments: str) -> Iterator[str]:
    """The lines of a command, in columns of 100 as far as its words allow."""
    line = f'    python -m densegrpo_jax.{module}'
    for argument in arguments:
        if len(line) + len(argument) > 97:
            yield f'{line} \\'
            line = '       '
        line += f' {argument}'
    yield line


if __name__ == '__main__':
    print(markdown(), end='')
