"""Coloured shapes with counts and positions: GenEval's six tasks in miniature, as prompts, metadata
rows and drawn images.

A scene is one or two groups of equal shapes. Its *composition* is what it asks for, whatever the
words: "a circle left of a square" and "a square right of a circle" are one composition. A quarter
of all compositions is held out by a hash: no training prompt, neither of the base model nor of a
run on it, asks for one. Single objects are all held out.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from densegrpo_jax.data.prompts import Prompt, PromptSet

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross')
COLOURS: dict[str, tuple[int, int, int]] = {
    'red': (214, 40, 40),
    'orange': (245, 135, 20),
    'yellow': (240, 210, 20),
    'green': (40, 160, 70),
    'blue': (40, 90, 215),
    'purple': (140, 55, 185),
    'black': (28, 28, 32),
}
BACKGROUNDS = (
    (250, 250, 248),
    (238, 240, 244),
    (246, 240, 228),
    (228, 238, 244),
    (234, 242, 232),
    (224, 224, 226),
)
OPPOSITE = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
NUMBERS = ('', 'a', 'two', 'three', 'four')
PREFIX = 'a photo of '
SIZE = 48  # pixels, height and width; a multiple of CELL

# Proportions of the tasks in training: Flow-GRPO's for GenEval, without single objects. The base
# model sees easy tasks more often.
RUN_WEIGHTS = {'position': 7, 'counting': 5, 'color_attr': 3, 'colors': 1, 'two_object': 1}
BASE_WEIGHTS = {'position': 3, 'counting': 2, 'color_attr': 2, 'colors': 1, 'two_object': 1}
# GenEval's names
TAGS = ('single_object', 'two_object', 'colors', 'counting', 'color_attr', 'position')
# of each task, as in GenEval: the mean over all rows is then its overall score, the mean over tasks
EVAL_ROWS = 100

# Objects lie near the middles of cells as large as a token of the network: a small network then
# learns to draw them from far fewer images.
CELL = 16  # pixels
STRAY = 1.5  # pixels from the middle, at most, on each axis
RADII = (5.2, 6.6)  # pixels
GAP = 0.5  # pixels between two objects, at least
TILT = 6.0  # degrees, at most
REACH = 1.2  # no shape reaches further than this many radii from its centre


@dataclass(frozen=True)
class Group:
    """`count` objects of one shape, all of one colour; None: any."""

    count: int
    shape: str
    colour: str | None = None

    def words(self) -> str:
        plural = (
            self.shape
            if self.count == 1
            else self.shape + ('es' if self.shape.endswith('s') else 's')
        )
        noun = f'{self.colour} {plural}' if self.colour else plural
        number = NUMBERS[self.count] + ('n' if self.count == 1 and noun[0] in 'aeiou' else '')
        return f'{number} {noun}'


@dataclass(frozen=True)
class Scene:
    """What an image should show. relation: of the first group to the second, or None."""

    tag: str
    groups: tuple[Group, ...]
    relation: str | None = None

    def words(self) -> str:
        """The prompt without its prefix, such as 'three red circles left of a blue square'."""
        return f' {self.relation or "and"} '.join(group.words() for group in self.groups)

    def composition(self) -> str:
        """A key that is the same for every wording of this scene."""
        groups, relation = self.groups, self.relation or ''
        if relation in ('right of', 'below'):
            groups, relation = groups[::-1], OPPOSITE[relation]
        elif not relation:
            groups = tuple(sorted(groups, key=str))
        return f'{relation}: {groups}'

    def held_out(self) -> bool:
        digest = hashlib.sha256(self.composition().encode()).digest()
        return self.tag == 'single_object' or digest[0] % 4 == 0

    def prompt(self) -> Prompt:
        """The prompt with GenEval's row as metadata: tag, include (the group that a position refers
        to comes first), exclude, prompt.
        """
        include = [
            {'class': g.shape, 'count': g.count} | ({'color': g.colour} if g.colour else {})
            for g in self.groups
        ]
        if self.relation:
            include = [include[1], include[0] | {'position': [self.relation, 0]}]
        row = {'tag': self.tag, 'include': include}
        if self.tag == 'counting':
            row['exclude'] = [{'class': g.shape, 'count': g.count + 1} for g in self.groups]
        text = PREFIX + self.words()
        return Prompt(text, row | {'prompt': text})


def random_scene(tag: str, rng: np.random.Generator) -> Scene:
    """A scene of one task, drawn from `rng`."""
    choose = lambda options: options[rng.integers(len(options))]
    first, second = (SHAPES[i] for i in rng.choice(len(SHAPES), 2, replace=False))
    colours = [tuple(COLOURS)[i] for i in rng.choice(len(COLOURS), 2, replace=False)]
    if tag == 'single_object':
        return Scene(tag, (Group(1, first),))
    if tag == 'colors':
        return Scene(tag, (Group(1, first, colours[0]),))
    if tag == 'counting':
        return Scene(tag, (Group(int(rng.integers(2, 5)), first, choose((None, colours[0]))),))
    if tag == 'two_object':
        return Scene(tag, (Group(1, first), Group(1, second)))
    if tag == 'color_attr':
        return Scene(tag, (Group(1, first, colours[0]), Group(1, second, colours[1])))
    if tag == 'position':
        counts = choose(((1, 1), (1, 1), (1, 1), (2, 1), (3, 1), (1, 2), (1, 3)))
        shades = choose(((None, None), colours))
        return Scene(
            tag, tuple(map(Group, counts, (first, second), shades)), choose(tuple(OPPOSITE))
        )
    raise ValueError(f'unknown tag {tag!r}; known tags: {", ".join(TAGS)}')


def training_scene(weights: dict[str, int], rng: np.random.Generator) -> Scene:
    """A scene that is not held out, its task drawn with `weights`."""
    share = np.array(list(weights.values()), float)
    while True:
        scene = random_scene(tuple(weights)[rng.choice(len(share), p=share / share.sum())], rng)
        if not scene.held_out():
            return scene


def shapes_train_prompts(count: int = 4096) -> PromptSet:
    """`count` training prompts, tasks drawn by `RUN_WEIGHTS`; rarer tasks have fewer compositions,
    which recur often.
    """
    rng = np.random.default_rng(0)
    return PromptSet(tuple(training_scene(RUN_WEIGHTS, rng).prompt() for _ in range(count)))


def shapes_eval_prompts() -> PromptSet:
    """600 rows, `EVAL_ROWS` held-out prompts of each task, shuffled; 261 are distinct, since a task
    with fewer prompts repeats them.

    An evaluation draws noise by row, so the rows of one prompt give different images, like the four
    images per prompt in GenEval.
    """
    rng, rows = np.random.default_rng(1), []
    for tag in TAGS:
        found: dict[str, Prompt] = {}
        for _ in range(3000):  # enough to draw every held-out prompt of the tasks that have few
            scene = random_scene(tag, rng)
            if scene.held_out() and len(found) < EVAL_ROWS:
                found.setdefault(scene.words(), scene.prompt())
        prompts = list(found.values())
        rows += [prompts[i % len(prompts)] for i in range(EVAL_ROWS)]
    return PromptSet(tuple(rows[i] for i in rng.permutation(len(rows))))


@dataclass(frozen=True)
class Object:
    """One drawn shape: centre x, y and radius in pixels, tilt in degrees."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    tilt: float = 0.0


def place(scene: Scene, rng: np.random.Generator, size: int = SIZE) -> list[Object]:
    """The objects of a scene, group by group, in random cells of an image of `size` pixels that
    satisfy its relation.

    No two objects are closer than `GAP`; in a relation every object of one group is clearly on its
    side of every object of the other.
    """
    count = sum(g.count for g in scene.groups)
    group = np.repeat(np.arange(len(scene.groups)), [g.count for g in scene.groups])
    side = size // CELL
    while True:  # until one of 64 tries is good, which is nearly always the first time
        radius = rng.uniform(*RADII, count)
        cells = rng.permuted(np.tile(np.arange(side**2), (64, 1)), axis=1)[:, :count]
        # x, y
        centres = (np.stack([cells % side, cells // side], -1) + 0.5) * CELL + rng.uniform(
            -STRAY, STRAY, (64, count, 2)
        )
        margin = REACH * radius[:, None]
        centres = np.clip(centres, margin, size - margin)
        offset = centres[:, :, None] - centres[:, None]
        apart = np.linalg.norm(offset, axis=-1) >= REACH * (radius[:, None] + radius) + GAP
        good = (apart | np.eye(count, dtype=bool)).all((1, 2))
        if scene.relation:
            between = offset[:, group == 0][:, :, group == 1]
            axis, sign = {
                'left of': (0, -1),
                'right of': (0, 1),
                'above': (1, -1),
                'below': (1, 1),
            }[scene.relation]
            good &= (sign * between[..., axis] > 1.05 * np.abs(between[..., 1 - axis])).all((1, 2))
        if good.any():
            break
    chosen = centres[good.argmax()]
    colours = [g.colour or tuple(COLOURS)[rng.integers(len(COLOURS))] for g in scene.groups]
    tilts = rng.uniform(-TILT, TILT, count)
    return [
        Object(scene.groups[g].shape, colours[g], *map(float, (*xy, r, tilt)))
        for g, xy, r, tilt in zip(group, chosen, radius, tilts)
    ]


def outline(shape: str) -> np.ndarray:
    """Corners [n, 2] of a shape of radius 1 around its centre. A circle has none and is drawn as a
    circle.
    """
    ring = lambda angles, r: (
        np.stack([np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles))], 1)
        * np.asarray(r).reshape(-1, 1)
    )
    if shape == 'square':
        return ring(np.arange(45, 360, 90), 0.85 * np.sqrt(2))
    if shape == 'triangle':
        return ring(np.arange(-90, 270, 120), 1.2)
    if shape == 'star':
        return ring(np.arange(-90, 270, 36), np.where(np.arange(10) % 2, 0.5, 1.2))
    if shape == 'cross':
        a = 0.36
        quarter = np.array([(a, a), (a, 1.08), (-a, 1.08)])
        turn = np.array([(0, 1), (-1, 0)])
        return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])
    raise ValueError(f'{shape!r} has no corners')


def draw(
    objects: list[Object],
    background: tuple[int, int, int],
    size: int = SIZE,
    jitter=lambda colour: colour,
) -> np.ndarray:
    """The image, antialiased: uint8 [size, size, 3]. jitter: changes the colour of each
    object.
    """
    fine = 4
    image = Image.new('RGB', (size * fine, size * fine), background)
    pen = ImageDraw.Draw(image)
    for o in objects:
        colour, centre, radius = (
            jitter(COLOURS[o.colour]),
            np.array([o.x, o.y]) * fine,
            o.radius * fine,
        )
        if o.shape == 'circle':
            pen.ellipse([*(centre - radius), *(centre + radius)], fill=colour)
            continue
        c, s = np.cos(np.deg2rad(o.tilt)), np.sin(np.deg2rad(o.tilt))
        corners = centre + radius * outline(o.shape) @ np.array([(c, s), (-s, c)])
        pen.polygon([tuple(p) for p in corners], fill=colour)
    return np.asarray(image.reduce(fine))


def render(scene: Scene, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """Draws a scene with random places, sizes, tilts, shades and background, and random colours
    where it names none. uint8 [size, size, 3].
    """
    objects = place(scene, rng, size)
    shade = lambda colour: tuple(
        int(v) for v in np.clip(colour + rng.integers(-8, 9) + rng.integers(-5, 6, 3), 0, 255)
    )
    return draw(objects, shade(BACKGROUNDS[rng.integers(len(BACKGROUNDS))]), size, shade)


def training_batch(
    seed: int, step: int, batch_size: int, *, size: int = SIZE
) -> tuple[np.ndarray, list[str]]:
    """Batch `step` of the base model's endless training data, a pure function of (seed, step);
    every other prompt lacks its prefix.

    Returns:
      images uint8 [batch_size, size, size, 3], prompts.
    """
    rng = np.random.default_rng([seed, step])
    scenes = [training_scene(BASE_WEIGHTS, rng) for _ in range(batch_size)]
    images = np.stack([render(scene, rng, size) for scene in scenes])
    return images, [('' if i % 2 else PREFIX) + scene.words() for i, scene in enumerate(scenes)]


def vocabulary() -> list[str]:
    """Every word of every prompt, sorted."""
    groups = [Group(n, shape, colour) for n in (1, 2) for shape in SHAPES for colour in COLOURS]
    texts = [PREFIX, *NUMBERS, 'and', *OPPOSITE, *(g.words() for g in groups)]
    return sorted({word for text in texts for word in text.split()})
