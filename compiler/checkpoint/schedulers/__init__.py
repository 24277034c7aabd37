"""Hold the schedulers that diffusers lacks, in diffusers' form; ``scheduler_choice.py`` finds them by class name."""

from diffc.compiler.checkpoint.schedulers.evodiff import EVODiffScheduler
from diffc.compiler.checkpoint.schedulers.ghvb import GHVBScheduler
from diffc.compiler.checkpoint.schedulers.hb import HBScheduler

__all__ = ["EVODiffScheduler", "GHVBScheduler", "HBScheduler"]
