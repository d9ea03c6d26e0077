"""Shares of a sweep measured by copies of the model: on other devices, and on a cluster of two nodes."""

from __future__ import annotations

import copy
import json
import os

import pytest
import ray
import torch
from typer.testing import CliRunner

from regraft.cli.main import app, prepared
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.build import measured_there
from regraft.sweeps import shares
from regraft.sweeps.metrics import kl_to_clean, loss
from regraft.sweeps.routes import Route
from regraft.sweeps.several_devices import Devices
from regraft.sweeps.shares import helped_by
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Replace, Scale, Variant
from small import ids, opened
from stores import alike


def variants(model, count=60):
    some = [Variant([Scale(f"{n % 4}.mlp_out", 0.1 * n, n % 6)]) for n in range(count)]
    some += [Variant([Replace("1.resid_pre", torch.ones(model.width), 2)]), Variant(route=Route.skip(4, {2}))]
    return [*some, Variant(route=Route.replace(4, {1: model.blocks[2].module}))]


def test_devices_give_what_one_gives(monkeypatch):
    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 16)
    model = opened("llama")
    recording = model.record([ids(7, 1), ids(6, 2)], regions=[["a"] * 7, ["a"] * 3 + ["b"] * 3])
    alone = sweep(recording, variants(model), [loss(), kl_to_clean()])
    asked = []

    class Counted(Devices):
        def measured(self, recording, some, *words):
            asked.extend(number for number, _ in some)
            return super().measured(recording, some, *words)

    others = Counted(model, [load(copy.deepcopy(model.hf), pack=False) for _ in range(2)])
    with helped_by(others):
        together = sweep(recording, variants(model), [loss(), kl_to_clean()])
    assert asked == [0, 1, 2], "the share with a block of this model's own is measured here"
    assert together.values.keys() == alone.values.keys() >= {"loss", "loss[a]"}
    for name, values in alone.values.items():
        torch.testing.assert_close(together.values[name], values, rtol=1e-4, atol=1e-6, equal_nan=True)
    again = sweep(recording, variants(model), [loss()], cluster=others)
    torch.testing.assert_close(again.values["loss"], alone.values["loss"], rtol=1e-4, atol=1e-6)
    assert asked == [0, 1, 2, 0, 1, 2]


def test_another_model_than_the_one_that_was_copied_is_measured_here(monkeypatch):
    """A donor's recording, a model that was changed or hooked since: copies know nothing of it."""
    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 16)
    model, donor = opened("llama"), opened("llama", seed=9)
    others = Devices(model, [load(copy.deepcopy(model.hf), pack=False)])
    monkeypatch.setattr(Devices, "measured", lambda *words: pytest.fail("the copies are asked"))
    alone = sweep(donor.record([ids(7, 1)]), variants(donor)[:20], loss())
    found = sweep(donor.record([ids(7, 1)]), variants(donor)[:20], loss(), cluster=others)
    torch.testing.assert_close(found.values["loss"], alone.values["loss"], rtol=1e-4, atol=1e-6)
    hook = model.blocks[1].module.register_forward_hook(lambda *words: None)
    sweep(model.record([ids(7, 1)]), variants(model)[:20], loss(), cluster=others)
    hook.remove()
    with torch.no_grad():
        model.blocks[1].module.mlp.up_proj.weight.mul_(2.0)
    sweep(model.record([ids(7, 1)]), variants(model)[:20], loss(), cluster=others)


def test_an_error_on_another_device_is_heard(monkeypatch):
    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 4)
    model = opened("llama")
    recording = model.record([ids(7, 1)])
    other = load(copy.deepcopy(model.hf), pack=False)

    def broken(*words):
        raise RuntimeError("the card fell out")

    monkeypatch.setattr("regraft.sweeps.several_devices.recorded_again", broken)
    with pytest.raises(RuntimeError, match="the card fell out"):
        sweep(recording, variants(model)[:40], [loss()], cluster=Devices(model, [other]))


def test_the_command_line_takes_several_devices():
    words = ["knockout", "--model", "specimen:gpt2", "--prompts", "14 + 43 =", "--tokens", "4"]
    told = []
    for device in ("cpu", "cpu,cpu"):
        done = CliRunner().invoke(app, prepared([*words, "--device", device, "--json"]))
        assert done.exit_code == 0, done.output
        told.append(json.loads(done.stdout)["data_vars"]["loss"]["data"])
    assert told[0] == pytest.approx(told[1], rel=1e-4)
    for wrong, said in (
        (["--device", "cuda:*"], "sees no GPU"),
        (["--device", "cpu,gpu"], "device 'gpu' is not known"),
        (["--device", "cpu,cpu", "--cluster", "local"], "two ways to share the work: choose one"),
    ):
        done = CliRunner().invoke(app, prepared([*words, *wrong]))
        assert done.exit_code in (1, 2)
        assert said in " ".join(done.stderr.split()), done.stderr


def test_copies_of_a_streamed_model_are_streamed(monkeypatch):
    """Where no copy fits, each device reads the blocks for itself, and the result says so."""
    from regraft.jobs import helping

    words = ["knockout", "--model", "specimen:gpt2", "--prompts", "14 + 43 =", "--tokens", "4", "--json"]
    seen = []

    class Kept(Devices):
        def __init__(self, model, copies):
            super().__init__(model, copies)
            seen.extend([model, *copies])

    monkeypatch.setattr(helping, "Devices", Kept)
    told = []
    for device, free in (("cpu", 0), ("cpu,cpu", 1 << 40), ("cpu,cpu", 10_000_000)):
        monkeypatch.setattr(helping, "free_now", lambda device, free=free: free)
        with monkeypatch.context() as bare:
            bare.setattr("regraft.model.streamed.held_now", lambda device: 0)
            bare.setattr("regraft.model.streamed.WORKING", 0)
            bare.setattr("regraft.model.streamed.Streamed.make_room", lambda streamed, needed: None)
            done = CliRunner().invoke(app, prepared([*words, "--device", device]))
        assert done.exit_code == 0, done.output
        told.append(json.loads(done.stdout)["data_vars"]["loss"]["data"])
    assert [one.streamed is not None for one in seen] == [False, False, True, True]
    assert told[1] == pytest.approx(told[0], rel=1e-4)
    assert told[2] == pytest.approx(told[0], rel=1e-4)
    assert helping.memory_of_each(["cpu"]) is None
    assert helping.memory_of_each(["cpu", "cpu"]) == 5_000_000


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two nodes on this machine, started and stopped here."""
    from ray.cluster_utils import Cluster as Nodes

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
def test_a_cluster_gives_the_same_bits_and_a_killed_worker_changes_nothing(two_nodes, monkeypatch):
    from regraft.sweeps.cluster import Cluster

    monkeypatch.setattr(shares, "variants_at_once", lambda recording: 16)
    model = load("specimen:gpt2")
    recording = model.record(["14 + 43 = 57 and more", "The capital of France is a city"])
    with helped_by(Devices(model, [])):
        here = sweep(recording, variants(model), [loss(), kl_to_clean()])
    workers = Cluster(model, two_nodes.address)
    try:
        assert len(workers.workers) == 2
        assert len({told["node"] for told in ray.get([w.told.remote() for w in workers.workers])}) >= 1
        there = sweep(recording, variants(model), [loss(), kl_to_clean()], cluster=workers)
        for name, values in here.values.items():
            assert torch.equal(there.values[name], values), name
        ray.kill(workers.workers[0], no_restart=False)
        again = sweep(recording, variants(model), [loss(), kl_to_clean()], cluster=workers)
        for name, values in here.values.items():
            assert torch.equal(again.values[name], values), name
        results = dict(workers.each(measured_there, [("knockout", 0, {"count": 2}), ("lens", 0, {"k": 0})]))
        assert results[1] is None, "what fails there is told"
        alone = run_experiment(experiments()["knockout"], model, count=2)
        alike(results[0], alone)
    finally:
        ray.shutdown()


def test_what_no_cluster_can_do_is_refused(monkeypatch):
    from regraft.sweeps import cluster

    with pytest.raises(cluster.ClusterError, match="is a live model, which the workers of a cluster cannot"):
        cluster.Cluster(opened("llama"), "local")
    model = load("specimen:gpt2", stream=True)
    with pytest.raises(cluster.ClusterError, match="a streamed model is read by one process"):
        cluster.Cluster(model, "local")

    def nobody(**words):
        raise ConnectionError("nobody")

    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(cluster.ClusterError, match=r"no cluster answers at 10\.0\.0\.1:6379: start"):
        cluster.Cluster(load("specimen:gpt2"), "10.0.0.1:6379")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"torch": "1.0"}, "another torch"), ({"weights_sha256": "0" * 64}, "other weights under the same")],
)
def test_workers_that_differ_are_refused(change, said, monkeypatch):
    from regraft.sweeps import cluster

    model = load("specimen:gpt2")
    here = {**cluster.versions(), "weights_sha256": model.weights_sha256, "machine": "a", "node": "there"}

    class Far:
        class told:
            remote = staticmethod(lambda: {**here, **change})

    made = object.__new__(cluster.Cluster)
    made.workers, made.notes, made.ray = [Far], [], FakeRay
    with pytest.raises(cluster.ClusterError, match=f"the worker on there has {said}"):
        made._check(model)
    kinds = [{**here, "machine": kind} for kind in "ab"]
    told = [type("Told", (), {"remote": staticmethod(lambda kind=kind: kind)}) for kind in kinds]
    made.workers = [type("Worker", (), {"told": one}) for one in told]
    made._check(model)
    assert made.notes == ["measured by machines of several kinds (a, b)"]


class FakeRay:
    exceptions = ray.exceptions
    get = staticmethod(list)
    shutdown = staticmethod(lambda: None)
