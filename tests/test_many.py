"""Two processes under a launcher give what one gives that adds up both their batches; with the trunk spread
over them as well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from other_library import own_library
from regraft.cli.options import own_device
from regraft.data.windows import cut
from regraft.modules.byte_codes import byte_embedding
from regraft.modules.byte_embedding import ByteConfig
from regraft.modules.tree_head import tree_head
from regraft.modules.trees import by_id
from regraft.training.tasks.embedding_task import EmbeddingTask
from regraft.training.tasks.head_task import HeadTask
from regraft.training.tasks.transcoder_task import TranscoderLoss, TranscoderTask
from regraft.training.trainer import TrainingPlan, train
from small import opened
from test_distill import TABLE
from transcoder_models import hybrid, pair, trained

STEPS = 4


def task(kind):
    model = opened("llama")
    torch.manual_seed(0)
    if kind == "embedding":
        return EmbeddingTask(model, byte_embedding(TABLE, model.width, ByteConfig(4, 8, 1, 2, 16)))
    if kind == "transcoder":
        base, target = pair("llama")
        carrier = hybrid(base, target)
        graft = trained(carrier)
        with torch.no_grad():
            graft[0].enc.bias[0] = -1e6
            graft[0].enc.weight[1], graft[0].enc.bias[1] = 0.0, 1.0
        # dead features are counted, not lifted: that depends on which batch comes first
        weights = TranscoderLoss(l1=0.01, dead=1e-9, silent_for=1)
        return TranscoderTask(carrier, target, graft, weights, cutoff=2)
    head = tree_head(by_id(model.table_rows), model.width, 8)
    with torch.no_grad():
        head.rows.weight[:-1].normal_(std=0.3)
    return HeadTask(model, head)


def text():
    return cut(np.random.default_rng(0).integers(3, 93, 2000).astype(np.uint32), 16)


def run(kind, folder, accumulate=1, shard=False):
    made = task(kind)
    plan = TrainingPlan(
        steps=STEPS, batch=2, accumulate=accumulate, warmup=2, save_every=2, shard=shard, clip=1e9
    )
    log = train(made, text(), plan, Path(folder))
    return made, log


def learnt(made):
    """What a run has made: a table, or a head's tensors. (The keys' bias has no gradient but rounding, so it
    is not compared.)"""
    return (
        [made.graft.table()]
        if isinstance(made, EmbeddingTask)
        else [p.detach() for p in made.graft.parameters()]
    )


ONE = """
import sys; sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
from accelerate import PartialState
from test_many import *
made, log = run(sys.argv[2], sys.argv[3], 1, sys.argv[4] == "shard")
rank = PartialState().process_index
kinds = {type(p).__name__ for p in made.blocks()[0].parameters()}
buffers = [*made.graft.buffers()]
torch.save((learnt(made), kinds, len(log), buffers), f"{sys.argv[3]}/rank-{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("embedding", "whole"),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("embedding", "shard"), ("head", "whole"), ("transcoder", "whole"))
        ),
    ],
)
def test_two_processes_make_one_run_of_both_their_batches(kind, how, tmp_path):
    script = tmp_path / "one.py"
    script.write_text(ONE)
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    launch += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    arguments = [str(script), str(Path(__file__).parent), kind, str(tmp_path / "many"), how]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    (first, kinds, steps, kept), (second, _, _, others) = (
        torch.load(tmp_path / "many" / f"rank-{rank}.pt") for rank in (0, 1)
    )
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True)), "both hold one graft"
    assert all(torch.equal(p, q) for p, q in zip(kept, others, strict=True)), "and what it counts"
    if kind == "transcoder":
        assert kept[0][0, :2].tolist() == [STEPS, 0], "one feature was silent in every batch, one in none"
    assert kinds == ({"DTensor"} if how == "shard" else {"Parameter"})
    assert steps == STEPS
    with own_library():
        alone, _ = run(kind, tmp_path / "alone", accumulate=2)
    for p, q in zip(first, learnt(alone), strict=True):
        torch.testing.assert_close(p, q, atol=2e-5, rtol=1e-3)
    other, _ = run(kind, tmp_path / "half")
    parted = [float((p - q).abs().max()) for p, q in zip(first, learnt(other), strict=True)]
    assert max(parted) > 1e-3, "half the batch, the neighbour that is wrong, gives other weights"


def test_every_process_has_a_card_of_its_own(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [own_device(device) for device in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


def test_one_process_has_nothing_to_spread_over(tmp_path):
    with pytest.raises(ValueError, match="start with `accelerate launch`"):
        run("embedding", tmp_path, shard=True)
