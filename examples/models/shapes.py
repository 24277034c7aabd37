"""Draw the captioned pictures of coloured shapes that the example models are trained and judged on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]

SIDE = 64
MARGIN = 2.0
GAP = 3.0
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (245, 205, 30),
    "purple": (150, 50, 190),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES: dict[str, tuple[float, float]] = {"small": (5.5, 7.0), "large": (11.0, 13.5)}
RELATIONS = ("left of", "right of", "above", "below")
LIGHT = (0.86, 1.0)

SINGLE_SHARE = 0.25
SIZE_WORD_SHARE = 0.7
HELD_OUT_SHARE = 0.1
HELD_OUT_SEED = 20


@dataclass(frozen=True)
class Thing:
    """One object as a caption names it; a size of None leaves the size open."""

    shape: str
    colour: str
    size: str | None = None

    def words(self) -> str:
        """Describe the object in words, article first."""
        return " ".join(word for word in ("a", self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Scene:
    """The attributes of one caption: one object, or two and where the first stands to the second."""

    first: Thing
    second: Thing | None = None
    relation: str | None = None

    @property
    def caption(self) -> str:
        """The caption that names these attributes."""
        if self.second is None:
            return self.first.words()
        return f"{self.first.words()} {self.relation} {self.second.words()}"

    @property
    def things(self) -> tuple[Thing, ...]:
        """The objects in the order in which the caption names them."""
        return (self.first,) if self.second is None else (self.first, self.second)


def is_held_out(scene: Scene) -> bool:
    """Return whether the scene's two objects, in either order, form a pair that training never shows together."""
    if scene.second is None:
        return False
    pair = sorted(f"{item.colour} {item.shape}" for item in scene.things)
    digest = hashlib.sha256("/".join(pair).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _random_thing(rng: np.random.Generator, colours: tuple[str, ...]) -> Thing:
    size = _choose(rng, tuple(SIZES)) if rng.random() < SIZE_WORD_SHARE else None
    return Thing(_choose(rng, SHAPES), _choose(rng, colours), size)


def random_scene(rng: np.random.Generator) -> Scene:
    """Choose any scene, held out or not; two objects always differ in colour."""
    first = _random_thing(rng, tuple(COLOURS))
    if rng.random() < SINGLE_SHARE:
        return Scene(first)
    second = _random_thing(rng, tuple(colour for colour in COLOURS if colour != first.colour))
    return Scene(first, second, _choose(rng, RELATIONS))


def training_scene(rng: np.random.Generator) -> Scene:
    """Choose a scene that is not held out."""
    while is_held_out(scene := random_scene(rng)):
        pass
    return scene


def held_out_scenes(count: int = 200) -> list[Scene]:
    """List different held-out scenes, always the same ones in the same order."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    scenes: dict[Scene, None] = {}
    while len(scenes) < count:
        scene = random_scene(rng)
        if is_held_out(scene):
            scenes[scene] = None
    return list(scenes)


def coverage(shape: str, x: NDArray[np.float32], y: NDArray[np.float32], radius: float) -> Picture:
    """Compute how much of each pixel a shape covers, for pixel centres (x, y) measured from the shape's centre."""
    across, down = np.abs(x), np.abs(y)
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(across, down) - 0.88 * radius
    elif shape == "triangle":
        half = 0.87 * radius
        slope = float(np.hypot(2 * half, radius))
        distance = np.maximum(y - half, (2 * half * across - radius * (y + half)) / slope)
    elif shape == "cross":
        arm = 0.34 * radius
        distance = np.minimum(
            np.maximum(across - radius, down - arm),
            np.maximum(across - arm, down - radius),
        )
    else:
        raise ValueError(f"no such shape: {shape!r}")
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def _places(relation: str | None, radii: list[float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Choose a centre (x, y) for each radius so that nothing touches and the relation holds clearly."""
    low = [MARGIN + radius for radius in radii]
    high = [SIDE - MARGIN - radius for radius in radii]
    if relation is None:
        return [(rng.uniform(low[0], high[0]), rng.uniform(low[0], high[0]))]
    order = [0, 1] if relation in ("left of", "above") else [1, 0]
    near, far = order
    apart = rng.uniform(radii[0] + radii[1] + GAP, high[far] - low[near])
    along = [0.0, 0.0]
    along[near] = rng.uniform(low[near], high[far] - apart)
    along[far] = along[near] + apart
    beside = [rng.uniform(low[0], high[0]), 0.0]
    beside[1] = rng.uniform(max(low[1], beside[0] - apart / 2), min(high[1], beside[0] + apart / 2))
    pairs = list(zip(along, beside, strict=True))
    return pairs if relation in ("left of", "right of") else [(x, y) for y, x in pairs]


def draw(scene: Scene, rng: np.random.Generator) -> Picture:
    """Draw a scene as an antialiased picture, height by width by RGB in [0, 1]."""
    radii = [rng.uniform(*SIZES[item.size or _choose(rng, tuple(SIZES))]) for item in scene.things]
    image = np.full((SIDE, SIDE, 3), rng.uniform(*LIGHT), np.float32)
    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    for item, radius, (x, y) in zip(scene.things, radii, _places(scene.relation, radii, rng), strict=True):
        cover = coverage(item.shape, axis[None, :] - np.float32(x), axis[:, None] - np.float32(y), radius)
        colour = np.asarray(COLOURS[item.colour], np.float32) / 255
        image += cover[..., None] * (colour - image)
    return image


def training_pictures(seed: int, count: int) -> Iterator[tuple[Scene, Picture]]:
    """Draw `count` scenes that are not held out."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = training_scene(rng)
        yield scene, draw(scene, rng)
