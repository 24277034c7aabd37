"""Test that the attribute checker accepts drawn pictures, blurred ones too, and flags what is wrong."""

from dataclasses import replace

import numpy as np
import pytest
from checker import accuracy, check, find_objects
from scipy import ndimage
from shapes import COLOURS, RELATIONS, SHAPES, Scene, Thing, draw, held_out_scenes, training_pictures

PAIR = Scene(Thing("circle", "red", "small"), Thing("square", "blue", "large"), "left of")


def wrong_kinds(scene: Scene, seed: int, **changes: object) -> set[str]:
    """Draw a scene and list the kinds of attributes found wrong when the caption is changed."""
    picture = draw(scene, np.random.default_rng(seed))
    return {kind for kind, right in check(picture, replace(scene, **changes)) if not right}  # type: ignore[arg-type]


def test_drawn_pictures_are_right() -> None:
    """Expect at least 99 % on fresh pictures of training and held-out captions."""
    scenes, pictures = map(list, zip(*training_pictures(11, 300), strict=True))
    rng = np.random.default_rng(12)
    scenes += held_out_scenes(200)
    pictures += [draw(scene, rng) for scene in held_out_scenes(200)]
    result = accuracy(pictures, scenes)
    assert result.overall >= 0.99
    assert min(result.by_kind().values()) >= 0.99
    assert result.perfect >= 0.98 * result.pictures == 490


def test_blurred_and_noisy_pictures_are_right() -> None:
    """Expect at least 98 % when pictures are as soft and rough as generated ones can be."""
    rng = np.random.default_rng(13)
    scenes, pictures = [], []
    for scene, picture in training_pictures(14, 150):
        soft = ndimage.gaussian_filter(picture, (0.8, 0.8, 0))
        pictures.append((soft + rng.normal(0, 0.03, picture.shape)).astype(np.float32))
        scenes.append(scene)
    assert min(accuracy(pictures, scenes).by_kind().values()) >= 0.98


@pytest.mark.parametrize("relation", RELATIONS)
def test_swapped_objects_are_flagged(relation: str) -> None:
    """Expect the relation, and only it, to be wrong when the opposite or an unrelated one holds."""
    scene = replace(PAIR, relation=relation)
    for other in RELATIONS:
        assert wrong_kinds(scene, 5, relation=other) == (set() if other == relation else {"relation"})


@pytest.mark.parametrize("colour", [colour for colour in COLOURS if colour not in ("red", "blue")])
def test_wrong_colour_is_flagged(colour: str) -> None:
    """Expect a colour that the picture lacks to be wrong."""
    assert wrong_kinds(PAIR, 6, first=Thing("circle", colour, "small")) == {"colour"}


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("shape", SHAPES)
def test_wrong_shape_and_size_are_flagged(shape: str, size: str) -> None:
    """Expect the other shapes and the other size to be wrong."""
    scene = Scene(Thing(shape, "purple", size))
    for other in SHAPES:
        assert wrong_kinds(scene, 7, first=Thing(other, "purple", size)) == (set() if other == shape else {"shape"})
    other_size = {"small": "large", "large": "small"}[size]
    assert wrong_kinds(scene, 7, first=Thing(shape, "purple", other_size)) == {"size"}


def test_exchanged_colours_are_flagged() -> None:
    """Expect a blue circle and a red square not to pass for a red circle and a blue square."""
    exchanged = {"first": Thing("circle", "blue", "small"), "second": Thing("square", "red", "large")}
    assert wrong_kinds(PAIR, 8, **exchanged)


def test_missing_object_is_flagged() -> None:
    """Expect every attribute of a missing object and the relation to be wrong."""
    picture = draw(Scene(PAIR.first), np.random.default_rng(9))
    wrong = [kind for kind, right in check(picture, PAIR) if not right]
    assert sorted(wrong) == ["colour", "relation", "shape", "size"]


def test_surplus_object_spoils_perfection_only() -> None:
    """Expect an object too many to leave the attributes right but the picture imperfect."""
    picture = draw(PAIR, np.random.default_rng(10))
    result = accuracy([picture], [Scene(PAIR.second)])  # type: ignore[arg-type]
    assert (result.overall, result.perfect) == (1.0, 0)


def test_empty_picture_has_no_objects() -> None:
    """Expect nothing in plain light, and nothing right about it."""
    picture = np.full((64, 64, 3), 0.9, np.float32)
    assert find_objects(picture) == []
    assert accuracy([picture], [PAIR]).overall == 0.0


def test_enlarged_pictures_are_measured_in_the_same_units() -> None:
    """Expect the same verdicts on a picture of twice the size."""
    picture = draw(PAIR, np.random.default_rng(15)).repeat(2, axis=0).repeat(2, axis=1)
    assert all(right for _, right in check(picture, PAIR))
