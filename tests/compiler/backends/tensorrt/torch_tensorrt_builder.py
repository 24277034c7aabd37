"""Run the builder as a test wants it: with what a PyTorch without CUDA lacks, and a note of the network's ports.

Converting needs neither the GPU nor the libraries of torch_tensorrt, which want PyTorch's for CUDA. Where those are
missing, the tests put a copy of its Python files before the package; what else an import asks for is here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from diffc.compiler.backends.tensorrt import build_process

PORTS = "ports.json"
"""Where the ports are written, beside the engine."""


def main() -> None:
    """Build what stdin asks for."""
    if torch.version.cuda is None:
        torch.version.cuda = "13.0"
        torch._C._CudaDeviceProperties = object
    converted = build_process._converted

    def noting(network: Any, logger: Any, library: Any, request: dict[str, Any]) -> Any:
        made = converted(network, logger, library, request)
        inputs = [network.get_input(at) for at in range(network.num_inputs)]
        outputs = [network.get_output(at) for at in range(network.num_outputs)]
        ports = [[[port.name, list(port.shape), port.dtype.name] for port in side] for side in (inputs, outputs)]
        Path(request["engine"]).with_name(PORTS).write_text(json.dumps(ports))
        return made

    build_process._converted = noting
    build_process.main()


if __name__ == "__main__":
    main()
