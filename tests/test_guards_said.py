"""What is said of results, logged, and handed on: certificates in words, shapes of blocks, lines of a
training, settings."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast

from regraft.experiments.intervene.patch import patch
from regraft.jobs.graft_jobs import sentences
from regraft.model.parts import Branch
from regraft.model.summary import _block_shape
from regraft.modules import hf_model as grafted
from regraft.modules.hf_model import GraftedModel
from regraft.sweeps.sweep import _at_one_position
from regraft.sweeps.variants import Add, Scale
from regraft.tokenizers.transplanted_folder import written_tokenizer
from regraft.training import trainer as distill
from small import ids, opened


def test_a_certificate_in_words():
    domain = {
        "bits_per_byte_before": 1.25,
        "bits_per_byte_after": 1.5,
        "kl": 0.125,
        "top1": 0.75,
        "top5": 0.875,
    }
    states = {
        "part_parameters": [12000, 500], "forward": [0.25, 0.5], "forward_peak": [2.0 * 2**20, 3.5 * 2**20],
        "step": [1.0, 0.125], "step_peak": [8.0 * 2**20, 0.5 * 2**20],
    }  # fmt: skip
    data = xr.Dataset(
        {
            **{name: ("domain", [value]) for name, value in domain.items()},
            **{name: ("state", values) for name, values in states.items()},
            "token": ("worst", ["t", "u"]),
            "context": ("worst", ["c", "d"]),
            "excess": ("worst", [3.0, 1.0]),
        },
        {"domain": ["x"]},
    )
    assert list(sentences(data)) == [
        (
            "x: 1.2500 bits per byte become 1.5000 (+0.2500), 0.125 nats per token of divergence, the same"
            " first token in 75.0%, of the first five 87.5%"
        ),
        "the part: 12,000 parameters before, 500 after",
        "forward pass: 250 ms and 2.0 MiB beyond the weights before, 500 ms and 3.5 MiB after",
        "training step of the part: 1000 ms and 8.0 MiB beyond the weights before, 125 ms and 0.5 MiB after",
        "worst: 't' after 'c' (+3.00 nats)",
    ]


def test_blocks_are_described_by_their_branches():
    def said(*branches, **more):
        taps = SimpleNamespace(exists=lambda index, site: True)
        model = SimpleNamespace(taps=taps, tap=lambda address: SimpleNamespace(heads=3))
        return _block_shape(
            model, SimpleNamespace(index=0, address="0", branches=branches, reason="", **more)
        )

    plain = {"parallel": False, "sum_norms": False}
    attn, cross, mixer = (
        Branch(kind, nn.Linear(2, 2), nn.Linear(2, 2)) for kind in ("attn", "cross", "mixer")
    )
    mlp, experts = Branch("mlp", nn.Linear(7, 2), nn.Linear(7, 2)), Branch("mlp", nn.Linear(7, 2), None)
    alone = Branch("attn", nn.Linear(2, 2), None, recurrent=True)
    assert said(attn, mlp, **plain) == "attention (3 heads), then MLP (7 neurons)"
    assert (
        said(attn, cross, experts, **plain)
        == "attention (3 heads), then cross-attention, then MLP (mixture of experts)"
    )
    assert (
        said(alone, mixer, parallel=True, sum_norms=True)
        == "linear attention (3 heads) beside mixer; norm after each addition"
    )
    assert said(**plain) == "no branch was found"


def test_an_edit_of_one_position_takes_the_value_of_the_last_blocks_position():
    """Prompts may be as long as another stack's are not: a position from the end counts in the last
    block's."""
    value = torch.arange(8.0).view(1, 4, 2)
    lengths = {0: (4,), 1: (2,), 2: (3,)}
    recording = SimpleNamespace(
        positions=4, prompts=1, model=SimpleNamespace(blocks=[None] * 3), lengths_of=lengths.__getitem__
    )
    cut = _at_one_position(Add("logits", value, -1), 0, 2, recording)
    assert cut.position is None
    assert cut.value.tolist() == [4.0, 5.0]
    assert _at_one_position(Add("logits", value), 0, 3, recording).value.tolist() == [6.0, 7.0]
    plain = _at_one_position(Scale("logits", 3.0, 1), 0, 1, recording)
    assert (plain.factor, plain.position) == (3.0, None)


@pytest.mark.parametrize("with_view", [False, True])
def test_generation_is_asked_for_in_the_callers_words(with_view):
    asked, seen = [], []

    class View(nn.Module):
        @contextmanager
        def asked(self, settings, every):
            asked.append((settings, every))
            yield

    def generate(inputs, generation_config, *args, **kwargs):
        seen.append((inputs, generation_config, args, kwargs))
        return "made"

    base = SimpleNamespace(
        generate=generate, _prepare_generation_config=lambda config, **more: (("whole", config), {})
    )
    base.modules = lambda: [View()] if with_view else []
    model = SimpleNamespace(base=base)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(grafted, "LogitsView", View)
        for args, kwargs, every in (((), {}, False), (("p",), {}, True),
                                    ((), {"logits_processor": [1]}, True),
                                    ((), {"logits_processor": None, "max_length": 3}, False)):  # fmt: skip
            assert GraftedModel.generate(model, "ids", "config", *args, **kwargs) == "made"
            assert seen.pop() == ("ids", "config", args, kwargs)
            assert asked == ([(("whole", "config"), every)] if with_view else [])
            asked.clear()


def test_lines_of_a_training_are_kept_and_drawn(tmp_path, monkeypatch):
    drawn = []

    class Board:
        def __init__(self, folder, purge_step):
            drawn.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            drawn.append((name, value, step))

        def close(self):
            drawn.append("closed")

    monkeypatch.setattr(distill, "SummaryWriter", Board)
    begun = [{"step": 0, "loss": 3.0}, {"step": 1, "loss": 2.5}]
    with distill._writer(tmp_path, begun, True) as write:
        write({"step": 2, "loss": 2.0, "norm": 0.5})
    assert drawn == [(str(tmp_path / "tensorboard"), 2), ("loss", 2.0, 2), ("norm", 0.5, 2), "closed"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [*begun, {"step": 2, "loss": 2.0, "norm": 0.5}]
    with distill._writer(tmp_path / "other", begun, False) as write:
        write({"step": 2})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_effects_are_shares_of_the_difference_of_two_runs(direction):
    model = opened("llama")
    clean, corrupt = ids(5, 3), ids(5, 4)
    said = [" ".join(map(str, row)) for row in (clean, corrupt)]
    data = patch(model, *said, "7", "9", grid="block", direction=direction)
    with torch.no_grad():
        source, target = (
            float(x[7] - x[9])
            for x in (model.hf(torch.tensor([row])).logits[0, -1] for row in (clean, corrupt))
        )
    source, target = (source, target) if direction == "denoise" else (target, source)
    assert data.attrs["source_value"] == pytest.approx(source, abs=1e-5)
    assert data.attrs["target_value"] == pytest.approx(target, abs=1e-5)
    assert data.effect.values == pytest.approx(
        (data.logit_difference.values - target) / (source - target), abs=1e-4
    )
    assert data.effect.values[0, 0] == pytest.approx(1.0, abs=1e-4), "the whole stream of the other run"


@pytest.mark.parametrize(
    ("front", "behind"), [("", ""), ("[A]", ""), ("[A] [B]", ""), ("[A]", "[B]"), ("", "[B]")]
)
def test_a_decoders_tokenizer_puts_nothing_behind_a_text(front, behind):
    names = ["[A]", "[B]", "a", "b"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pattern = f"{front} $A {behind}".split()
    backend.post_processor = TemplateProcessing(single=pattern, special_tokens=[("[A]", 0), ("[B]", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="[A]", eos_token="[B]")
    case = SimpleNamespace(
        new=SimpleNamespace(tokenizer=tokenizer), model=SimpleNamespace(two_stacks=False, causal=True)
    )
    before = copy.deepcopy(tokenizer)
    made = written_tokenizer(case)
    first = [names.index(name) for name in front.split()]
    assert made("a b")["input_ids"] == [*first, 2, 3]
    assert (
        tokenizer("a b")["input_ids"]
        == before("a b")["input_ids"]
        == [*first, 2, 3, *([1] if behind else [])]
    )
    if not behind:
        assert made.backend_tokenizer.to_str() == before.backend_tokenizer.to_str(), (
            "nothing is changed where nothing must be"
        )
    case.model.two_stacks = True
    assert written_tokenizer(case)("a b")["input_ids"] == before("a b")["input_ids"]
