"""Run a bundle without PyTorch."""

from diffc.runtime.errors import BundleError, Cancelled, DiffcError, DiffcWarning, RequestError
from diffc.runtime.sampler import Progress, Sampler, load

__all__ = ["BundleError", "Cancelled", "DiffcError", "DiffcWarning", "Progress", "RequestError", "Sampler", "load"]
