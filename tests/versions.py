"""What the oldest supported Python and torch lack, as marks of the tests that need it."""

import sys

import pytest
import torch

OLDEST = torch.__version__ < (2, 7)
"""Whether this is torch 2.6."""

needs_muon = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="this torch has no optim.Muon"
)
needs_fsdp_on_cpu = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"),
    reason="FSDP2 of this torch runs no forward pass on the CPU",
)
needs_recorded_flex_attention = pytest.mark.skipif(
    OLDEST, reason="torch 2.6 runs no flex_attention under a TorchFunctionMode"
)
needs_traced_finally = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="Python 3.10 leaves out the finally of a generator that a tracer interrupts",
)
