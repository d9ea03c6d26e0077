"""What circuit-tracer and SAELens make of the files that are written for them, in an environment of their
own.

`.readers/bin/python tools/read_as_neighbours.py FOLDER REQUEST.pt ANSWER.pt`, run by
`tests/test_neighbour_readers.py` (`make test-readers`). FOLDER is what `graft transcoder features
--neighbours` wrote, with `graph.json` beside; the request holds inputs for every block. Imports nothing of
regraft.
"""

from __future__ import annotations

import gzip
import json
import sys
from itertools import pairwise
from pathlib import Path

import torch
import yaml


def main() -> None:
    """Read everything with the neighbours' own code; write what their transcoders make of the inputs."""
    folder, asked = Path(sys.argv[1]), torch.load(sys.argv[2])
    torch.save(
        {
            "saelens": saelens(folder / "saelens", asked),
            "circuit-tracer": circuit_tracer(folder / "circuit-tracer", asked),
            "features": packed(folder / "features"),
            "graph": graph(folder / "graph.json"),
        },
        sys.argv[3],
    )


def saelens(folder: Path, asked: dict[int, torch.Tensor]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Features and outputs of every block by SAELens' transcoder."""
    from sae_lens import Transcoder

    found = {}
    for block, x_ND in asked.items():
        read = Transcoder.load_from_disk(str(folder / f"block-{block}"), device="cpu")
        features = read.encode(x_ND)
        found[block] = (features.detach(), read.decode(features).detach())
    return found


def circuit_tracer(
    folder: Path, asked: dict[int, torch.Tensor]
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """The same by circuit-tracer's set of transcoders, opened from its config."""
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["model_kind"] == "transcoder_set"
    paths = {number: str(folder / name) for number, name in enumerate(config["transcoders"])}
    every = load_transcoder_set(
        paths, config["scan"], config["feature_input_hook"], config["feature_output_hook"],
        device=torch.device("cpu"), lazy_encoder=False, lazy_decoder=False,
    )  # fmt: skip
    found = {}
    for block, x_ND in asked.items():
        read = every.transcoders[block]
        features = read.encode(x_ND)
        found[block] = (features.detach(), read.decode(features).detach())
    return found


def packed(folder: Path) -> dict[tuple[int, int], float]:
    """Every packed feature, checked by circuit-tracer's own model of one: its largest activation."""
    from circuit_tracer.frontend.feature_models import Model

    index, found = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes())), {}
    for block in (name for name in index if name.isdigit()):
        data = (folder / index[block]["filename"]).read_bytes()
        offsets = index[block]["offsets"]
        for feature, (begin, end) in enumerate(pairwise(offsets)):
            if end > begin:
                one = Model.model_validate_json(gzip.decompress(data[begin + 4 : end]))
                found[int(block), feature] = one.act_max
    return found


def graph(file: Path) -> tuple[int, int]:
    """Nodes and links of the graph, checked by circuit-tracer's own model of one; every node is named as it
    names its own."""
    from circuit_tracer.frontend.graph_models import Link, Model, Node

    read = Model.model_validate_json(file.read_text(encoding="utf-8"))
    blocks = max(int(node.layer) for node in read.nodes if node.layer != "E") - 1
    for node in read.nodes:
        layer, index, place = node.node_id.split("_")
        if node.feature_type == "embedding":
            own = Node.token_node(int(place), int(index))
        elif node.feature_type == "logit":
            own = Node.logit_node(int(place), int(index), "", blocks)
        else:
            own = Node.feature_node(int(layer), int(place), int(index))
        for name in ("node_id", "jsNodeId", "feature", "layer", "ctx_idx", "feature_type"):
            assert getattr(node, name) == getattr(own, name), (name, node, own)
    names, links = {node.node_id for node in read.nodes}, [Link(**one) for one in read.links]
    assert all(link.source in names and link.target in names for link in links)
    return len(read.nodes), len(links)


if __name__ == "__main__":
    main()
