"""Test what the drawn data promises: fixed held-out captions, kept from training, and seeded pictures."""

import numpy as np
from shapes import COLOURS, LIGHT, SIDE, Scene, Thing, draw, held_out_scenes, is_held_out, training_pictures


def test_held_out_captions_are_fixed_and_different() -> None:
    """Expect the same 200 different captions every time."""
    captions = [scene.caption for scene in held_out_scenes()]
    assert captions == [scene.caption for scene in held_out_scenes()]
    assert len(set(captions)) == 200
    assert captions[0] == "a small green triangle left of a small red cross"


def test_training_never_shows_a_held_out_pair() -> None:
    """Expect no held-out pair in training, whatever the order, and expect all 200 captions to be of such pairs."""
    assert not any(is_held_out(scene) for scene, _ in training_pictures(0, 500))
    for scene in held_out_scenes():
        assert scene.second is not None
        assert is_held_out(scene)
        assert is_held_out(Scene(scene.second, scene.first, scene.relation))


def test_captions_name_the_attributes() -> None:
    """Expect a size of None to leave the size out of the caption."""
    scene = Scene(Thing("circle", "red", "small"), Thing("square", "blue"), "left of")
    assert scene.caption == "a small red circle left of a blue square"


def test_pictures_are_seeded_and_plain() -> None:
    """Expect equal pictures for equal seeds, values in range, a light background and the object's colour."""
    scene = Scene(Thing("circle", "green", "large"))
    picture = draw(scene, np.random.default_rng(3))
    np.testing.assert_array_equal(picture, draw(scene, np.random.default_rng(3)))
    assert picture.shape == (SIDE, SIDE, 3)
    assert picture.dtype == np.float32
    assert LIGHT[0] <= picture[0, 0, 0] <= LIGHT[1]
    distance = np.abs(picture - np.array(COLOURS["green"], np.float32) / 255).max(-1)
    assert 300 < (distance < 1e-3).sum() < 600
