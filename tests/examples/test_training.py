"""Test what the text encoders are taught: what a caption says of the whole scene and of each of its sides."""

from shapes import COLOURS, SHAPES, Scene, Thing
from training import SCENE, THING, VIEWS, layout_labels


def test_each_side_is_labelled_with_the_object_that_stands_there() -> None:
    """Expect left, right, above and below, in this order after two views of the whole scene."""
    scene = Scene(Thing("circle", "red", "small"), Thing("square", "blue"), "right of")
    labels = layout_labels(scene)
    assert len(labels) == sum(map(len, VIEWS)) == 2 * len(SCENE) + 4 * len(THING)
    assert labels[: len(SCENE)] == labels[len(SCENE) : 2 * len(SCENE)]
    sides = [labels[2 * len(SCENE) + 3 * side :][:3] for side in range(4)]
    circle = [1 + SHAPES.index("circle"), 1 + list(COLOURS).index("red"), 2]
    square = [1 + SHAPES.index("square"), 1 + list(COLOURS).index("blue"), 1]
    assert sides == [square, circle, [0, 0, 0], [0, 0, 0]]


def test_a_single_object_stands_on_every_side() -> None:
    """Expect the object four times, and no second one in the scene."""
    labels = layout_labels(Scene(Thing("cross", "black")))
    object_ = [1 + SHAPES.index("cross"), 1 + list(COLOURS).index("black"), 1]
    assert labels[2 * len(SCENE) :] == object_ * 4
    assert labels[3:7] == [0, 0, 0, 0]
