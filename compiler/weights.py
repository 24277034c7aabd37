"""Check what a component was given: every tensor, in the right shape, with numbers in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from json import loads

import torch
from torch import nn

from diffc.compiler.errors import LoadError

NAMES_SHOWN = 5
SHAPES = re.compile(r"(\S+) expected shape torch\.Size\((.*?)\), but got torch\.Size\((.*?)\)")
# What diffusers and transformers raise where a checkpoint is at fault.
LIBRARY_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


def check_numbers(name: str, module: nn.Module, where: str) -> None:
    """Refuse weights that are not finite, and a component whose weights are all zero."""
    only_zeros = True
    for key, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = tensor.aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            bad = int(tensor.isfinite().logical_not().sum())
            what = f"{name}.{key} has {bad} of {tensor.numel()} numbers that are NaN or infinite"
            raise LoadError(what, where=where, fix="get the checkpoint again, or in a format with a wider range")
        only_zeros &= bool(low == 0) and bool(high == 0)
    if only_zeros:
        fix = "get the checkpoint again: space was reserved for it, but nothing written"
        raise LoadError(f"every weight of {name} is zero", where=where, fix=fix)


def missing_tensors(name: str, keys: Iterable[str], where: str) -> LoadError:
    """Say which tensors a component lacks."""
    fix = "get the whole checkpoint; diffc never makes up weights"
    return LoadError(f"{name} lacks {listed(keys)}", where=where, fix=fix)


def wrong_shape(tensor: str, stored: list[int], wanted: list[int], where: str) -> LoadError:
    """Say which tensor disagrees with its component's configuration."""
    fix = "give the configuration that belongs to these weights"
    return LoadError(f"{tensor} has shape {stored}, its configuration says {wanted}", where=where, fix=fix)


def misfit(name: str, where: str, error: Exception) -> LoadError:
    """Say what a library said of a component, and name tensor and shapes where those are at fault."""
    if match := SHAPES.search(str(error)):
        key, wanted, stored = match[1], loads(match[2]), loads(match[3])
        return wrong_shape(f"{name}.{key}", stored, wanted, where)
    fix = "give the configuration that belongs to these weights, or get the checkpoint again"
    return LoadError(f"{name} cannot be loaded: {first_line(error)}", where=where, fix=fix)


def listed(names: Iterable[str]) -> str:
    """Count names and give the first few."""
    ordered = sorted(names)
    more = f", … ({len(ordered) - NAMES_SHOWN} more)" if len(ordered) > NAMES_SHOWN else ""
    return f"{len(ordered)} tensor{'s' * (len(ordered) != 1)}: {', '.join(ordered[:NAMES_SHOWN])}{more}"


def first_line(error: Exception) -> str:
    """Shorten what a library said to its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
