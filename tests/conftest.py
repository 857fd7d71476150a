"""One thread, no network, the same random numbers in every test."""

from __future__ import annotations

import os

# Before the imports that read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "attrfn",
    deadline=None,
    derandomize=True,
    max_examples=15,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("attrfn")


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """A test that draws from torch's global generator draws the same in any order of the tests."""
    torch.manual_seed(0)
