"""Kernels of attention: what each must compute, which are not usable and why, and their table."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import regraft
from families import FAMILIES
from regraft.core.memory import peak_bytes
from regraft.reporting.figures.kernel_figures import kernel_listings, kernel_panels
from regraft.systems.kernel_bench import FIRST, allowed, kernel_dataset
from regraft.systems.kernels import (
    KERNELS,
    PHASES,
    AttentionShape,
    Kernel,
    call_of,
    chosen,
    eager,
    inputs,
    read_bytes,
    tried,
    work,
)
from regraft.systems.timing import NOTHING, Timed

CPU, SHAPE = torch.device("cpu"), AttentionShape(2, 4, 2, 16, 24)
USABLE = ("eager", "dispatched", "math", "flash", "flex")
BY_NAME = {kernel.name: kernel for kernel in KERNELS}
"""Of the kernels, those that a CPU has."""


def given(shape=SHAPE, phase="prefill", dtype=torch.float32):
    return inputs(shape, phase, dtype, CPU)


def plain(query, key, value, causal):
    """One query after the other, in float64."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    groups = query.shape[1] // key.shape[1]
    for b, h, q in np.ndindex(*query.shape[:3]):
        last = q + 1 if causal else key.shape[2]
        keys, values = (one[b, h // groups, :last].double() for one in (key, value))
        weights = (keys @ query[b, h, q].double() / query.shape[-1] ** 0.5).softmax(0)
        out[b, h, q] = weights @ values
    return out


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", USABLE)
def test_every_usable_kernel_is_within_its_rounding_of_plain_attention(name, phase):
    made, why = tried(BY_NAME[name], given(phase=phase), phase)
    assert why == ""
    wanted = plain(*given(phase=phase), causal=phase == "prefill")
    assert float((made.double() - wanted).abs().max()) <= allowed(torch.float32, SHAPE.keys)
    other = plain(*given(phase=phase), causal=phase != "prefill")
    if phase == "prefill":
        assert float((made.double() - other).abs().max()) > 1000 * allowed(torch.float32, SHAPE.keys)


@pytest.mark.parametrize("name", USABLE)
def test_what_stands_behind_a_query_changes_nothing_to_the_bit(name):
    query, key, value = given()
    before, _ = tried(BY_NAME[name], (query, key, value), "prefill")
    keys, values = key.clone(), value.clone()
    keys[:, :, 10:], values[:, :, 10:] = 7.0, -3.0
    after, _ = tried(BY_NAME[name], (query, keys, values), "prefill")
    assert torch.equal(before[:, :, :10], after[:, :, :10])
    assert not torch.equal(before[:, :, 10:], after[:, :, 10:])


@pytest.mark.parametrize("name", USABLE)
def test_one_key_gives_its_value_and_equal_scores_the_mean(name):
    query, key, value = given(replace(SHAPE, keys=1))
    made, _ = tried(BY_NAME[name], (query, key, value), "prefill")
    assert torch.allclose(made, value.repeat_interleave(2, dim=1), atol=1e-6)
    query, key, value = given(phase="decode")
    made, _ = tried(BY_NAME[name], (query, torch.ones_like(key), value), "decode")
    assert torch.allclose(made, value.mean(2, keepdim=True).repeat_interleave(2, dim=1), atol=1e-6)


@pytest.mark.parametrize("name", ["dispatched", "math", "flash"])
def test_gradients_are_those_of_plain_attention(name):
    made, _ = tried(BY_NAME[name], given(phase="backward"), "backward")
    exact = tuple(one.detach().double().requires_grad_() for one in given(phase="backward"))
    wanted = torch.autograd.grad(plain_sum(*exact), exact)[0]
    assert float((made.double() - wanted).abs().max()) <= allowed(torch.float32, SHAPE.keys)


def plain_sum(query, key, value):
    groups = query.shape[1] // key.shape[1]
    total = torch.zeros((), dtype=torch.float64)
    for h, q in np.ndindex(*query.shape[1:3]):
        keys, values = (one[:, h // groups, : q + 1] for one in (key, value))
        weights = (keys @ query[:, h, q, :, None] / query.shape[-1] ** 0.5).softmax(1)
        total = total + (weights * values).sum()
    return total


def test_a_kernel_that_does_not_take_a_shape_is_told_with_the_reason():
    for name in ("memory-efficient", "cudnn"):
        assert tried(BY_NAME[name], given(), "prefill") == (None, "needs a GPU")
    assert "backward on CPU" in tried(BY_NAME["flex"], given(phase="backward"), "backward")[1]
    missing = Kernel("absent", eager, package="no_such_package")
    assert tried(missing, given(), "prefill") == (None, "the package no_such_package is not installed")

    def picky(query, key, value, causal):
        raise RuntimeError("widths of 16 are not taken")

    assert tried(Kernel("picky", picky), given(), "prefill") == (None, "widths of 16 are not taken")

    def warns(query, key, value, causal):
        warnings.warn("Flash attention was not used because the width is odd", stacklevel=1)
        raise RuntimeError("no kernel is left")

    told = tried(Kernel("warns", warns), given(), "prefill")
    assert told == (None, "Flash attention was not used because the width is odd")


@pytest.mark.parametrize("name", ["math", "eager"])
@pytest.mark.parametrize("phase", PHASES)
def test_work_by_formula_is_what_is_counted(name, phase):
    with FlopCounterMode(display=False) as counted:
        call_of(BY_NAME[name], given(phase=phase), phase)()
    assert counted.get_total_flops() == work(SHAPE, phase)
    assert work(SHAPE, "prefill", skips=True) == work(SHAPE, "prefill") // 2
    assert work(SHAPE, "backward", skips=True) == work(SHAPE, "prefill") * 7 // 4
    assert work(SHAPE, "decode", skips=True) == work(SHAPE, "decode"), "one query hides nothing"


def test_bytes_of_a_token_more_are_those_of_keys_and_values():
    _, key, value = given(phase="decode")
    assert read_bytes(SHAPE, torch.float32) == key.nbytes + value.nbytes
    assert chosen(given(), "prefill") in ("flash", "math")


# the table
# ----------------------------------------------------------------------------------------------------


def told_clock(calls, device, rounds):
    """Times that a test gives: nothing takes a microsecond, and kernels a millisecond more each."""
    assert next(iter(calls)) in (NOTHING, "eager")
    names = [name for name in calls if name != NOTHING]
    found = {name: Timed(np.full(3, 1e-3 * (i + 1)), np.full(3, 1e-3)) for i, name in enumerate(names)}
    return {NOTHING: Timed(np.full(3, 1e-6), np.full(3, 1e-6)), **found}


@pytest.fixture(scope="module")
def table():
    off = Kernel("off", lambda q, k, v, causal: eager(q, k, v, causal) * (1 + 1e-3))
    return kernel_dataset(SHAPE, [8, 24], torch.float32, CPU, kernels=[*KERNELS, off], clock=told_clock)


def test_the_table_holds_every_kernel_and_one_that_is_off_is_seen(table):
    assert table.kernel.values.tolist() == [*BY_NAME, "off"]
    wrong = table.kernel_error > table.kernel_allowed
    assert not bool(wrong.sel(kernel=list(USABLE)).any())
    assert bool(wrong.sel(kernel="off").all())
    assert not bool((table.kernel_first_error > table.kernel_error).any())
    unusable = json.loads(table.attrs["unusable"])
    assert {k for k in table.kernel.values if k not in unusable} == {
        "eager",
        "dispatched",
        "math",
        "flash",
        "off",
    }
    assert set(unusable["flex"]) == {"backward"}
    assert np.isnan(table.kernel_ms.sel(kernel="cudnn")).all()


def test_rates_are_work_over_time(table):
    eager_ms = table.kernel_ms.sel(kernel="eager")
    assert np.allclose(eager_ms, 1.0)
    one = table.sel(kernel="eager", phase="prefill", key_count=24)
    assert float(one.kernel_rate) == pytest.approx(work(SHAPE, "prefill") / 1e-3 / 1e12)
    assert float(one.kernel_share) == pytest.approx(
        float(one.kernel_rate) * 1e12 / table.attrs["product_flops"]
    )
    read = table.sel(kernel="eager", phase="decode", key_count=24)
    assert float(read.kernel_bandwidth) == pytest.approx(read_bytes(SHAPE, torch.float32) / 1e-3 / 1e9)
    assert np.isnan(one.kernel_bandwidth)
    assert float(table.kernel_saved.sel(phase="prefill", key_count=24)) == pytest.approx(0.5), (
        "eager 1, dispatched 2"
    )
    assert table.attrs["kernel_floor_ms"] == pytest.approx(1e-3)
    assert np.isfinite(table.kernel_launch.sel(kernel="flash"))


def test_eager_holds_every_pair(table):
    """Flash holds blocks for each thread, so that nothing is said of it that would hold on many cores."""
    peak = table.kernel_peak.sel(phase="prefill", key_count=24)
    scores = SHAPE.texts * SHAPE.heads * 24 * 24 * 4
    assert float(peak.sel(kernel="eager")) >= scores
    call = call_of(BY_NAME["eager"], given(), "prefill")
    assert float(peak.sel(kernel="eager")) == peak_bytes(call, CPU)


def test_the_command_takes_the_models_own_heads_and_draws():
    torch.manual_seed(0)
    model = regraft.load(FAMILIES["llama"]())
    data = regraft.attention(model, prompts=["5 6 7 8"], tokens=1, keys=[FIRST])
    assert (data.attrs["heads"], data.attrs["key_heads"], data.attrs["head_width"]) == (4, 2, 8)
    assert [one.caption.split(",")[1].strip() for one in kernel_panels(data)] == list(PHASES)
    listing = kernel_listings(data)[0]
    assert ["flex", "backward"] in [row[:2] for row in listing.rows]
    assert "kernel" not in regraft.attention(model, prompts=["5 6 7 8"], tokens=1).dims
    with pytest.raises(ValueError, match="one key at least"):
        regraft.attention(model, prompts=["5 6 7 8"], keys=[0])
    scan = regraft.load(FAMILIES["mamba"]()) if "mamba" in FAMILIES else None
    if scan is not None:
        with pytest.raises(ValueError, match="softmax attention"):
            regraft.attention(scan, bench=True)
