"""Define bundles that read and return arrays, images, videos and audio, and compute in NumPy what they return.

No runtime of diffc takes part.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.format.authoring import Array, Case, Request, last, noise
from tests.format.reference import grey, lanczos


def array_cases() -> Iterator[Case]:
    """Yield the bundles whose requests give or return arrays."""
    yield from (arrays(), images(), given_images(), video(), audio())


def arrays() -> Case:
    """Read arrays with a row for each image, in batches of two."""
    text = """program p(e: float32[2, 3], f: float32[2, 3]) {
    y: float32[2, 3] = linear(e, f; 1.0, 10.0)
    return y
}
"""
    e, f = np.arange(9, dtype=np.float64).reshape(3, 3), np.array([[1, 2, 3]], np.int32)
    requests = [
        Request("a row for each image", {"e": e, "f": f}, e + 10 * f),
        Request("one row without its batch", {"e": e[1], "f": f[0]}, e[1:2] + 10 * f),
        Request("each row twice", {"e": e, "f": f, "num_images": 2}, np.repeat(e + 10 * f, 2, axis=0)),
        Request("a missing array", {"e": e}, refused="request"),
        Request("another shape", {"e": e[:, :2], "f": f}, refused="request"),
        Request("no rows", {"e": e[:0], "f": f}, refused="request"),
        Request("another number of rows", {"e": e, "f": e[:2]}, refused="request"),
        Request("truth values", {"e": e > 3, "f": f}, refused="request"),
        Request("more than float32 holds", {"e": np.full((1, 3), 1e39), "f": f}, refused="request"),
        Request("NaN", {"e": np.full((1, 3), np.nan), "f": f}, refused="request"),
    ]
    return Case("arrays", {"p": text}, requests)


def images() -> Case:
    """Read images and a mask of the program's size, or scale them to it."""
    text = """program p(image: image[1, 3, 4, 6], mask_image: image[1, 1, 4, 6]) {
    y: float32[1, 3, 4, 6] = linear(image, mask_image; 1.0, 0.5)
    return y
}
"""
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    small = rng.integers(0, 256, (3, 2, 3), dtype=np.uint8)
    exact, mask = np.linspace(0, 1, 72, dtype=np.float32).reshape(4, 6, 3), np.eye(4, 6, dtype=np.float32)[..., None]

    def result(image: Array, mask: Array) -> Array:
        return image + np.float32(0.5) * mask

    def scaled(pixels: Array) -> Array:
        return lanczos(pixels, 6, 4).astype(np.float32) / 255

    shade = grey(lanczos(small, 6, 4))[..., None].astype(np.float32) / 255
    requests = [
        Request("arrays of the size", {"image": exact, "mask_image": mask}, result(exact, mask)[None]),
        Request(
            "arrays with a batch",
            {"image": np.stack([exact, exact[::-1]]), "mask_image": mask},
            np.stack([result(exact, mask), result(exact[::-1], mask)]),
        ),
        Request(
            "images are scaled, masks are grey",
            {"image": Image.fromarray(large), "mask_image": Image.fromarray(small)},
            result(scaled(large), shade)[None],
        ),
        Request(
            "several images and one mask",
            {"image": [Image.fromarray(large), Image.fromarray(small)], "mask_image": mask},
            np.stack([result(scaled(each), mask) for each in (large, small)]),
        ),
        Request(
            "a grey image in colour",
            {"image": Image.fromarray(grey(large)), "mask_image": mask},
            result(np.repeat(scaled(grey(large)[..., None]), 3, axis=2), mask)[None],
        ),
        Request("a missing image", {"image": exact}, refused="request"),
        Request("an array of another size", {"image": exact[:2], "mask_image": mask}, refused="request"),
        Request(
            "an array of integers", {"image": np.zeros((4, 6, 3), np.uint8), "mask_image": mask}, refused="request"
        ),
        Request("an array above 1", {"image": exact * 255, "mask_image": mask}, refused="request"),
        Request("an array below 0", {"image": exact - 1, "mask_image": mask}, refused="request"),
        Request("NaN", {"image": exact * np.float32(np.nan), "mask_image": mask}, refused="request"),
    ]
    return Case("images", {"p": text}, requests)


def given_images() -> Case:
    """Draw noise with a row for each given image, before and after noise with a row for each requested one."""
    shape = "float32[2, 1, 2, 8]"
    text = f"""program p(prompt: text[2], image: image[2, 1, 2, 8], e: {shape}) {{
    a: {shape} = noise(image)
    b: {shape} = noise()
    c: {shape} = noise(e, image, each=true)
    y: {shape} = linear(image, a, b, c, e; 1.0, 10.0, 100.0, 1000.0, 0.0)
    return y
}}
"""
    rows = np.linspace(0, 1, 48, dtype=np.float32).reshape(3, 2, 8, 1)
    zeros = np.zeros((3, 1, 2, 8), np.float32)

    def rest(count: int) -> tuple[int, ...]:
        return (count, 1, 2, 8)

    def result(images: Array, a: Array, b: Array, c: Array) -> Array:
        return images + last(10 * a + 100 * b + 1000 * c)

    one, three = {"image": rows[0], "e": zeros[0]}, {"image": rows, "e": zeros[:1]}
    each = [noise(seed, *[rest(1)] * 3) for seed in (1, 2, 3)]
    # Of one given image only the first generator draws the first noise: what the others draw comes one earlier.
    b, c = (np.concatenate([first, *(draws[at] for draws in each[1:])]) for at, first in enumerate(each[0][1:]))
    latents = np.arange(48, dtype=np.float32).reshape(3, 1, 2, 8)
    replaced = noise(4, rest(1), rest(1))
    requests = [
        Request(
            "three images of one given image",
            one | {"num_images": 3, "seed": 4},
            result(rows[:1], *noise(4, rest(1), rest(3), rest(1))),
        ),
        Request("a given image for each", three | {"seed": 4}, result(rows, *noise(4, *[rest(3)] * 3))),
        Request(
            "one given image and three prompts",
            one | {"prompt": ["red", "blue", "red circle"], "seed": 4},
            result(rows[:1], *noise(4, rest(1), rest(3), rest(1))),
        ),
        Request(
            "the largest number of rows counts",
            {"image": rows[0], "e": zeros, "seed": 4},
            result(rows[:1], *noise(4, rest(1), rest(3), rest(3))),
        ),
        Request(
            "a seed for each image of one given image",
            one | {"num_images": 3, "seed": [1, 2, 3]},
            result(rows[:1], each[0][0], b, c),
        ),
        Request(
            "a seed for each given image",
            three | {"seed": [1, 2, 3]},
            result(rows, *(np.concatenate(parts) for parts in zip(*each, strict=True))),
        ),
        Request(
            "latents replace no noise of given images",
            one | {"num_images": 3, "seed": 4, "latents": latents},
            result(rows[:1], replaced[0], latents, replaced[1]),
        ),
        Request("several images of several given images", three | {"num_images": 2, "seed": 4}, refused="request"),
    ]
    return Case("given_images", {"p": text}, requests)


def video() -> Case:
    """Return frames of grey images: the channels come last."""
    text = "program p() {\n    y: float32[1, 2, 1, 3, 2] = noise()\n    return y\n}\n"
    [n] = noise(1, (2, 2, 1, 3, 2))
    return Case("video", {"p": text}, [Request("two videos", {"num_images": 2, "seed": 1}, last(n))])


def audio() -> Case:
    """Return what is neither image nor video as it is, of two returned values the first."""
    text = (
        "program p() {\n    y: float32[1, 2, 9] = noise()\n    z: float32[1, 3, 2, 2] = noise()\n    return y, z\n}\n"
    )
    [n] = noise(1, (2, 2, 9))
    return Case("audio", {"p": text}, [Request("two sounds", {"num_images": 2, "seed": 1}, n)])
