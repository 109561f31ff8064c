"""Every test has an output folder of its own; what was computed by hand is never touched."""

import pytest
import torch


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """The folder that stands for outputs/ in this test."""
    folder = tmp_path / "outputs"
    monkeypatch.setenv("CCD_OUTPUTS", str(folder))
    monkeypatch.delenv("CCD_REPAIR", raising=False)
    return folder


@pytest.fixture(autouse=True)
def _untouched_global_generator():
    """Nothing in the kit draws from torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global generator was touched"
