"""Variants of a recipe: `--config=flux_ocr:devices=4,method=flow_grpo`.

`devices=N` fits the batches to N devices by one rule, `method=NAME` chooses a row of `methods`,
`settings=paper` the amounts of `published` for it.
"""

from __future__ import annotations

from typing import NamedTuple

from densegrpo_jax.config.method import loss_of
from densegrpo_jax.config.methods import METHODS, apply_method
from densegrpo_jax.config.moving_keys import SILENT_BESIDE
from densegrpo_jax.config.published import PAPER, apply_published
from densegrpo_jax.config.unread import reset_unread


class Variant(NamedTuple):
    """The parts of a variant; None if absent."""

    devices: int | None = None
    method: str | None = None
    settings: str | None = None


def parse(text: str) -> Variant:
    """The variant of 'devices=N,method=NAME,settings=paper', in any order; each may be absent.
    Blanks and empty parts are as nothing.

    Raises:
      ValueError: any other text.
    """
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(','))):
        name, equals, value = (piece.strip() for piece in part.partition('='))
        if name not in Variant._fields or not equals or name in found:
            raise ValueError(
                f"configuration variant {part!r} is not known; expected 'devices=N', "
                f"'method=NAME', 'settings={PAPER}', or several with commas between. "
                f'Methods: {", ".join(METHODS)}'
            )
        found[name] = value
    devices = found.get('devices')
    if devices is not None and not (devices.isascii() and devices.isdigit() and int(devices) > 0):
        raise ValueError(f'devices={devices}: expected devices=N with a whole N of at least 1')
    settings = found.get('settings')
    if settings not in (None, PAPER):
        raise ValueError(
            f'settings={settings}: expected settings={PAPER}, the published settings of the '
            "method; without it the recipe's own stay"
        )
    return Variant(None if devices is None else int(devices), found.get('method'), settings)


def apply(config, text: str, *, samples: int, transitions: int, devices: int | None = 8):
    """A complete configuration in the variant `text`; the last line of a recipe.

    Args:
      config: changed in place.
      text: see `parse`.
      samples, transitions: how many one device holds at the recipe's size of image, see `fit`; of
        larger published ones it holds fewer.
      devices: used if `text` names none; None: the recipe's own batches stay.

    Returns:
      config. Published settings that train all weights have them split over all devices.

    Raises:
      ValueError: an unknown variant or method; see `apply_published` and `fit`.
    """
    variant = parse(text)
    if variant.method is not None:
        apply_method(config, variant.method)
    if variant.settings is not None:
        pixels = _pixels(config)
        apply_published(config, variant.method)
        room = min(1, pixels / _pixels(config))
        samples, transitions = (max(1, int(held * room)) for held in (samples, transitions))
    if variant.method is not None:
        # A method's completions of five steps are whole ones in a recipe of four.
        steps = min(config.credit.completion_steps, config.rollout.steps)
        config.credit.completion_steps = steps
        if config.moving.steps in SILENT_BESIDE:
            # A window moves if it is narrower than the trained transitions. Their number needs the
            # model's grid; here they are all but the last, as on the four steps of FLUX.2 [klein].
            config.moving.width = min(config.moving.width, max(1, config.rollout.steps - 2))
        reset_unread(config)  # options of the parts that the method has replaced
    if (count := variant.devices or devices) is not None:
        fit(config, count, samples=samples, transitions=transitions)
        if variant.settings is not None and config.full:
            config.mesh.fsdp = count  # all weights and their moments fit no single device
    elif config.loss.kind != 'grpo' or config.moving.steps != 'none':
        # The recipe's own microbatch fits the transitions of its own loss, all of them.
        fitting = microbatches(config)
        largest = config.optim.microbatch
        config.optim.microbatch = max([m for m in fitting if m <= largest], default=fitting[0])
    return config


def _pixels(config) -> int:
    return config.model.height * config.model.width


def microbatches(config) -> list[int]:
    """Sizes of microbatches that divide an update of any kind of rows, in whole groups if the loss
    needs them.
    """
    r = config.rollout
    size = r.prompts * r.group // config.optim.updates
    whole = r.group if loss_of(config).groups else 1
    return [m for m in range(whole, size + 1, whole) if size % m == 0]


def fit(config, devices: int, *, samples: int, transitions: int):
    """Sets the batch sizes that depend on the number of devices. They change only speed and memory,
    not the learning.

    The rule: sample as many whole prompts together, and re-score as many transitions together, as
    the devices hold, so that both divide over the devices and the iteration.

    Args:
      config: a complete configuration; `rollout.prompts_per_batch`, `optim.microbatch`,
        `optim.rows_per_device` and `eval.batch` are set.
      devices: how many.
      samples: images that one device samples at a time.
      transitions: transitions that one device re-scores at a time.

    Returns:
      config.

    Raises:
      ValueError: an iteration does not divide over so many devices; the message names numbers that
        do.
    """
    r, o = config.rollout, config.optim
    total = r.prompts * r.group
    whole = [
        p for p in range(1, r.prompts + 1) if r.prompts % p == 0 and p * r.group % devices == 0
    ]
    parts = [m for m in microbatches(config) if m % devices == 0]
    if not whole or not parts:
        fitting = [
            n for n in range(1, total + 1) if total % n == 0 and (total // o.updates) % n == 0
        ]
        raise ValueError(
            f'devices={devices}: an iteration of {r.prompts} prompts x {r.group} samples = '
            f'{total}, in {o.updates} update(s), does not divide over {devices} devices; numbers '
            f'that do: {fitting}, or change rollout.prompts or rollout.group'
        )
    r.prompts_per_batch = max(
        [p for p in whole if p * r.group <= samples * devices], default=whole[0]
    )
    # whole groups may be more than the devices hold: then the run says so (`training.announce`)
    o.microbatch = max([m for m in parts if m <= transitions * devices], default=parts[0])
    o.rows_per_device = transitions
    config.eval.batch = samples * devices
    return config
