"""Share the seeded, resumable training loop, the tokenizer and the cached data between the training scripts."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from shapes import COLOURS, RELATIONS, SHAPES, SIZES, Scene, Thing, training_scene
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTokenizer

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"
CHECKPOINT_SECONDS = 120.0
PROGRESS_SECONDS = 20.0
EMPTY_SHARE = 0.1
MUON_FACTOR = 4.0
THING: tuple[tuple[str | None, ...], ...] = (("none", *SHAPES), ("none", *COLOURS), ("none", None, *SIZES))
SCENE: tuple[tuple[str | None, ...], ...] = (*THING, *THING, (None, *RELATIONS))
VIEWS = (SCENE, SCENE, *(THING for _ in RELATIONS))


@dataclass(frozen=True)
class Plan:
    """How long, how fast and from which seed to train, where checkpoints go, and which parameters Muon trains."""

    name: str
    steps: int
    rate: float
    seed: int
    work: Path
    cooldown: float = 0.35
    warmup: int = 100
    decay: float = 0.998
    muon: str = ""

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: a short rise, a plateau, then a straight line down to nearly nothing."""
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warmup, max(0.01, left))


def add_plan_arguments(parser: argparse.ArgumentParser, steps: int, rate: float) -> None:
    """Add the options that every training script takes."""
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for checkpoints and cached data")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rate", type=float, default=rate, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)


def device() -> torch.device:
    """The GPU if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seeded(seed: int, step: int) -> torch.Generator:
    """A generator whose numbers depend on the seed and the step alone, so that a resumed run draws the same ones."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))


class Average:
    """An exponential moving average of a module's parameters, which is what gets shipped."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.parameters = list(module.parameters())
        self.shadow = [parameter.detach().clone() for parameter in self.parameters]
        self.decay = decay

    def update(self, step: int) -> None:
        """Move the average towards the present parameters."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [parameter.detach() for parameter in self.parameters], weight)

    def swap(self) -> None:
        """Exchange the average and the present parameters."""
        for parameter, shadow in zip(self.parameters, self.shadow, strict=True):
            parameter.data, shadow.data = shadow.data, parameter.data


class Progress:
    """Print the mean loss, the pace and the time left every few seconds."""

    def __init__(self, plan: Plan, first: int) -> None:
        self.plan, self.first = plan, first
        self.begun = self.shown = time.monotonic()
        self.losses: list[float] = []

    def show(self, step: int, loss: float) -> None:
        """Take note of a step's loss and print a line if one is due."""
        self.losses.append(loss)
        now, steps = time.monotonic(), self.plan.steps
        if now - self.shown < PROGRESS_SECONDS and step + 1 < steps:
            return
        pace = (now - self.begun) / (step + 1 - self.first)
        mean = math.fsum(self.losses) / len(self.losses)
        left = pace * (steps - step - 1) / 60
        print(
            f"{self.plan.name}: step {step + 1}/{steps}  loss {mean:.5f}  {pace:.2f} s/step  {left:.0f} min left",
            flush=True,
        )
        self.shown, self.losses = now, []


def new_optimizers(module: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Build Muon for the matrices that the plan names and AdamW for the rest, with decay for what is no vector."""
    named = list(module.named_parameters())
    matrices = [
        parameter for name, parameter in named if plan.muon and parameter.ndim == 2 and re.search(plan.muon, name)
    ]
    with_muon = {id(parameter) for parameter in matrices}
    others = [parameter for _, parameter in named if id(parameter) not in with_muon]
    adamw = torch.optim.AdamW(
        [
            {"params": [parameter for parameter in others if parameter.ndim > 1], "weight_decay": 0.01},
            {"params": [parameter for parameter in others if parameter.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.99),
        foreach=True,
    )
    if not matrices:
        return [adamw]
    return [adamw, torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")]


def fit(module: nn.Module, loss_at: Callable[[int], Tensor], plan: Plan) -> None:
    """Minimise `loss_at(step)` over the module's parameters, resuming where a checkpoint left off.

    The module ends with its averaged weights.
    """
    path = plan.work / f"{plan.name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    optimizers = new_optimizers(module, plan)
    average = Average(module, plan.decay)
    first, spent = 0, 0.0
    if path.exists():
        saved = torch.load(path, map_location=device(), weights_only=True)
        module.load_state_dict(saved["module"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        average.shadow = saved["average"]
        first, spent = saved["step"], saved["seconds"]
        print(f"{plan.name}: resuming at step {first}", flush=True)

    begun = stored = time.monotonic()
    progress = Progress(plan, first)

    def store(step: int) -> None:
        state = {
            "module": module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "average": average.shadow,
            "step": step,
            "seconds": spent + time.monotonic() - begun,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    module.train()
    for step in range(first, plan.steps):
        for optimizer, factor in zip(optimizers, (1.0, MUON_FACTOR), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = factor * plan.rate_at(step)
        module.zero_grad(set_to_none=True)
        loss = loss_at(step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(step)
        progress.show(step, loss.item())
        if time.monotonic() - stored > CHECKPOINT_SECONDS or step + 1 == plan.steps:
            store(step + 1)
            stored = time.monotonic()
    print(f"{plan.name}: {(spent + time.monotonic() - begun) / 60:.1f} min of training in all", flush=True)
    average.swap()
    module.eval()


def byte_alphabet() -> list[str]:
    """The characters that stand for the 256 bytes, in the order in which CLIP's vocabulary lists them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def build_tokenizer(folder: Path, captions: Iterable[str]) -> None:
    """Train a CLIP-style byte-level BPE tokenizer on captions and write it as files for both tokenizer libraries."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=2000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = byte_alphabet()
    pieces = [*alphabet, *(f"{piece}</w>" for piece in alphabet), *("".join(merge) for merge in merges), START, END]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))

    stand_alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stand_alone.enable_truncation(MAX_TOKENS)
    stand_alone.enable_padding(pad_id=vocabulary[END], pad_token=END, length=MAX_TOKENS)
    stand_alone.save(str(folder / "tokenizer.json"))


def random_captions(count: int, seed: int) -> list[str]:
    """Write captions of scenes that are not held out."""
    rng = np.random.default_rng(seed)
    return [training_scene(rng).caption for _ in range(count)]


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Encode captions as the pipelines do."""
    encoded = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def taught_states(pooled: Tensor, tokens: Tensor) -> list[Tensor]:
    """Choose the states that `teach_layouts` reads: the pooled one and those of the last five tokens."""
    return [pooled, *tokens[:, -len(RELATIONS) - 1 :].unbind(1)]


class LayoutReader(nn.Module):
    """Read a caption's scene out of a text encoder's states: twice the whole of it, then each side's object."""

    def __init__(self, widths: Iterable[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Linear(width, sum(map(len, view))) for width, view in zip(widths, VIEWS, strict=True)
        )

    def forward(self, states: list[Tensor], labels: Tensor) -> Tensor:
        """The mean cross-entropy of the attributes; their labels stand side by side in the order of the views."""
        answers = iter(labels.unbind(1))
        losses = []
        for head, state, view in zip(self.heads, states, VIEWS, strict=True):
            for score in head(state.float()).split([len(options) for options in view], dim=-1):
                losses.append(nn.functional.cross_entropy(score, next(answers)))
        return torch.stack(losses).mean()


def layout_labels(scene: Scene) -> list[int]:
    """Number the attributes of a scene's views by their places in VIEWS.

    A side's object is the one that stands farthest to that side, as far as the caption tells.
    """

    def described(item: Thing | None) -> tuple[str | None, ...]:
        return (item.shape, item.colour, item.size) if item else ("none", "none", "none")

    caption_attributes = (*described(scene.first), *described(scene.second), scene.relation)
    opposite = dict(zip(RELATIONS, (RELATIONS[1], RELATIONS[0], RELATIONS[3], RELATIONS[2]), strict=True))
    sides = dict.fromkeys(RELATIONS, None if scene.second else scene.first)
    if scene.relation is not None:
        sides |= {scene.relation: scene.first, opposite[scene.relation]: scene.second}
    values = (
        *caption_attributes,
        *caption_attributes,
        *(value for side in RELATIONS for value in described(sides[side])),
    )
    options = [choices for view in VIEWS for choices in view]
    return [choices.index(value) for choices, value in zip(options, values, strict=True)]


def teach_layouts(
    encoder: nn.Module,
    states_of: Callable[[Tensor], list[Tensor]],
    tokenizer: CLIPTokenizer,
    plan: Plan,
    batch: int = 64,
) -> None:
    """Train a text encoder alone until the given states tell what stands where; the readers are thrown away.

    Each of the last tokens learns the object of one side, which a denoiser's attention then has only to look up.
    """
    rng = np.random.default_rng(plan.seed)
    scenes = [training_scene(rng) for _ in range(20_000)]
    ids = token_ids(tokenizer, [scene.caption for scene in scenes]).to(device())
    labels = torch.tensor([layout_labels(scene) for scene in scenes], device=device())
    with torch.no_grad():
        widths = [state.shape[-1] for state in states_of(ids[:1])]
    reader = LayoutReader(widths).to(device())

    def loss_at(step: int) -> Tensor:
        indices = torch.randint(len(scenes), (batch,), generator=seeded(plan.seed, step)).to(device())
        loss: Tensor = reader(states_of(ids[indices]), labels[indices])
        return loss

    fit(nn.ModuleDict({"encoder": encoder, "reader": reader}), loss_at, plan)


@dataclass(frozen=True)
class LatentData:
    """The cached latents with their caption tokens, and the tokens of the empty caption."""

    latents: Tensor
    ids: Tensor
    empty: Tensor

    @classmethod
    def load(cls, work: Path, tokenizer: CLIPTokenizer) -> LatentData:
        """Load what the autoencoder's training cached."""
        stored = load_file(work / "latents.safetensors")
        return cls(stored["latents"], stored["ids"], token_ids(tokenizer, [""])[0])

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Choose latents and tokens, with one caption in ten left empty for classifier-free guidance."""
        indices = torch.randint(len(self.latents), (size,), generator=generator)
        has_caption = torch.rand(size, 1, generator=generator) >= EMPTY_SHARE
        ids = torch.where(has_caption, self.ids[indices].long(), self.empty)
        return self.latents[indices].float().to(device()), ids.to(device())
