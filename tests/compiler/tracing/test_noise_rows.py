"""Find which noises follow the rows of the request's inputs, from traces of one and of two images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.noise_rows import IMAGES, SEEDS, generators, with_rows_of_noise
from diffc.compiler.tracing.request_inputs import Text
from diffc.compiler.tracing.trace import trace

PROGRAM = """program p(prompt: text[1], image: image[1, 3, 2, 2], mask_image: image[1, 1, 2, 2]) {{
    a: float32[{a}, 3, 2, 2] = noise({of_a})
    b: float32[{b}, 3, 2, 2] = noise({of_b})
    c: float32[{c}, 3, 2, 2] = noise({of_c})
    d: float32[{a}, 3, 2, 2] = aten.mul.Tensor(a, 0.5)
    e: float32[{a}, 3, 2, 2] = aten.add.Tensor(d, image)
    f: float32[{c}, 3, 2, 2] = aten.mul.Tensor(image, mask_image)
    g: float32[{c}, 3, 2, 2] = aten.add.Tensor(f, c)
    h: float32[{b}, 3, 2, 2] = aten.add.Tensor(b, e)
    i: float32[{b}, 3, 2, 2] = aten.add.Tensor(h, g)
    return i
}}
"""


def program(a: int, b: int, c: int, **noises: str) -> Program:
    """Parse the program with these numbers of rows; the noises a and c are combined with inputs."""
    return parse(PROGRAM.format(**{"a": a, "b": b, "c": c, "of_a": "", "of_b": "", "of_c": ""} | noises))


ONE = program(1, 1, 1)
FIRST, SECOND = (f"generator={seed}" for seed in SEEDS)
DRAWS = """program p() {{
    {draws}
    return n0
}}
"""


def drawn(*seeds: str) -> Program:
    """Parse a program that draws from these generators, in order."""
    draws = "\n    ".join(f"n{at}: float32[1, 3, 2, 2] = noise({seed})" for at, seed in enumerate(seeds))
    return parse(DRAWS.format(draws=draws))


def rows(several: Program, by_generators: Program, *variants: Program) -> list[Program]:
    """Find the rows of the noises of one image."""
    return with_rows_of_noise([ONE, *variants], lambda _, one_each: by_generators if one_each else several)


def test_noise_of_each_image_alone_is_refused() -> None:
    two = parse(PROGRAM.format(a=1, b=2, c=2, of_a="", of_b="", of_c="").replace("[1]", "[2]").replace("e[1", "e[2"))
    with pytest.raises(CaptureError, match=r"p generates the noise of each of 2 images alone\n.*--batch 1"):
        with_rows_of_noise([two], lambda *_: two)


def test_noise_follows_what_it_is_combined_with_first() -> None:
    one_generator = drawn(FIRST, FIRST, SECOND, FIRST)
    assert rows(program(1, IMAGES, 1), one_generator) == [
        program(1, 1, 1, of_a="image", of_c="image, mask_image"),
    ]


def test_the_generator_of_each_image_draws_where_the_pipeline_lets_it() -> None:
    every_generator = drawn(FIRST, SECOND, FIRST, SECOND, FIRST)
    assert rows(program(1, IMAGES, 1), every_generator, ONE) == 2 * [
        program(1, 1, 1, of_a="image, each=true", of_c="image, mask_image"),
    ]


def test_noise_of_every_image_follows_nothing() -> None:
    assert rows(program(IMAGES, IMAGES, IMAGES), drawn()) == [ONE]


def test_noise_whose_images_are_not_its_rows_is_refused() -> None:
    draws = [f"n0: float32[4, {images}, 2] = noise()" for images in (1, IMAGES)]
    text = "program p(image: image[1, 3, 2, 2]) {{\n    {}\n    return image\n}}\n"
    one, several = (parse(text.format(draw)) for draw in draws)
    with pytest.raises(CaptureError, match=r"p generates noise of \[4\] rows for one image, and of \[4\] for 2"):
        with_rows_of_noise([one], lambda *_: several)


def test_a_pipeline_that_samples_one_image_only_is_left_alone() -> None:
    def retrace(_: Program, __: bool) -> Program:
        raise CaptureError("one image only")

    assert with_rows_of_noise([ONE], retrace) == [ONE]
    assert with_rows_of_noise([ONE], lambda *_: ONE) == [ONE], "one that ignores how many are requested"


def test_a_pipeline_that_takes_one_generator_only_lets_each_seed_sample_its_image() -> None:
    def retrace(_: Program, one_each: bool) -> Program:
        if one_each:
            raise CaptureError("one generator only")
        return program(1, IMAGES, IMAGES)

    assert with_rows_of_noise([ONE], retrace) == [program(1, 1, 1, of_a="image, each=true")]


@pytest.mark.parametrize(
    ("several", "by_generators", "message"),
    [
        (drawn("", ""), drawn(), r"noise of \[1, 1, 1\] rows for one image, and of \[1, 1\] for 2"),
        (program(1, 3, 1), drawn(), r"rows for one image, and of \[1, 3, 1\] for 2"),
        (program(1, IMAGES, 1), drawn(SECOND, FIRST, SECOND, FIRST), "several generators draw in the order"),
    ],
)
def test_noise_in_an_order_that_no_program_can_state_is_refused(
    several: Program, by_generators: Program, message: str
) -> None:
    with pytest.raises(CaptureError, match=message):
        rows(several, by_generators)


def test_each_program_has_rows_of_its_own() -> None:
    guided = program(2, 1, 1)
    traced: list[Program] = []

    def retrace(of: Program, one_each: bool) -> Program:
        traced.append(of)
        return drawn(FIRST, SECOND, FIRST, SECOND, FIRST) if one_each else program(of.noises[0].type.fixed[0], 2, 1)

    alone, again, doubled = with_rows_of_noise([ONE, ONE, guided], retrace)
    assert traced == [ONE, ONE, ONE, ONE, guided, guided], "one of two images, one of a generator each"
    assert alone == again == program(1, 1, 1, of_a="image, each=true", of_c="image, mask_image")
    assert doubled == program(2, 1, 1, of_a="image, each=true", of_c="image, mask_image")


def test_the_trace_names_the_generators_of_the_images_and_refuses_others() -> None:
    def draw(generator: torch.Generator) -> Any:
        return lambda prompt: torch.randn((1, 2), generator=generator)

    for generator, seed in zip(generators(), SEEDS, strict=True):
        [noise] = trace(draw(generator), {}, {"prompt": Text()}, calls=ComponentCalls(), seeds=SEEDS).ops
        assert noise.attr("generator") == seed
    with pytest.raises(CaptureError, match="a generator of its own"):
        trace(draw(torch.Generator().manual_seed(3)), {}, {"prompt": Text()}, calls=ComponentCalls(), seeds=SEEDS)


def test_all_traces_share_the_generators_that_components_are_handed() -> None:
    assert list(map(repr, generators())) == list(map(repr, generators()))
