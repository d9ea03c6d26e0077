"""A model is held by one thread at a time, evaluated in evaluation mode, put back as it was, and known to be
the recorded one."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from families import FAMILIES
from regraft.core.tolerance import gap
from regraft.model import recording as recording_module
from regraft.model import session
from regraft.model.load import load
from regraft.model.recording import Recording
from regraft.modules.placement import placed
from regraft.sweeps.metrics import loss, stream_distance, token_logit
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepError
from regraft.sweeps.variants import Add, Replace, Variant, Zero
from small import METRIC, ids, opened, recorded


def modes(hf):
    return {name: module.training for name, module in hf.named_modules()}


def run_at_once(work, threads=2):
    """Run `work(number)` in several threads that start together; what each returned or raised."""
    found: dict[int, object] = {}
    barrier = threading.Barrier(threads)

    def one(number):
        barrier.wait()
        try:
            found[number] = work(number)
        except Exception as error:
            found[number] = error

    started = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return [found[number] for number in range(threads)]


def test_two_threads_on_one_model_give_the_numbers_of_one():
    """A thread may take another kernel, so within the rounding of two logits; another prompt's numbers are
    far off."""
    model = opened("llama")
    near = 2 * model.rounding * model.check.largest
    stack = model.parts.stacks[0]
    modules = list(getattr(stack.owner, stack.attribute))
    before = model.hf(torch.tensor([ids(8, 1)])).logits
    variants = [Variant([Zero(f"{b}.head.{h}")]) for b in range(4) for h in range(4)]
    wanted = [sweep(model.record(ids(8, seed)), variants, METRIC).values["d"] for seed in range(2)]
    assert float((wanted[0] - wanted[1]).abs().max()) > 1000 * near

    def work(number):
        return [sweep(model.record(ids(8, number)), variants, METRIC).values["d"] for _ in range(6)]

    for number, found in enumerate(run_at_once(work)):
        assert isinstance(found, list), found
        assert all(float((one - wanted[number]).abs().max()) <= near for one in found)
    assert list(getattr(stack.owner, stack.attribute)) == modules
    assert torch.equal(model.hf(torch.tensor([ids(8, 1)])).logits, before)


def test_two_models_around_one_module_wait_for_each_other():
    """The lock belongs to the module, not to what was opened around it: here the whole, and its trunk
    alone."""
    live = FAMILIES["llama"]().eval()
    whole, trunk = load(live, pack=False), load(live.model, pack=False)
    entered = threading.Event()

    def other(number):
        if number:
            with trunk.held():
                return entered.is_set()
        with whole.held():
            threading.Event().wait(0.05)
            entered.set()
        return True

    with whole.held():
        waiting = threading.Thread(target=lambda: other(1))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive(), "the other thread is kept out"
    waiting.join()


def test_an_exception_inside_leaves_the_model_whole():
    model = opened("llama")
    stack = model.parts.stacks[0]
    modules = list(getattr(stack.owner, stack.attribute))
    with pytest.raises(ValueError, match="is 7 wide, the activation"):
        sweep(recorded(model, 8), [Variant([Replace("2.z", torch.zeros(7))])], METRIC)
    with pytest.raises(RuntimeError, match="wanted"), placed(model.hf, model.parts.embedding, nn.Identity()):
        raise RuntimeError("wanted")
    assert list(getattr(stack.owner, stack.attribute)) == modules
    assert model.hf.get_input_embeddings() is model.parts.embedding
    assert run_at_once(lambda number: float(sweep(recorded(model, 8), [Variant()], METRIC).deviation)) == [
        0.0,
        0.0,
    ]


def test_a_model_in_training_is_evaluated_and_put_back():
    torch.manual_seed(0)
    live = FAMILIES["gpt2"]()
    live.train()
    live.transformer.h[1].eval()
    before = modes(live)
    assert live.config.resid_pdrop == 0.1, "dropout would be felt"
    model = load(live, pack=False)
    assert modes(live) == before, "opening leaves the mode as it found it"
    recording = model.record(ids(8, 1))
    first, again = recording["2.resid_post"], model.record(ids(8, 1))["2.resid_post"]
    result = sweep(recording, [Variant([Zero("1.head.0")])], token_logit(7))
    inner, logits = recording["2.z"], recording["logits"]
    assert modes(live) == before
    live.eval()
    with torch.no_grad():
        wanted = live(torch.tensor([ids(8, 1)])).logits
    assert torch.equal(first, again)
    assert torch.equal(logits, wanted)
    assert torch.equal(inner, model.record(ids(8, 1))["2.z"])
    assert float(result.clean["logit"]) == pytest.approx(float(wanted[0, -1, 7]), abs=1e-5)
    live.train()
    with torch.no_grad():
        assert gap(live(torch.tensor([ids(8, 1)])).logits, wanted) > 1e-3, (
            "in training it does compute something else"
        )


def test_what_is_read_from_a_recording_is_a_copy():
    model = opened("llama")
    recording = recorded(model, 8)
    for site in (
        "2.resid_pre",
        "2.resid_post",
        "3.resid_post",
        "1.resid_mid",
        "2.z",
        "2.mlp_out",
        "embed",
        "final_norm",
        "logits",
    ):
        wanted = recording[site].clone()
        recording[site].zero_()
        assert torch.equal(recording[site], wanted), site
    assert sweep(recording, [Variant()], METRIC).deviation == 0.0


def scaled(model):
    model.parts.head.weight.mul_(1.5)


def scaled_behind_autograd(model):
    model.parts.head.weight.data.mul_(1.5)


def one_row_behind_autograd(model):
    model.blocks[1].branch("mlp").projection.weight.data[3] = 0.5


def one_element(model):
    model.blocks[1].branch("mlp").projection.weight[3, 5] += 0.01


def exchanged(model):
    model.blocks[1].branch("mlp").projection.weight = nn.Parameter(torch.zeros(32, 48))


@pytest.mark.parametrize(
    "change", [scaled, scaled_behind_autograd, one_row_behind_autograd, one_element, exchanged]
)
def test_a_weight_that_changed_since_the_recording_is_noticed(change):
    model = opened("llama")
    recording = recorded(model, 8)
    old = model.weights_sha256
    recording["1.z"]
    with torch.no_grad():
        change(model)
    for use in (
        lambda: sweep(recording, [Variant()], METRIC),
        lambda: recording["1.z"],
        lambda: recording["2.resid_pre"],
    ):
        with pytest.raises(ValueError, match="have changed since this recording was made: record anew"):
            use()
    assert model.weights_sha256 != old, "provenance names the weights that there are"
    assert sweep(recorded(model, 8), [Variant()], METRIC).deviation == 0.0


def test_a_stream_that_is_not_a_number_is_refused():
    model = opened("llama")
    with torch.no_grad():
        model.blocks[2].branch("mlp").projection.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="the stream that leaves block 2 is not finite"):
        recorded(model, 8)


def test_a_control_row_of_other_numbers_is_refused_whatever_they_are(monkeypatch):
    """NaN is larger than no limit, and the largest deviation of several recordings counts, not the least."""
    model = opened("llama")
    recordings = [recorded(model, 8), recorded(model, 8, seed=9)]
    own = Recording.run_block

    def poisoned(value, only):
        def run(self, block, stream, *rest, **named):
            out = own(self, block, stream, *rest, **named)
            return out + value * out.abs().max() if block == 3 and self is only else out

        return run

    for value in (float("nan"), 2 * model.rounding):
        monkeypatch.setattr(recording_module.Recording, "run_block", poisoned(value, recordings[1]))
        with pytest.raises(SweepError, match="the control row, which changes nothing, deviates by"):
            sweep(recordings, [Variant()], METRIC)
    little = model.rounding / 4
    monkeypatch.setattr(recording_module.Recording, "run_block", poisoned(little, recordings[1]))
    result = sweep(recordings, [Variant()], METRIC)
    assert 0.5 * little < result.deviation < 2 * little, "the larger of both recordings' deviations"
    assert sweep(recordings[:1], [Variant()], METRIC).deviation == 0.0


def test_a_float64_model_is_measured_in_float64():
    torch.manual_seed(1)
    model = load(FAMILIES["llama"]().double().eval(), pack=False)
    recording = model.record(ids(8, 1))
    vector = torch.zeros(32, dtype=torch.float64)
    vector[3] = 1e-9
    metrics = [token_logit(7), loss()]
    result = sweep(recording, [Variant([Add("1.resid_pre", vector)])], metrics)
    assert result.values["logit"].dtype == torch.float64
    block = model.blocks[1].module
    handle = block.register_forward_pre_hook(lambda m, args: (args[0] + vector, *args[1:]))
    with torch.no_grad():
        wanted = (
            model.hf(torch.tensor([ids(8, 1)])).logits[0, -1, 7] - recording.head(recording.post(3))[0, -1, 7]
        )
    handle.remove()
    effect = float(result.values["logit"][0, 0] - result.clean["logit"][0])
    assert 1e-12 < abs(effect) < 1e-7
    assert effect == pytest.approx(float(wanted), rel=1e-3)


def test_one_number_written_behind_autograds_back_is_seen_by_the_next_sweep_and_by_results(monkeypatch):
    """No version rises, and a sample of one in 4,096 does not hold it; what was measured before is not given
    again."""
    model = load(FAMILIES["llama"]().eval(), pack=False)
    weight = model.blocks[2].branch("mlp").projection.weight
    monkeypatch.setattr(session, "SAMPLED", 4)
    recording = model.record([[5, 6, 7, 8]])
    before, glance, digest = model.fingerprint(), model.state(), model.weights_sha256
    weight.data[3, 5] += 0.25
    assert model.state() == glance, "a glance does not tell"
    assert model.fingerprint() != before
    with pytest.raises(ValueError, match="have changed since this recording was made"):
        sweep(recording, [], stream_distance())
    assert model.weights_sha256 != digest
    weight.data[3, 5] -= 0.25
    whole = model.fingerprint()
    weight.data[[3, 7]] = weight.data[[7, 3]]
    assert model.fingerprint() != whole, "rows that are exchanged are other weights"


def test_a_write_that_a_glance_missed_before_the_recording_is_refused_once(monkeypatch):
    """Recording trusts the glance; the sweep reads all and refuses; the next recording knows."""
    model = load(FAMILIES["llama"]().eval(), pack=False)
    monkeypatch.setattr(session, "SAMPLED", 4)
    model.fingerprint()
    model.blocks[2].branch("mlp").projection.weight.data[3, 5] += 0.25
    recording = model.record([[5, 6, 7, 8]])
    with pytest.raises(ValueError, match=r"have changed since this recording was made: record anew"):
        sweep(recording, [], stream_distance())
    sweep(model.record([[5, 6, 7, 8]]), [], stream_distance())
    asked = []
    real = session.fingerprint
    monkeypatch.setattr("regraft.model.model.fingerprint", lambda hf: asked.append(1) or real(hf))
    model.record([[5, 6, 7, 8]])
    assert not asked, "nothing changed at a glance: not all bytes are read"
    with torch.no_grad():
        model.blocks[0].branch("mlp").projection.weight.mul_(2)
    model.record([[5, 6, 7, 8]])
    assert asked == [1]


def test_a_weight_that_begins_amid_a_word_is_added_up():
    layer = torch.nn.Module()
    whole = torch.randn(50_001).to(torch.bfloat16)
    layer.weight = torch.nn.Parameter(whole[1:])
    before = session.fingerprint(layer)
    whole[7] += 1
    assert session.fingerprint(layer)[1] != before[1]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (40, 33), (700, 64), (64, 2048)])
def test_every_write_and_every_exchange_changes_the_sums(kind, shape, monkeypatch):
    assert session.PAGE % 16 == 8, "an odd number of words, or signs that all change would not be seen"
    monkeypatch.setattr(session, "PAGE", 4088)
    layer = torch.nn.Module()
    torch.manual_seed(0)
    layer.weight = torch.nn.Parameter(torch.randn(*shape).to(kind))
    seen = [session.fingerprint(layer)]
    flat = layer.weight.data.view(-1)
    count = len(flat)
    for number in {0, 1, count // 3, count // 2, count - 1}:
        flat[number] += 1
        seen.append(session.fingerprint(layer))
    for first, second in ((0, 1), (0, count - 1), (count // 2, count - 1)):
        flat[[first, second]] = flat[[second, first]]
        seen.append(session.fingerprint(layer))
    if len(shape) == 2:
        rows, columns = torch.randperm(shape[0]).roll(1), torch.randperm(shape[1]).roll(1)
        layer.weight.data.copy_(layer.weight.data[rows])
        seen.append(session.fingerprint(layer))
        layer.weight.data.copy_(layer.weight.data[:, columns])
        seen.append(session.fingerprint(layer))
        layer.weight.data.copy_(-layer.weight.data)
        seen.append(session.fingerprint(layer))
    values = [value for _, value in seen]
    assert len(set(values)) == len(values)


def test_of_a_large_model_the_fingerprint_reads_pages_at_even_distances(monkeypatch):
    model = load(FAMILIES["llama"]().eval(), pack=False)
    monkeypatch.setattr(session, "PAGE", 64)
    sizes = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    for share in (1, 2, 5):
        monkeypatch.setattr(session, "LARGEST", -(-sizes // share))
        weight = next(p for p in model.hf.parameters() if p.dim() == 2 and p.numel() % 16 == 0)
        flat, seen, before = weight.data.view(-1), 0, session.fingerprint(model.hf)
        for page in range(flat.numel() // 16):
            flat[16 * page + 3] += 1
            seen += session.fingerprint(model.hf) != before
            flat[16 * page + 3] -= 1
        assert seen == -(-flat.numel() // 16 // share), "one page of so many"
