"""Compile diffusion models: `build` takes a checkpoint, `capture` a sampling function of your own."""

from importlib import import_module
from typing import Any

EXPORTED = {
    "build": "diffc.compiler.driver.build",
    "write_bundle": "diffc.compiler.driver.build",
    "capture": "diffc.compiler.tracing.trace",
    "parse": "diffc.compiler.ir.parse",
}

__all__ = ["build", "capture", "parse", "write_bundle"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the slim installation has this package without its dependencies."""
    if name not in EXPORTED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(EXPORTED[name]), name)
