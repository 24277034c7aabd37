"""Decode intermediate latents of tiny programs, and compare with the same arithmetic in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffc.runtime import Progress, RequestError, Sampler


def test_previews_decode_the_latents_of_any_step(pairs: Sampler, tiny: Any) -> None:
    seen = list[Progress]()
    got = pairs("red circle", num_images=3, seed=2, callback=seen.append)
    for progress in seen:
        expected = (tiny.decoded(progress.latents / 2) * 255).round().transpose(0, 2, 3, 1)
        previews = progress.preview()
        assert len(previews) == len(progress.images)
        assert max(np.abs(np.asarray(p) - w).max() for p, w in zip(previews, expected, strict=True)) <= 1
    assert [p.tobytes() for p in seen[5].preview()] == [got[2].tobytes()]


def test_previews_where_the_tail_reads_a_multiple_of_the_latents(tiny: Any, tmp_path: Path) -> None:
    body = (
        "n: T = noise() m: T = noise() step(n; 1.0) step(n, m; 0.5, 0.25*a, 1.0) i: T = linear(m, n; 0.5*a, 1.0, 0.5)"
    )
    seen = list[Progress]()
    got = tiny.sampler(tmp_path, body + " return i")("", seed=0, callback=seen.append, output="np")
    decode = [progress._preview().transpose(0, 2, 3, 1) for progress in seen]
    tiny.close(decode[1], got)
    tiny.close(decode[0], (2 * (seen[0].latents - 1) + 0.5).transpose(0, 2, 3, 1))


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
    tiny.sampler(tmp_path, body + " return i")("", seed=0, callback=seen.append)
    with pytest.raises(RequestError, match="the latents of this step"):
        seen[0].preview()
