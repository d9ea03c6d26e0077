"""Tests are offline, deterministic and single-threaded: the runner itself uses both cores.

`--other-library` runs them with the matrix products of another machine (`other_library`) and with weights
that are read from files to addresses off the line; `--threads` with several threads. `machines.py` says which
runs there are.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# processes that tests start: threads that have nothing to do wait by turning round
os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
import gc
import shutil

import numpy as np
import pytest
import torch
import transformers
import typer.main
import typer.testing
import xarray as xr

from other_library import misalign_weights, other_library
from regraft.experiments.intervene.quantization import quantize
from regraft.jobs import transcoder_jobs, transcoder_text


def pytest_addoption(parser):
    parser.addoption(
        "--other-library", action="store_true", help="products whose last bits depend on rows and address"
    )
    parser.addoption("--threads", type=int, default=1, help="threads of the matrix library")


def pytest_collection_finish():
    """Half a million objects of libraries stay to the end: the collector of garbage, which took a sixteenth
    of the time, leaves them out and looks at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 10, 25)


@pytest.fixture(scope="session", autouse=True)
def commands_built_once():
    """Typer's runner builds every command of an app anew for each line that it runs; a process of the program
    does so once, and here all of them together do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(typer.testing, "_get_command", functools.cache(typer.main.get_command))
        yield


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
    with pytest.MonkeyPatch.context() as patched, other_library() as library:
        patched.setattr(transformers.PreTrainedModel, "from_pretrained", misaligned_reading())
        yield library
    assert library.products, "the other library was never asked"


def misaligned_reading():
    """`from_pretrained` that puts every weight one number behind an address divisible by 64."""
    own = transformers.PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls, *args, **kwargs):
        made = own(cls, *args, **kwargs)
        misalign_weights(made[0] if isinstance(made, tuple) else made)
        return made

    return classmethod(from_pretrained)


@pytest.fixture(scope="module")
def quick_pairs():
    """For tests of adapters: a folder's pair of specimens is opened once a session, since nobody changes the
    base or the target (the hybrid is a copy), and training on worked sums reads a few of the thousands."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(transcoder_jobs, "load", opened_once)
        patched.setattr(transcoder_text, "TRAINED", 100)
        yield


_specimen = functools.cache(transcoder_jobs.load)


def opened_once(source, **how):
    """`load`, which keeps the specimens."""
    return (_specimen if str(source).startswith("specimen:") else _specimen.__wrapped__)(source, **how)


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, for slow tests: Playwright's own loop would hold up other tests of the module."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "this test needs a browser: apt-get install chromium"
    with sync_playwright() as p:
        opened = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A studio of the specimen in a process of its own."""
    from tools.served_studio import Served

    made = Served(tmp_path_factory.mktemp("studio") / "runs")
    yield made
    made.stop()


@pytest.fixture(
    params=[(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")],
    ids=lambda view: f"{view[0]}-{view[1]}",
)
def opened(request, browser, served):
    """Opens pages of the studio at a width in pixels and in a theme, and puts back what they changed."""
    from studio_server import Page

    made = []

    def open_page(view=request.param):
        made.append(Page(browser, served, *view))
        return made[-1]

    yield open_page
    for page in made[:1]:
        page.tab("prompt")
        page.undo()
    for page in made:
        page.close()


@pytest.fixture
def quick_linearity(monkeypatch):
    """A model without a tokenizer is quantized by a gap of our own: its derivatives take long and are other
    tests' business."""
    real = quantize._gap

    def gap(model, read):
        if model.tokenizer is not None:
            return real(model, read)
        return xr.DataArray(
            np.linspace(0.1, 0.4, len(model.blocks)), {"block": [block.address for block in model.blocks]}
        )

    monkeypatch.setattr(quantize, "_gap", gap)
