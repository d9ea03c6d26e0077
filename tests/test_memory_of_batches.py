"""Batches that do not fit into memory."""

from __future__ import annotations

import pytest
import torch

from regraft.sweeps import sweep as module
from regraft.sweeps.executor import Replay, is_out_of_memory
from regraft.sweeps.plan import Work
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Scale, Variant
from small import METRIC, opened, recorded, reference


def test_running_out_of_memory_is_told_from_other_faults():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(RuntimeError("not enough memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert Work(planned=1, naive=3).saved == 3


@pytest.mark.parametrize(
    ("most", "error", "sizes"),
    [
        (2, torch.OutOfMemoryError("x"), [9, 4, 2]),
        (0, torch.OutOfMemoryError("x"), [9, 4, 2, 1]),
        (2, RuntimeError("shapes differ"), [9]),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_until_one_row_and_other_faults_are_told_at_once(
    most, error, sizes, monkeypatch
):
    model = opened("llama")
    recording = recorded(model, 6)
    variants = [Variant([Scale("1.resid_pre", 1 + n / 4)]) for n in range(1, 10)]
    wanted = reference(model, recording, variants)
    own, asked = Replay._call, []

    def call(self, part):
        asked.append(len(part))
        if len(part) > most:
            raise error
        return own(self, part)

    monkeypatch.setattr(Replay, "_call", call)
    monkeypatch.setattr(module, "batch_rows", lambda recording: 9)
    if most and len(sizes) > 1:
        found = sweep(recording, variants, METRIC).values["d"]
        assert float((found - wanted).abs().max()) <= 2 * model.rounding * model.check.largest
        assert max(asked[2:]) == 2, "what fitted is kept to"
    else:
        with pytest.raises(RuntimeError, match=str(error)):
            sweep(recording, variants, METRIC)
        assert len(asked) == len(sizes)
    assert asked[: len(sizes)] == sizes
