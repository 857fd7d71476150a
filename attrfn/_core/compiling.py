"""Whether torch.compile is tracing, on every torch that is supported."""

from __future__ import annotations

import torch

if hasattr(torch.compiler, "is_compiling"):  # torch >= 2.3

    def is_compiling() -> bool:
        """Whether torch.compile (or torch.export) traces this call."""
        return torch.compiler.is_compiling()

else:

    def is_compiling() -> bool:
        """Whether torch.compile traces this call."""
        return bool(torch._dynamo.is_compiling())
