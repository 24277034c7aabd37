"""Say what is wrong with the tensors that a component was given."""

from __future__ import annotations

import re
from collections.abc import Iterable
from json import loads

from diffc.compiler.errors import LoadError, first_line

NAMES_SHOWN = 5
SHAPES = re.compile(r"(\S+) expected shape torch\.Size\((.*?)\), but got torch\.Size\((.*?)\)")
# What diffusers and transformers raise where a checkpoint is at fault.
LIBRARY_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError)


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
