"""Files for circuit-tracer and SAELens, read by their own code in an environment of its own
(`make test-readers`)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import regraft
from regraft.core.randomness import drawing_from
from regraft.jobs.transcoder_jobs import opened_pair
from test_transcoder_jobs import SHORT

pytestmark = pytest.mark.readers

ROOT = Path(__file__).parents[1]
PROMPT = "Problem: Ann has 2 cups, buys 3 and finds 4. How many? <think> First, 2 + 3 = 5."


def test_the_neighbours_read_what_is_written_for_them(tmp_path):
    models = regraft.load("specimen:qwen3"), regraft.load("specimen:tuned")
    regraft.fit_transcoder(*models, tmp_path / "a", features=24, plan=SHORT)
    folder, out = tmp_path / "a" / "graft", tmp_path / "files"
    data = regraft.describe_features(folder, out, most=12, k=4, neighbours=True)
    regraft.attribute_prompt(folder, PROMPT, tmp_path / "graph", most=64)
    shutil.copy(tmp_path / "graph" / "graph.json", out / "graph.json")
    graft = opened_pair(folder).graft
    with drawing_from(1):
        asked = {block: torch.randn(6, graft.shape.width) for block in (0, 5, 11)}
    torch.save(asked, tmp_path / "asked.pt")
    words = [ROOT / ".readers" / "bin" / "python", ROOT / "tools" / "read_as_neighbours.py", out]
    words += [tmp_path / "asked.pt", tmp_path / "read.pt"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    read = torch.load(tmp_path / "read.pt", weights_only=False)
    for block, x_ND in asked.items():
        with torch.no_grad():
            features, added = torch.relu(graft[block].enc(x_ND)), graft[block](x_ND)
        assert float(features.abs().max()) > 0.1
        for name in ("saelens", "circuit-tracer"):
            torch.testing.assert_close(read[name][block][0], features, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(read[name][block][1], added, atol=1e-5, rtol=1e-4)
    largest = data.largest.values
    assert len(read["features"]) == int((largest > 0).sum())
    for (block, feature), value in read["features"].items():
        assert value == pytest.approx(float(largest[block, feature]), abs=1e-3)
    graph = json.loads((out / "graph.json").read_text())
    assert read["graph"] == (len(graph["nodes"]), len(graph["links"]))
