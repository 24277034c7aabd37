"""Check which attributes of a caption a picture shows, by colour segmentation and shape templates alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from shapes import COLOURS, SHAPES, SIDE, Picture, Scene, coverage

KINDS = ("shape", "colour", "size", "relation")
LARGE_EXTENT = 8.3
FOREGROUND = 0.5
SMALLEST_AREA = 12
SEVERED_SHARE = 0.2
NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.float32) / 255


@dataclass(frozen=True)
class Found:
    """One object found in a picture; x and y are its box's centre in pixels of a 64-pixel-wide picture."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    area: float


@dataclass
class Accuracy:
    """How many attributes were right out of how many, by kind."""

    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    perfect: int = 0
    pictures: int = 0

    @property
    def overall(self) -> float:
        """The share of all attributes that were right."""
        return sum(self.right.values()) / max(1, sum(self.total.values()))

    def by_kind(self) -> dict[str, float]:
        """The share of attributes that were right, for every kind that occurred."""
        return {kind: self.right[kind] / self.total[kind] for kind in KINDS if self.total[kind]}


def _background(image: Picture) -> Picture:
    """The colour of the picture's border, which objects touch at most in part."""
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), *image[:, [0, -1]]])
    return np.asarray(np.median(border, axis=0), np.float32)


def _templates(extent: tuple[float, float], side: int) -> dict[str, Picture]:
    """Draw every shape so that it fills a box of the given half height and half width about a patch's centre."""
    axis = np.arange(side, dtype=np.float32) + 0.5 - side / 2
    y, x = axis[:, None], axis[None, :]
    half_height, half_width = extent
    templates = {}
    for shape in SHAPES:
        across, down = {"square": (0.88, 0.88), "triangle": (1.0, 0.87)}.get(shape, (1.0, 1.0))
        radius = (half_height + half_width) / (across + down)
        stretch = (np.float32(radius * across / half_width), np.float32(radius * down / half_height))
        templates[shape] = coverage(shape, x * stretch[0], y * stretch[1], radius)
    return templates


def _edges(profile: NDArray[np.float32]) -> tuple[float, float]:
    """Where a profile first and last crosses a half, to a fraction of a pixel."""
    inside = np.flatnonzero(profile >= 0.5)
    padded = np.concatenate([[0.0], profile, [0.0]])
    first, last = int(inside[0]) + 1, int(inside[-1]) + 1
    low = first - (padded[first] - 0.5) / max(1e-6, padded[first] - padded[first - 1])
    high = last + (padded[last] - 0.5) / max(1e-6, padded[last] - padded[last + 1])
    return float(low - 0.5), float(high - 0.5)


def _recognise(cover: Picture) -> tuple[str, float, float, float]:
    """Recognize an object's shape, box centre (x, y) and mean half extent from how much of each pixel it covers."""
    left, right = _edges(cover.max(axis=0))
    top, bottom = _edges(cover.max(axis=1))
    centre = ((left + right) / 2, (top + bottom) / 2)
    extent = (max(1.0, (bottom - top) / 2), max(1.0, (right - left) / 2))
    side = 2 * int(np.ceil(max(extent))) + 4
    axis = np.arange(side) + 0.5 - side / 2
    rows, columns = np.meshgrid(axis + centre[1] - 0.5, axis + centre[0] - 0.5, indexing="ij")
    patch = ndimage.map_coordinates(cover, [rows, columns], order=1)
    overlaps = {
        shape: float(np.minimum(patch, template).sum() / np.maximum(patch, template).sum())
        for shape, template in _templates(extent, side).items()
    }
    return max(overlaps, key=overlaps.__getitem__), *centre, (extent[0] + extent[1]) / 2


def find_objects(image: Picture) -> list[Found]:
    """Find the objects in a picture of values in [0, 1], height by width by RGB, the largest first."""
    image = np.clip(image.astype(np.float32), 0, 1)
    scale = image.shape[1] / SIDE
    background = _background(image)
    axes = PALETTE - background
    offset = image - background
    shares = np.clip((offset @ axes.T) / (axes**2).sum(1), 0, 1)
    misfit = np.linalg.norm(offset[:, :, None] - shares[..., None] * axes, axis=-1)
    nearest = np.argmin(misfit, axis=-1)
    solid = np.take_along_axis(shares, nearest[..., None], -1)[..., 0] > FOREGROUND
    labels, count = ndimage.label(solid, structure=np.ones((3, 3)))
    objects = []
    for label in range(1, count + 1):
        mask = labels == label
        for index in np.unique(nearest[mask]):
            own = mask & (nearest == index)
            if own.sum() < max(SMALLEST_AREA * scale**2, SEVERED_SHARE * mask.sum()):
                continue
            near = ndimage.binary_dilation(own, iterations=max(1, round(2 * scale)), structure=np.ones((3, 3)))
            cover = np.where(near & (misfit[..., index] < 0.35), shares[..., index], 0).astype(np.float32)
            shape, x, y, extent = _recognise(cover)
            size = "large" if extent / scale > LARGE_EXTENT else "small"
            objects.append(Found(shape, NAMES[index], size, x / scale, y / scale, float(own.sum()) / scale**2))
    return sorted(objects, key=lambda item: -item.area)


def _relation_holds(relation: str, first: Found, second: Found) -> bool:
    across, down = second.x - first.x, second.y - first.y
    ahead, aside = {
        "left of": (across, down),
        "right of": (-across, down),
        "above": (down, across),
        "below": (-down, across),
    }[relation]
    return ahead > abs(aside)


def _judge(scene: Scene, objects: Sequence[Found | None]) -> list[tuple[str, bool]]:
    """Judge every attribute when the caption's objects are taken to be the given ones."""
    verdicts: list[tuple[str, bool]] = []
    for described, item in zip(scene.things, objects, strict=True):
        verdicts.append(("shape", item is not None and item.shape == described.shape))
        verdicts.append(("colour", item is not None and item.colour == described.colour))
        if described.size is not None:
            verdicts.append(("size", item is not None and item.size == described.size))
    if scene.relation is not None:
        first, second = objects
        holds = first is not None and second is not None and _relation_holds(scene.relation, first, second)
        verdicts.append(("relation", holds))
    return verdicts


def check(image: Picture, scene: Scene) -> list[tuple[str, bool]]:
    """Check for every attribute that the scene's caption names, as (kind, right), whether the image shows it.

    The caption's objects are matched to the picture's so that as many objects as possible have the right shape and
    colour; an object that is missing makes all its attributes and the relation wrong, and of an object too many,
    the smaller ones are looked at only where they match better.
    """
    candidates: list[Found | None] = [*find_objects(image)[:4]]
    count = len(scene.things)
    candidates += [None] * max(0, count - len(candidates))

    def merit(objects: Sequence[Found | None]) -> tuple[int, int]:
        verdicts = _judge(scene, objects)
        return sum(right for kind, right in verdicts if kind != "relation"), sum(right for _, right in verdicts)

    return _judge(scene, max(permutations(candidates, count), key=merit))


def accuracy(pictures: Iterable[Picture], scenes: Iterable[Scene]) -> Accuracy:
    """Count the right attributes of pictures drawn for scenes; an object too many is no attribute but spoils
    `perfect`, the number of pictures with everything right.
    """
    result = Accuracy()
    for image, scene in zip(pictures, scenes, strict=True):
        verdicts = check(image, scene)
        for kind, right in verdicts:
            result.total[kind] += 1
            result.right[kind] += right
        result.perfect += all(right for _, right in verdicts) and len(find_objects(image)) == len(scene.things)
        result.pictures += 1
    return result
