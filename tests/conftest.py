"""Tests are offline, deterministic and single-threaded: the runner itself uses both cores."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Completions are made anew in every test session and kept for its length."""
    os.environ["REGRAFT_CACHE"] = str(tmp_path_factory.getbasetemp().parent / "regraft-cache")
