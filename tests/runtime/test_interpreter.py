"""Draw with tiny bundles and compare with the same arithmetic in NumPy, at torch's noise."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from diffc.runtime import BundleError, Cancelled, Progress, RequestError, Sampler, load

# Float32 sums in another order: 2e-7 measured on pictures in [0, 1].
CLOSE = 2e-6

RED, BLUE, NOTHING = [0, 3, 5, 1, 1, 1, 1, 1], [0, 4, 6, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]


def noises(seed: int, count: int, draws: int = 4) -> list[np.ndarray]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn((count, 3, 4, 4), generator=generator).numpy() for _ in range(draws)]


def expected(tiny: Any, ids: list[list[int]], drawn: list[np.ndarray], guidance: float = 5.0) -> np.ndarray:
    rows = np.array(ids)
    return tiny.pictures(rows, np.array([NOTHING] * len(rows)), guidance, drawn)


@pytest.fixture(scope="module")
def sampler(shared: Path) -> Sampler:
    return load(shared, threads=1)


@pytest.fixture(scope="module")
def pairs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    return load(tiny.write(tmp_path_factory.mktemp("pairs") / "pairs.diffc", batch=2), threads=1)


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE)


def test_draws_what_the_program_says(sampler: Sampler, tiny: Any) -> None:
    got = sampler("red circle", seed=0, output="np")
    assert got.dtype == np.float32 and got.shape == (1, 4, 4, 3)
    close(got, expected(tiny, [RED], noises(0, 1)))


def test_reads_the_negative_prompt_and_the_guidance_scale(sampler: Sampler, tiny: Any) -> None:
    got = sampler("red circle", negative_prompt="blue square", guidance_scale=3.0, seed=1, output="np")
    close(got, tiny.pictures(np.array([RED]), np.array([BLUE]), 3.0, noises(1, 1)))


@pytest.mark.parametrize("name", ["sampler", "pairs"])
def test_one_seed_draws_all_pictures_at_once(name: str, tiny: Any, request: pytest.FixtureRequest) -> None:
    # Three pictures: three runs of one, or a run of two and a padded run of one. The noise is the same.
    got = request.getfixturevalue(name)(["red circle", "blue square", "red circle"], seed=7, output="np")
    close(got, expected(tiny, [RED, BLUE, RED], noises(7, 3)))


def test_one_seed_is_one_draw_though_small_draws_add_up_otherwise(tiny: Any, tmp_path: Path) -> None:
    body = "n: T = noise() m: T = noise() i: T = linear(n, m; 0.1, 0.01, 0.5) return i"
    got = small(tiny, tmp_path, body)("", num_images=7, seed=3, output="np")
    generator = torch.Generator("cpu").manual_seed(3)
    n, m = (torch.randn((7, 3, 1, 1), generator=generator).numpy() for _ in range(2))
    close(got, (0.1 * n + 0.01 * m + 0.5).transpose(0, 2, 3, 1))


EMBEDDED = """program p(e: float32[2, 3, 1, 1], image: picture[2, 3, 1, 1]) {
    n: float32[2, 3, 1, 1] = noise()
    y: float32[2, 3, 1, 1] = linear(n, e, image; 0.0, 1.0, 10.0)
    return y
}"""


def test_numbers_are_inputs_with_a_row_for_each_picture(tiny: Any, tmp_path: Path) -> None:
    sampler = load(tiny.write(tmp_path / "e.diffc", programs={"p": EMBEDDED}))
    rows = np.arange(9.0).reshape(3, 3, 1, 1)
    grey = np.full((1, 1, 3), 0.5, np.float32)
    got = sampler(e=rows, image=grey, output="np")
    close(got, (rows + 5).transpose(0, 2, 3, 1))
    close(sampler(e=rows[1], image=[grey] * 3, output="np"), np.repeat(got[1:2], 3, axis=0))
    close(sampler(e=rows, image=grey, num_images=2, output="np"), np.repeat(got, 2, axis=0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "this program needs e"),
        (np.zeros((3, 2, 1)), r"e is float64\[3, 2, 1\]"),
        (np.zeros((0, 3, 1, 1)), r"e is float64\[0, 3, 1, 1\]"),
        (np.zeros((1, 1, 3, 1, 1)), r"e is float64\[1, 1, 3, 1, 1\]"),
        (np.zeros((3, 1, 1), bool), r"e is bool\[3, 1, 1\]"),
        (np.array(["a", "b", "c"]).reshape(3, 1, 1), "e is <U1"),
        (np.array([[[1.0]], [[np.nan]], [[0.0]]]), "e holds NaN or infinity"),
        (np.full((3, 1, 1), 1e39), "e holds NaN or infinity"),
        (np.zeros((3, 3, 1, 1)), "e has rows for 3 of 2 pictures|image has rows for 2 of 3 pictures"),
    ],
)
def test_refuses_other_numbers(given: Any, message: str, tiny: Any, tmp_path: Path) -> None:
    sampler = load(tiny.write(tmp_path / "e.diffc", programs={"p": EMBEDDED}))
    with pytest.raises(RequestError, match=message):
        sampler(e=given, image=[np.zeros((1, 1, 3), np.float32)] * 2)


def twice(tiny: Any, folder: Path, batch: int) -> Sampler:
    """Draw noise for both branches of a guidance, all of the one before all of the other."""
    one, two = f"float32[{batch}, 3, 1, 1]", f"float32[{2 * batch}, 3, 1, 1]"
    text = f"""program p() {{
        n: {two} = noise()
        u: {one}, v: {one} = split(n, axis=0)
        y: {one} = linear(u, v; 1.0, 0.5)
        return y
    }}"""
    return load(tiny.write(folder / f"twice{batch}.diffc", programs={"p": text}))


def test_noise_for_both_branches_of_a_guidance(tiny: Any, tmp_path: Path) -> None:
    def wanted(seed: int, count: int, given: torch.Tensor | None = None) -> np.ndarray:
        drawn = torch.randn((2 * count, 3, 1, 1), generator=torch.Generator("cpu").manual_seed(seed))
        u, v = (drawn if given is None else given).numpy().reshape(2, count, 3, 1, 1)
        return (u + 0.5 * v).transpose(0, 2, 3, 1)

    single, double = twice(tiny, tmp_path, 1), twice(tiny, tmp_path, 2)
    close(single(seed=4, output="np"), wanted(4, 1))
    close(single(seed=[4, 5, 6], num_images=3, output="np"), np.concatenate([wanted(s, 1) for s in (4, 5, 6)]))
    close(double(seed=4, num_images=2, output="np"), wanted(4, 2))
    latents = torch.arange(12.0).reshape(4, 3, 1, 1)
    close(double(seed=0, num_images=2, latents=latents, output="np"), wanted(0, 2, latents))
    for sampler, request in ((single, {"num_images": 2}), (double, {}), (double, {"num_images": 2, "seed": [1, 2]})):
        with pytest.raises(RequestError, match="in which order for . is not known"):
            sampler(output="np", **request)


@pytest.mark.parametrize("name", ["sampler", "pairs"])
def test_a_list_of_seeds_gives_each_picture_its_own(name: str, tiny: Any, request: pytest.FixtureRequest) -> None:
    got = request.getfixturevalue(name)("red circle", num_images=3, seed=[7, 8, 9], output="np")
    each = [noises(seed, 1) for seed in (7, 8, 9)]
    close(got, expected(tiny, [RED] * 3, [np.concatenate(rows) for rows in zip(*each, strict=True)]))


def test_pictures_come_prompt_by_prompt(pairs: Sampler, tiny: Any) -> None:
    got = pairs(["red circle", "blue square"], num_images=2, seed=3, output="np")
    close(got, expected(tiny, [RED, RED, BLUE, BLUE], noises(3, 4)))


def test_latents_stand_for_the_first_draw(sampler: Sampler, tiny: Any) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    got = sampler("red circle", num_images=2, latents=latents, seed=5, output="np")
    close(got, expected(tiny, [RED, RED], [latents, *noises(5, 2, draws=3)]))
    shared = sampler("red circle", num_images=2, latents=latents[:1], seed=5, output="np")
    close(shared[0], got[0])


def test_no_seed_is_a_random_one_that_is_reported(sampler: Sampler) -> None:
    [first], [second] = sampler("red circle"), sampler("red circle")
    assert first.info["seed"] != second.info["seed"]
    [again] = sampler("red circle", seed=first.info["seed"])
    assert again.tobytes() == first.tobytes() != second.tobytes()


def test_pictures_are_rounded_as_diffusers_rounds(sampler: Sampler) -> None:
    from diffusers.image_processor import VaeImageProcessor

    wanted = VaeImageProcessor.numpy_to_pil(sampler("red circle", seed=[4, 5], num_images=2, output="np"))
    got = sampler("red circle", seed=[4, 5], num_images=2)
    assert [p.tobytes() for p in got] == [p.tobytes() for p in wanted]
    assert [p.info["seed"] for p in got] == [4, 5]


def test_the_first_program_whose_guards_hold_is_chosen(sampler: Sampler) -> None:
    chosen = sampler("red circle", guidance_scale=0.5, seed=0, output="np")
    named = sampler("red circle", guidance_scale=0.5, seed=0, output="np", program="plain")
    np.testing.assert_array_equal(chosen, named)


def test_says_what_the_bundle_is(sampler: Sampler, shared: Path) -> None:
    assert sampler.path == shared and sampler.target == "ort-fp32"
    assert list(sampler.programs) == ["draw", "plain"] and sampler.programs["draw"].startswith("program draw(")
    assert sampler.bytes == sum(
        f.stat().st_size for f in shared.rglob("*") if f.is_file() and f.name != "manifest.json"
    )
    assert sampler.manifest["schema"] == 1


def test_reports_every_step_with_its_latents(pairs: Sampler, tiny: Any) -> None:
    seen = list[Progress]()
    got = pairs("red circle", num_images=3, seed=2, callback=seen.append, output="np")
    assert [(p.step, p.steps) for p in seen] == [(at, 6) for at in range(1, 7)]
    assert [list(p.images) for p in seen] == [[0, 1]] * 3 + [[2]] * 3
    assert [p.latents.shape[0] for p in seen] == [2] * 3 + [1] * 3 and {p.seed for p in seen} == {2}
    close(tiny.decoded(seen[2].latents / 2).transpose(0, 2, 3, 1), got[:2])


def test_previews_decode_the_latents_of_any_step(pairs: Sampler, tiny: Any) -> None:
    seen = list[Progress]()
    got = pairs("red circle", num_images=3, seed=2, callback=seen.append)
    for progress in seen:
        wanted = (tiny.decoded(progress.latents / 2) * 255).round().transpose(0, 2, 3, 1)
        previews = progress.preview()
        assert len(previews) == len(progress.images)
        assert max(np.abs(np.asarray(p) - w).max() for p, w in zip(previews, wanted, strict=True)) <= 1
    assert [p.tobytes() for p in seen[5].preview()] == [got[2].tobytes()]


def small(tiny: Any, folder: Path, body: str) -> Sampler:
    """Make a sampler of pictures [1, 3, 1, 1] without graphs."""
    text = f"program p(a: scalar = 2.0) {{ {body} }}".replace("T ", "float32[1, 3, 1, 1] ")
    return load(tiny.write_bundle(folder, {}, programs={"p": text}, graphs={}, tokenizers={}))


def test_previews_where_the_tail_reads_a_multiple_of_the_latents(tiny: Any, tmp_path: Path) -> None:
    body = (
        "n: T = noise() m: T = noise() step(n; 1.0) step(n, m; 0.5, 0.25*a, 1.0) i: T = linear(m, n; 0.5*a, 1.0, 0.5)"
    )
    seen = list[Progress]()
    got = small(tiny, tmp_path, body + " return i")("", seed=0, callback=seen.append, output="np")
    decode = [progress._preview().transpose(0, 2, 3, 1) for progress in seen]
    close(decode[1], got)
    close(decode[0], (2 * (seen[0].latents - 1) + 0.5).transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    "body",
    [
        "n: T = noise() m: T = noise() step(n, m; 1.0, 1.0) i: T = linear(m, n; 1.0, 2.0)",
        "n: T = noise() step(n; 1.0) m: T = linear(n; 2.0) step(m; 1.0) i: T = linear(m, k; 1.0, 1.0)",
        "n: T = noise() step(n; 0.0) i: T = linear(n; 1.0)",
    ],
    ids=["another combination", "a value of a later step", "no latents"],
)
def test_refuses_previews_that_would_be_wrong(body: str, tiny: Any, tmp_path: Path) -> None:
    body = body.replace("step(m;", "k: T = linear(n; 3.0) step(m;")
    seen = list[Progress]()
    small(tiny, tmp_path, body + " return i")("", seed=0, callback=seen.append)
    with pytest.raises(RequestError, match="the latents of this step"):
        seen[0].preview()


def test_a_callback_cancels_and_the_sampler_stays_usable(sampler: Sampler, tiny: Any) -> None:
    with pytest.raises(Cancelled, match="cancelled after step 2 of 3"):
        sampler("red circle", seed=0, callback=lambda progress: progress.step == 2)
    close(sampler("red circle", seed=0, output="np"), expected(tiny, [RED], noises(0, 1)))


def test_two_threads_do_not_disturb_each_other(shared: Path, tiny: Any) -> None:
    sampler, got = load(shared, threads=1), dict[int, np.ndarray]()

    def draw(seed: int) -> None:
        got[seed] = sampler("red circle", num_images=5, seed=seed, output="np")

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        close(got[seed], expected(tiny, [RED] * 5, noises(seed, 5)))


def test_frees_values_at_their_last_use(sampler: Sampler) -> None:
    program, alive = sampler._bundle.programs["draw"], list[set[str]]()
    given = {"prompt": ["red"], "negative_prompt": [""]}
    given |= {value.name: np.zeros(value.type.shape, np.float32) for value in program.noises}
    interpreter = sampler._interpreter
    interpreter.run(program, given, {"guidance_scale": 5.0}, on_step=lambda op, values: alive.append(set(values)))
    assert alive[1] == {"bias", "h", "x2", "z2"} and alive[2] == {"bias", "x3"}


def test_linear_broadcasts_casts_and_adds_a_constant(tiny: Any, tmp_path: Path) -> None:
    body = """graph count(x: float32[1]) -> (y: int64[3, 1, 1])
    n: T = noise() k: int64[3, 1, 1] = count(x=1.5)
    i: T = linear(n, k; 0.0, 0.125, 0.25 - 0.125*a) return i"""
    node = tiny.graph(
        [helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.array([[[1]], [[2]], [[3]]])))],
        {"x": ("float32", [1])},
        {"y": ("int64", [3, 1, 1])},
        [],
    )
    text = f"program p(a: scalar = 2.0) {{ {body} }}".replace("T ", "float32[1, 3, 1, 1] ")
    graphs = {"count": {"file": "graphs/count.onnx", "component": "count"}}
    made = tiny.write_bundle(tmp_path, {"graphs/count.onnx": node}, programs={"p": text}, graphs=graphs, tokenizers={})
    np.testing.assert_array_equal(load(made)("", output="np").ravel(), [0.125, 0.25, 0.375])
    np.testing.assert_array_equal(load(made)("", output="np", a=0).ravel(), [0.375, 0.5, 0.625])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 5}, "prompt is 5"),
        ({"prompt": []}, r"prompt is \[\]"),
        ({"prompt": [5]}, "the prompt is a int"),
        ({"prompt": "a\0b"}, "the prompt holds a NUL byte"),
        ({"prompt": "\ud800"}, "the prompt is not valid Unicode"),
        ({"prompt": ["red", "blue"], "negative_prompt": ["a", "b", "c"]}, "prompt has 2 texts, another has 3"),
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": True}, "num_images is True"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": "5"}, "guidance_scale is '5'"),
        ({"guidance_scale": True}, "guidance_scale is True"),
        ({"guidance_scale": 0.5, "program": "draw"}, r"draw takes guidance_scale > 1\.0"),
        ({"program": "other"}, "the bundle has no program other"),
        ({"size": (8, 4)}, "this bundle draws no 8x4"),
        ({"size": (4, 4, 4)}, r"size is \(4, 4, 4\)"),
        ({"size": "4x4"}, "size is '4x4'"),
        ({"size": 4}, "size is 4"),
        ({"eta": 0.5}, "no program of this bundle takes eta"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
        ({"latents": np.zeros((1, 3, 4))}, r"the latents are float64\[1, 3, 4\]"),
        ({"latents": np.full((1, 3, 4, 4), np.nan)}, "the latents hold NaN"),
        ({"latents": np.zeros((1, 3, 4, 4), bool)}, "the latents are bool"),
        ({"output": "latent"}, "output is 'latent'"),
    ],
)
def test_refuses_what_it_cannot_serve(sampler: Sampler, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        sampler(**{"prompt": "red circle", **options})


def drawing(name: str, *shape: int) -> str:
    """Write a program that draws noise of a shape."""
    return f"program {name}() {{ n: float32{list(shape)} = noise() return n }}"


def test_a_size_chooses_among_programs(tiny: Any, tmp_path: Path) -> None:
    shapes = {"square": (1, 3, 2, 2), "wide": (1, 3, 2, 4), "film": (1, 5, 3, 6, 4), "sound": (1, 2, 9)}
    sampler = load(tiny.write(tmp_path / "x.diffc", programs={n: drawing(n, *shape) for n, shape in shapes.items()}))
    assert sampler(seed=0, output="np").shape == (1, 2, 2, 3), "the first is the default"
    assert sampler(seed=0, output="np", size=(4, 2)).shape == (1, 2, 4, 3)
    assert sampler(seed=0, output="np", size=[4, 6]).shape == (1, 5, 6, 4, 3)
    with pytest.raises(RequestError, match="this bundle draws no 2x4") as raised:
        sampler(seed=0, size=(2, 4))
    assert "it draws 2x2, 4x2, 4x6;" in str(raised.value.fix)
    with pytest.raises(RequestError, match="wide draws no 2x2"):
        sampler(seed=0, size=(2, 2), program="wide")
    with pytest.raises(RequestError, match="sound draws no 9x2") as raised:
        sampler(seed=0, size=(9, 2), program="sound")
    assert raised.value.fix == "leave the size out"


def test_names_the_guards_when_none_holds(tiny: Any, tmp_path: Path) -> None:
    sampler = load(tiny.write(tmp_path))
    with pytest.raises(RequestError) as raised:
        sampler("red", guidance_scale=1.0)
    assert "serves guidance_scale=1.0" in str(raised.value) and "draw takes guidance_scale > 1.0" in str(raised.value)


def test_refuses_latents_without_noise(tiny: Any, tmp_path: Path) -> None:
    sampler = small(tiny, tmp_path, "i: T = linear(; a) return i")
    with pytest.raises(RequestError, match="draws no noise"):
        sampler("", latents=np.zeros((1, 3, 1, 1)))
    with pytest.raises(RequestError, match="takes prompt"):
        sampler("a red circle")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": "ids"}, "graphs/text_encoder.onnx has other ports"),
        (
            {
                "(image: float32[1, 3, 4, 4]": "(image: float32[1, 3, 2, 8]",
                "\nimage: float32[1, 3, 4, 4]": "\nimage: float32[1, 3, 2, 8]",
            },
            r"graph decoder returned float32\[1, 3, 4, 4\] for image: float32\[1, 3, 2, 8\]",
        ),
        ({"timestep: int64[]": "timestep: float32[]"}, r"graph unet failed: .*expected: \(tensor\(int64\)\)"),
    ],
)
def test_refuses_graphs_that_are_not_what_the_program_says(
    tiny: Any, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    text = tiny.program(1)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(BundleError, match=message):
        load(tiny.write(tmp_path, programs={"draw": text}))("red circle")
