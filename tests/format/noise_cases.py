"""Define bundles that show which noise a request's seed stands for, and compute it with PyTorch.

No runtime of diffc takes part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from tests.format.authoring import Array, Case, Request, last, noise


def noise_cases() -> Iterator[Case]:
    """Yield the bundles whose noise differs."""
    yield from (small_noise(), kinds_of_noise(), separate_noise(), spawned_noise(), both_branches())


def small_noise() -> Case:
    """Draw fewer than 16 values, just 16, and numbers of values that are no multiple of 16, one after the other."""
    text = """program p() {
    a: float32[1, 3] = noise()
    b: float32[1, 16] = noise()
    c: float32[1, 1] = noise()
    y: float32[1, 20] = concat(a, b, c, axis=1)
    return y
}
"""

    def result(seed: int, count: int) -> Array:
        return np.concatenate(noise(seed, (count, 3), (count, 16), (count, 1)), axis=1)

    requests = [
        Request(f"{count} images", {"num_images": count, "seed": 3}, result(3, count)) for count in (1, 5, 7, 17)
    ]
    seeds = [11, 2**32 + 11, -1, 2**64 - 1]
    each = np.concatenate([result(seed, 1) for seed in seeds])
    requests.append(Request("seeds of 64 bits", {"num_images": 4, "seed": seeds}, each))
    latents = np.arange(15, dtype=np.int64).reshape(5, 3)
    rest = np.concatenate([latents, *noise(3, (5, 16), (5, 1))], axis=1)
    requests.append(Request("latents are not drawn", {"num_images": 5, "seed": 3, "latents": latents}, rest))
    return Case("small_noise", {"p": text}, requests)


def kinds_of_noise() -> Case:
    """Draw noise of every kind from one generator, between normal noises of fewer than 16 values."""
    text = """program p() {
    graph join(u: float32[1, 5], v: float64[1, 17], i: int64[1, 3], j: int64[1, 3]) -> (o: float32[1, 28])
    a: float32[1, 1] = noise()
    u: float32[1, 5] = noise(kind="uniform")
    v: float64[1, 17] = noise(kind="uniform")
    i: int64[1, 3] = noise(kind="integers", low=-2, high=9)
    j: int64[1, 3] = noise(kind="integers", low=0, high=1099511627776)
    e: float32[1, 19] = noise(kind="exponential")
    b: float32[1, 1] = noise()
    o: float32[1, 28] = join(u=u, v=v, i=i, j=j)
    y: float32[1, 49] = concat(a, b, e, o, axis=1)
    return y
}
"""
    join = """g (float[1,5] u, double[1,17] v, int64[1,3] i, int64[1,3] j) => (float[1,28] o) {
        w = Cast<to=1>(v) k = Cast<to=1>(i) l = Cast<to=1>(j) o = Concat<axis=1>(u, w, k, l) }"""

    def result(seed: int, count: int) -> Array:
        generator = torch.Generator("cpu").manual_seed(seed)
        a = torch.randn(count, 1, generator=generator)
        u = torch.rand(count, 5, generator=generator)
        v = torch.rand(count, 17, generator=generator, dtype=torch.float64)
        i, j = (torch.randint(low, high, (count, 3), generator=generator) for low, high in ((-2, 9), (0, 2**40)))
        e = torch.empty(count, 19).exponential_(generator=generator)
        b = torch.randn(count, 1, generator=generator)
        return torch.cat([a, b, e, u, v.float(), i.float(), j.float()], 1).numpy()

    each = np.concatenate([result(seed, 1) for seed in (3, 4)])
    requests = [Request(f"{count} images", {"num_images": count, "seed": 3}, result(3, count)) for count in (1, 4)]
    requests.append(Request("a seed for each", {"num_images": 2, "seed": [3, 4]}, each))
    return Case("kinds_of_noise", {"p": text}, requests, {"join": join})


def separate_noise() -> Case:
    """Draw noise of a generator apart, before and between noises of the seed, for each array and for each image."""
    text = """program p(a: float32[1, 3]) {
    e: float32[1, 3] = noise(a, separate=true)
    f: float32[1, 3] = noise(separate=true)
    n: float32[1, 3] = noise()
    u: float32[1, 3] = noise(kind="uniform", separate=true)
    m: float32[1, 3] = noise()
    y: float32[1, 18] = concat(a, e, f, n, u, m, axis=1)
    return y
}
"""
    a = np.arange(6, dtype=np.float32).reshape(2, 3)

    def result(seed: int, rows: int, count: int) -> list[Array]:
        apart = torch.Generator("cpu").manual_seed(~seed % 2**64)
        e, f = torch.randn(rows, 3, generator=apart).numpy(), torch.randn(count, 3, generator=apart).numpy()
        u = torch.rand(count, 3, generator=apart).numpy()
        n, m = noise(seed, (count, 3), (count, 3))
        return [e, f, n, u, m]

    def joined(arrays: Array, noises: list[Array]) -> Array:
        return np.concatenate([np.broadcast_to(rows, noises[1].shape) for rows in (arrays, *noises)], axis=1)

    seeds = [3, -1, 2**64 - 5]
    first, *others = result(seeds[0], 1, 1), *(result(seed, 0, 1) for seed in seeds[1:])
    each = np.concatenate([joined(a[:1], [first[0], *noises[1:]]) for noises in (first, *others)])
    latents = np.arange(3, dtype=np.float32).reshape(1, 3)
    e, f, _, u, _ = result(3, 1, 1)
    [m] = noise(3, (1, 3))
    requests = [
        Request("one image", {"a": a[:1], "seed": 3}, joined(a[:1], result(3, 1, 1))),
        Request("two images of one array", {"a": a[:1], "num_images": 2, "seed": 3}, joined(a[:1], result(3, 1, 2))),
        Request("two arrays", {"a": a, "seed": -(2**63)}, joined(a, result(-(2**63), 2, 2))),
        Request("a seed for each image", {"a": a[:1], "num_images": 3, "seed": seeds}, each),
        Request(
            "latents replace noise of the seed",
            {"a": a[:1], "seed": 3, "latents": latents},
            joined(a[:1], [e, f, latents, u, m]),
        ),
    ]
    return Case("separate_noise", {"p": text}, requests)


def spawned_noise() -> Case:
    """Draw noise of spawned seeds between noises of the seed, which it does not shift."""
    text = """program p(a: float32[1, 3]) {
    n: float32[1, 3] = noise()
    t: float32[1, 17] = noise(pool=24, terms=[[0.5, 0], [-0.25, 2, 5, 4294967299], [3, 1, 0]])
    m: float32[1, 3] = noise()
    e: float32[1, 3] = noise(a, pool=4, terms=[[1.0, 0, 1]])
    f: float32[1, 3] = noise(separate=true, pool=4, terms=[[1.0, 5]])
    y: float32[1, 29] = concat(n, t, m, e, f, axis=1)
    return y
}
"""

    def spawned(seed: int, pool: int, terms: Sequence[Sequence[float]], *shape: int) -> Array:
        total = torch.zeros(shape)
        for factor, *place in terms:
            word, *key = map(int, place)
            state = np.random.SeedSequence(seed % 2**64, spawn_key=key, pool_size=pool).generate_state(word + 1)
            total += factor * torch.randn(shape, generator=torch.Generator("cpu").manual_seed(int(state[word])))
        return total.numpy()

    def result(seed: int, count: int) -> Array:
        n, m = noise(seed, (count, 3), (count, 3))
        t = spawned(seed, 24, [[0.5, 0], [-0.25, 2, 5, 4294967299], [3, 1, 0]], count, 17)
        e = np.broadcast_to(spawned(seed, 4, [[1.0, 0, 1]], 1, 3), (count, 3))
        return np.concatenate([n, t, m, e, spawned(~seed, 4, [[1.0, 5]], count, 3)], axis=1)

    a, seeds = np.zeros((1, 3), np.float32), [0, -1, 2**40 + 3]
    each = np.concatenate([result(seed, 1) for seed in seeds])
    each[:, 23:26] = each[0, 23:26]
    requests = [Request(f"{n} images", {"a": a, "num_images": n, "seed": 3}, result(3, n)) for n in (1, 3)]
    requests.append(Request("a seed for each image", {"a": a, "num_images": 3, "seed": seeds}, each))
    latents = np.arange(3, dtype=np.float32).reshape(1, 3)
    replaced = result(2**64 - 1, 1)
    replaced[:, 20:23], replaced[:, :3] = replaced[:, :3], latents
    requests.append(Request("latents replace noise", {"a": a, "seed": 2**64 - 1, "latents": latents}, replaced))
    return Case("spawned_noise", {"p": text}, requests)


def both_branches() -> Case:
    """Draw noise with two rows for each image of a batch of two: all first rows, then all second rows."""
    text = """program p() {
    n: float32[4, 3, 1, 1] = noise()
    u: float32[2, 3, 1, 1], v: float32[2, 3, 1, 1] = split(n, axis=0)
    y: float32[2, 3, 1, 1] = linear(u, v; 1.0, 0.5)
    return y
}
"""
    [n] = noise(4, (4, 3, 1, 1))
    latents = np.arange(12, dtype=np.float32).reshape(4, 3, 1, 1)
    requests = [
        Request("one batch", {"num_images": 2, "seed": 4}, last(n[:2] + 0.5 * n[2:])),
        Request("latents", {"num_images": 2, "latents": latents, "seed": 0}, last(latents[:2] + 0.5 * latents[2:])),
        Request("less than a batch", {"seed": 4}, refused="request"),
        Request("more than a batch", {"num_images": 4, "seed": 4}, refused="request"),
        Request("a seed for each image", {"num_images": 2, "seed": [1, 2]}, refused="request"),
    ]
    return Case("both_branches", {"p": text}, requests)
