"""Describe faults of a component's tensors: missing ones, wrong shapes, and errors of the libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from json import loads

from huggingface_hub.errors import StrictDataclassError

from diffc.compiler.errors import LoadError, first_line

NAMES_SHOWN = 5
SHAPES = re.compile(r"(?<!\S)(\S+) expected shape torch\.Size\((.*?)\), but got torch\.Size\((.*?)\)")
# The errors of diffusers and transformers for faulty checkpoints.
LIBRARY_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, ArithmeticError),
    StrictDataclassError,  # of a configuration whose value has another type
)


def missing_tensors(name: str, keys: Iterable[str], where: str) -> LoadError:
    """Return the error for tensors that a component lacks."""
    fix = "get the whole checkpoint; diffc never makes up weights"
    return LoadError(f"{name} lacks {listed(keys)}", where=where, fix=fix)


def wrong_shape(tensor: str, stored: list[int], configured: list[int], where: str) -> LoadError:
    """Return the error for a tensor whose shape differs from its component's configuration."""
    fix = "give the configuration that belongs to these weights"
    return LoadError(f"{tensor} has shape {stored}, its configuration has {configured}", where=where, fix=fix)


def misfit(name: str, where: str, error: Exception) -> LoadError:
    """Return the error for a library's error, with tensor and shapes where it names them."""
    if match := SHAPES.search(str(error)):
        key, configured, stored = match[1], loads(match[2]), loads(match[3])
        return wrong_shape(f"{name}.{key}", stored, configured, where)
    fix = "give the configuration that belongs to these weights, or get the checkpoint again"
    return LoadError(f"{name} cannot be loaded: {first_line(error)}", where=where, fix=fix)


def listed(names: Iterable[str], kind: str = "tensor") -> str:
    """Format names for a message: their number and the first few."""
    ordered = sorted(names)
    more = f", … ({len(ordered) - NAMES_SHOWN} more)" if len(ordered) > NAMES_SHOWN else ""
    return f"{len(ordered)} {kind}{'s' * (len(ordered) != 1)}: {', '.join(ordered[:NAMES_SHOWN])}{more}"
