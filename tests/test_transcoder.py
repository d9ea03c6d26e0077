"""Transcoder adapters: the losses of the walk beside whole forward passes, what they change, what is
refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from regraft.data.records import COUNTED, PADDING, PROMPT, records_of
from regraft.modules.backbone import carrier_of, check_pair, mlps_of
from regraft.modules.transcoder import AdaptedMLP, Transcoders, TranscoderShape, beside
from regraft.training.tasks import transcoder_task
from regraft.training.tasks.transcoder_task import TranscoderLoss, TranscoderTask, same_ends
from small import ids, opened
from transcoder_models import forward, hybrid, losses, pair, trained

FAMILIES = ["llama", "gpt2", "gemma2", "qwen3", "mixtral", "gpt_neox"]
ONES = TranscoderLoss(bridge=1.0, l1=1.0, next_token=1.0)


def padded(*lengths):
    """Rows of several lengths, the last two tokens of the first row a prompt."""
    longest = max(lengths)
    rows = torch.zeros(len(lengths), 2, longest, dtype=torch.long)
    for number, length in enumerate(lengths):
        rows[number, 0, :length] = torch.tensor(ids(length, number + 1))
        rows[number, 1, :length] = COUNTED
    rows[0, 1, :2] = PROMPT
    return rows


def parts_of(task, batch):
    return {name: float(value.detach()) for name, value in task.losses(batch).items()}


@pytest.mark.parametrize("backbone", ["base", "target"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_walk_gives_the_losses_of_whole_forward_passes(name, backbone):
    base, target = pair(name)
    carrier = base if backbone == "base" else hybrid(base, target)
    graft, depth, batch = trained(carrier), len(base.main_blocks), padded(9, 6)
    for cutoff in (0, 1, depth):
        task = TranscoderTask(carrier, target, graft, ONES, cutoff=cutoff)
        found = parts_of(task, batch)
        with torch.no_grad():
            wanted = losses(carrier, target, graft, batch[:, 0], batch[:, 1], cutoff)
        for part, value in wanted.items():
            assert found[part] == pytest.approx(float(value), rel=2e-4, abs=2e-6), (part, cutoff)
        ends = backbone == "target" and cutoff in (0, depth)
        expected = 2 * depth if ends else 2 * depth + 2 * (depth - cutoff)
        assert task.calls == expected, "less than four whole passes"


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_a_padded_batch_has_the_losses_of_its_rows(name):
    base, target = pair(name)
    carrier, depth = hybrid(base, target), len(base.main_blocks)
    graft, batch = trained(carrier), torch.nn.functional.pad(padded(9, 6, 4), (0, 3))
    whole = parts_of(TranscoderTask(carrier, target, graft, ONES, cutoff=1), batch)
    rows, tokens, counted = [], [], []
    for row in range(3):
        length = int((batch[row, 1] > PADDING).sum())
        one = batch[row : row + 1, :, :length]
        rows.append(parts_of(TranscoderTask(carrier, target, graft, ONES, cutoff=1), one))
        tokens.append(length)
        counted.append(int((one[0, 1, 1:] == COUNTED).sum()))
    for part, weights in (("kl", counted), ("bridge", counted), ("next_token", counted), ("l1", tokens)):
        mean = sum(r[part] * w for r, w in zip(rows, weights, strict=True)) / sum(weights)
        assert whole[part] == pytest.approx(mean, rel=2e-4, abs=1e-6), part
    junk = batch.clone()
    junk[1, 0, 6:], junk[2, 0, 4:] = 5, 7
    again = parts_of(TranscoderTask(carrier, target, graft, ONES, cutoff=1), junk)
    assert again == pytest.approx(whole, rel=1e-5), "what stands in the padding is not read"
    assert depth >= 2


@pytest.mark.parametrize("backbone", ["base", "target"])
@pytest.mark.parametrize("cutoff", [0, 2, 4])
def test_gradients_are_those_of_whole_forward_passes(cutoff, backbone):
    base, target = pair("llama")
    carrier = base if backbone == "base" else hybrid(base, target)
    graft, batch = trained(carrier), padded(7, 5)
    for model in (carrier, target):
        model.hf.requires_grad_(False)
    task = TranscoderTask(carrier, target, graft, ONES, cutoff=cutoff)
    sum(value for name, value in task.losses(batch).items() if not name.startswith("_")).backward()
    found = [p.grad.clone() for p in graft.parameters()]
    graft.zero_grad()
    wanted = losses(carrier, target, graft, batch[:, 0], batch[:, 1], cutoff)
    sum(value for name, value in wanted.items() if not name.startswith("_")).backward()
    for mine, theirs in zip(found, [p.grad for p in graft.parameters()], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_change_nothing_before_they_are_trained_and_when_they_are_off(name):
    base, _ = pair(name)
    inputs = {"input_ids": torch.tensor([ids(8, 1)])}
    plain, _ = forward(base, inputs)
    before = base.weights_sha256
    fresh = Transcoders(TranscoderShape(base.width, 16, len(mlps_of(base))))
    with beside(base.hf, mlps_of(base), fresh):
        at_first, _ = forward(base, inputs)
    made = trained(base)
    with beside(base.hf, mlps_of(base), made):
        adapted, _ = forward(base, inputs)
        with made.switch(strength=0.0):
            off, _ = forward(base, inputs)
        with made.switch(strength=0.5):
            half, _ = forward(base, inputs)
        again, _ = forward(base, inputs)
    for found, wanted in ((at_first, plain), (off, plain), (again, adapted)):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    assert not torch.allclose(half, adapted, atol=1e-3)
    assert base.weights_sha256 == before
    assert not any(isinstance(module, AdaptedMLP) for module in base.hf.modules())


def test_features_are_scaled_and_clamped():
    base, _ = pair("llama")
    graft, inputs = trained(base), {"input_ids": torch.tensor([ids(8, 1)])}

    def stream_behind(block):
        with beside(base.hf, mlps_of(base), graft):
            return forward(base, inputs)[1][block + 1]

    graft.requires_grad_(False)
    base.hf.requires_grad_(False)
    with graft.hearing() as heard:
        plain = stream_behind(0)
    value_BT = heard[0][0][1][..., 5]
    assert float(value_BT.max()) > 0
    column_D = graft[0].dec.weight[:, 5]
    with graft.switch(scaled={(0, 5): 0.0}):
        torch.testing.assert_close(stream_behind(0), plain - value_BT[..., None] * column_D)
    with graft.switch(scaled={(0, 5): 3.0}):
        torch.testing.assert_close(stream_behind(0), plain + 2 * value_BT[..., None] * column_D)
    with graft.switch(clamped={(0, 5): 2.0}):
        torch.testing.assert_close(stream_behind(0), plain + (2.0 - value_BT[..., None]) * column_D)
    torch.testing.assert_close(stream_behind(0), plain)
    for wrong, said in (
        ({"scaled": {(0, 24): 0.0}}, "there is no feature 0.feature.24: a block has features 0 to 23"),
        ({"clamped": {(9, 1): 0.0}}, "there is no block 9"),
        ({"scaled": {(0, 1): 0.0}, "clamped": {(0, 1): 1.0}}, "is to be scaled and clamped: choose one"),
    ):
        with pytest.raises(ValueError, match=said), graft.switch(**wrong):
            pass


def test_silent_features_are_counted_and_lifted():
    base, target = pair("llama")
    graft = trained(base)
    with torch.no_grad():
        graft[1].enc.bias[3] = -100.0
    weights = TranscoderLoss(dead=1.0, silent_for=2, l1=0.0)
    task, batch = TranscoderTask(base, target, graft, weights, cutoff=0), padded(7, 5)
    first, second = (task.losses(batch) for _ in range(2))
    assert float(first["dead"].detach()) == 0.0, "one batch is not two"
    assert int(graft.silent_LF[1, 3]) == 2
    dead_LF = graft.silent_LF >= 2
    count = int(dead_LF.sum())
    assert float(second["dead"].detach()) * count > 95.0
    second["dead"].backward()
    assert float(graft[1].enc.bias.grad[3]) == pytest.approx(-1 / count), "upwards"
    last = len(dead_LF) - 1
    assert not bool((graft[last].enc.bias.grad[~dead_LF[last]] != 0).any()), "those that live are left alone"


def test_sizes_are_added_up_in_single_precision_whatever_the_step_is_in(monkeypatch):
    """Beside a sum in double precision of the very features that the step heard."""
    base, target = pair("llama")
    graft, batch = trained(base), padded(6, 6)
    task, kept = TranscoderTask(base, target, graft, TranscoderLoss(l1=1.0), cutoff=0), []
    own = task._sparsity
    monkeypatch.setattr(task, "_sparsity", lambda heard, *rest: kept.append(heard) or own(heard, *rest))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = parts_of(task, batch)["l1"]
    features = [own_BTF[:2].detach() for _, own_BTF in kept[0]]
    assert features[0].dtype == torch.bfloat16, "the step is in half precision"
    wanted = sum(
        float((one.double() @ adapter.dec.weight.detach().double().norm(dim=0)).mean())
        for one, adapter in zip(features, graft, strict=True)
    )
    assert found == pytest.approx(wanted, rel=2e-5)


def test_the_weight_of_sizes_rises_and_counts_by_layer():
    base, target = pair("llama")
    graft, batch = trained(base), padded(7, 5)
    plain = parts_of(TranscoderTask(base, target, graft, TranscoderLoss(l1=1.0), cutoff=0), batch)["l1"]
    rising = TranscoderTask(base, target, trained(base), TranscoderLoss(l1=1.0, ramp=0.5), 8, cutoff=0)
    found = [parts_of(rising, batch)["l1"] for _ in range(6)]
    assert found == pytest.approx([plain * share for share in (0, 0.25, 0.5, 0.75, 1, 1)], rel=1e-4)
    by_layer = TranscoderTask(base, target, graft, TranscoderLoss(l1=1.0, by_layer=True), cutoff=0)
    assert parts_of(by_layer, batch)["l1"] != pytest.approx(plain, rel=0.05)


def test_the_cutoff_is_drawn_evenly():
    base, target = pair("llama")
    task = TranscoderTask(base, target, trained(base), cutoff=None)
    torch.manual_seed(0)
    drawn = []
    for _ in range(60):
        before = task.calls
        task.losses(padded(4, 4))
        drawn.append(len(base.main_blocks) - (task.calls - before - 2 * len(base.main_blocks)) // 2)
    assert set(drawn) == set(range(len(base.main_blocks) + 1))


def test_what_is_no_pair_is_refused():
    base, target = pair("llama")
    other = opened("qwen3")
    with pytest.raises(ValueError, match=r"are of different shapes in \d+ tensors, first "):
        check_pair(base, other)
    with pytest.raises(ValueError, match="does not write on behind a text"):
        check_pair(opened("bert"), opened("bert"))
    with pytest.raises(ValueError, match="the cutoff 5 is outside 0 to 4"):
        TranscoderTask(base, target, trained(base), cutoff=5)
    with pytest.raises(ValueError, match="l1 is -1: write 0 or more"):
        TranscoderLoss(l1=-1)
    with pytest.raises(ValueError, match="has no MLP that is a module of its own"):
        mlps_of(opened("opt"))
    assert carrier_of(base, target, "base") is base


def test_the_hybrid_is_the_target_with_the_bases_mlps():
    """Of live models, which stay as they are."""
    base, target = pair("gpt2")
    before = [base.weights_sha256, target.weights_sha256]
    made = carrier_of(base, target, "target")
    assert made.weights_sha256 == hybrid(base, target).weights_sha256
    assert len({made.weights_sha256, *before}) == 3
    assert [base.weights_sha256, target.weights_sha256] == before


def test_adapters_of_another_number_of_blocks_are_refused():
    base, other = pair("llama")
    graft = trained(base)
    for mlps, said in (
        (mlps_of(base)[:2], "this model has 2"),
        (mlps_of(other), "does not hold all of these"),
    ):
        with pytest.raises(ValueError, match=said), beside(base.hf, mlps, graft):
            pass


def test_other_tokenizers_are_refused():
    base, target = pair("llama")
    base.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})
    for other in (None, SimpleNamespace(get_vocab=lambda: {"b": 0})):
        target.tokenizer = other
        with pytest.raises(ValueError, match=r"the tokenizers of .* have different tokens"):
            check_pair(base, target)
    target.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})
    check_pair(base, target)


def test_the_plain_implementation_that_is_timed_has_the_same_losses(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    plain = importlib.import_module("benchmarks.grafts.plain_transcoder")
    base, target = pair("llama")
    carrier = hybrid(base, target)
    graft, batch = trained(carrier), padded(9, 6)
    for cutoff in (0, 2, 4):
        found = parts_of(TranscoderTask(carrier, target, graft, cutoff=cutoff), batch)
        for name, value in plain.plain_losses(
            carrier, target, graft, batch, TranscoderLoss(), cutoff
        ).items():
            assert found[name] == pytest.approx(float(value.detach()), rel=1e-3, abs=1e-6), (name, cutoff)


class Letters:
    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(c) - 96 for c in text]}


def test_records_say_what_each_token_is():
    made = records_of(Letters(), [("ab", "cde"), ("f", "g")], longest=4, prompts_count=False)
    assert made.ids_NT.tolist() == [[1, 2, 3, 4], [6, 7, 0, 0]]
    assert made.kinds_NT.tolist() == [[PROMPT, PROMPT, COUNTED, COUNTED], [PROMPT, COUNTED, PADDING, PADDING]]
    counts = records_of(Letters(), [("ab", "c")], longest=9)
    assert counts.kinds_NT.tolist() == [[COUNTED] * 3]
    seen = [made.batch(step, 1)[0, 0, 0].item() for step in range(4)]
    assert sorted(seen[:2]) == sorted(seen[2:]) == [1, 6], "each once before any twice"
    with pytest.raises(ValueError, match="there is no record to train on"):
        records_of(Letters(), [], 4)
    with pytest.raises(ValueError, match="a record has fewer than two tokens: 'a'"):
        records_of(Letters(), [("", "a")], 4)


def test_only_states_that_count_reach_the_head_and_columns_of_padding_no_block(monkeypatch):
    """Counted: rows of the head for the target, for both runs through adapted blocks, for the one that comes
    from them."""
    base, target = pair("llama")
    graft, batch = trained(base), torch.nn.functional.pad(padded(9, 6), (0, 5))
    rows, widths = [], []
    real_scores, real_block = transcoder_task._Walker.scores, transcoder_task._Walker.block
    monkeypatch.setattr(
        transcoder_task._Walker, "scores",
        lambda self, state_RD: rows.append(len(state_RD)) or real_scores(self, state_RD),
    )  # fmt: skip

    def block(self, number, stream_BTD):
        widths.append(stream_BTD.shape[1])
        return real_block(self, number, stream_BTD)

    monkeypatch.setattr(transcoder_task._Walker, "block", block)
    TranscoderTask(base, target, graft, cutoff=1).losses(batch)
    counted = (9 - 2) + (6 - 1)
    assert rows == [counted, 2 * counted, counted], "the first row's prompt does not count"
    assert set(widths) == {9}
    nothing = torch.stack([torch.zeros(2, 2, 4, dtype=torch.long)])[0]
    assert transcoder_task._trimmed(nothing).shape == nothing.shape, "no token at all"


def test_mixed_runs_are_spared_only_where_all_outside_the_blocks_is_the_same():
    base, target = pair("llama")
    carrier = hybrid(base, target)
    assert same_ends(carrier, target)
    assert not same_ends(base, target)
    inside = {id(p) for block in carrier.main_blocks for p in block.module.parameters()}
    outside = [p for p in carrier.hf.parameters() if id(p) not in inside]
    assert len(outside) >= 2, "embedding and final norm at least"
    with torch.no_grad():
        for parameter in outside:
            parameter.view(-1)[0] += 1.0
            assert not same_ends(carrier, target)
            parameter.copy_(dict(target.hf.named_parameters())[name_of(carrier, parameter)])
    assert same_ends(carrier, target)


def name_of(model, wanted):
    return next(name for name, parameter in model.hf.named_parameters() if parameter is wanted)
