"""Tests are offline, deterministic and single-threaded: the runner itself uses both cores.

`--other-library` runs them with the matrix products of another machine (see `other_library`), and `--threads` with several
threads; `tests/machines.py` runs the sensitive files under both and under the settings that make this machine another one.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from other_library import other_library


def pytest_addoption(parser):
    parser.addoption("--other-library", action="store_true", help="products whose last bits depend on rows and address")
    parser.addoption("--threads", type=int, default=1, help="threads of the matrix library")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Completions are made anew in every test session and kept for its length."""
    os.environ["REGRAFT_CACHE"] = str(tmp_path_factory.getbasetemp().parent / "regraft-cache")


@pytest.fixture(scope="session", autouse=True)
def machine(request):
    """The machine that the options ask for, from the first fixture to the last test."""
    torch.set_num_threads(request.config.getoption("--threads"))
    if not request.config.getoption("--other-library"):
        yield None
        return
    with other_library() as library:
        yield library
    assert library.products, "the other library was never asked"
