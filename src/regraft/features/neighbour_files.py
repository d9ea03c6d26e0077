"""Graphs, feature pages and weights in the files that circuit-tracer's front end and SAELens read.

An adapter is no transcoder, since the MLP itself stays: only the adapter's branch is written, and the
metadata say so.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from regraft.core.files import whole_file, whole_folder
from regraft.features.attribution import AttributionGraph, GraphNode
from regraft.modules.transcoder import Transcoders

BRANCH_ALONE = (
    "the branch that adapters add beside the MLPs, which stay in the model: errors are zero by construction"
)


def cantor(block: int, feature: int) -> int:
    """One number for a block and a feature: (l + f)(l + f + 1) / 2 + f."""
    return (block + feature) * (block + feature + 1) // 2 + feature


def write_graph(graph: AttributionGraph, folder: Path, slug: str, scan: str, threshold: float) -> Path:
    """Write a graph as `<slug>.json`, and `graph-metadata.json`, which lists it."""
    influence = _cumulative(graph)
    last = max(node.block for node in graph.nodes)
    names = [_node_id(node, last) for node in graph.nodes]
    words = [node.text for node in graph.nodes if node.kind == "token"]
    metadata = {
        "slug": slug, "scan": scan, "transcoder_list": [], "schema_version": 1, "node_threshold": threshold,
        "prompt_tokens": words, "prompt": "".join(words), "note": BRANCH_ALONE,
    }  # fmt: skip
    content = {
        "metadata": metadata,
        "qParams": {
            "pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": "",
        },
        "nodes": [
            _node(graph, number, name, float(influence[number]))
            for number, name in enumerate(names)
        ],
        "links": [
            {"source": names[s], "target": names[t], "weight": float(graph.weights_nn[t, s])}
            for t, s in zip(*graph.weights_nn.nonzero(), strict=True)
        ],
    }  # fmt: skip
    path = folder / f"{slug}.json"
    for file, told in ((path, content), (folder / "graph-metadata.json", {"graphs": [metadata]})):
        with whole_file(file) as part:
            part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return path


def _cumulative(graph: AttributionGraph) -> Any:
    """Each node's place in the order of influence, as the share of all influence down to it, 0 to 1."""
    influence = graph.influence()
    order = (-influence).argsort(kind="stable")
    found = influence.copy()
    found[order] = influence[order].cumsum() / max(float(influence.sum()), 1e-12)
    return found


def _node_id(node: GraphNode, last: int) -> str:
    if node.kind == "feature":
        return f"{node.block}_{node.index}_{node.position}"
    if node.kind == "token":
        return f"E_{node.index}_{node.position}"
    return f"{last + 1}_{node.index}_{node.position}"


def _node(graph: AttributionGraph, number: int, name: str, influence: float) -> dict[str, Any]:
    node = graph.nodes[number]
    logits = [i for i, one in enumerate(graph.nodes) if one.kind == "logit"]
    told = {
        "feature": (cantor(node.block, node.index), str(node.block), "cross layer transcoder",
                    f"{node.block}_{node.index}-0", ""),
        "token": (node.position, "E", "embedding", f"E_{node.index}-{node.position}", f'Emb: "{node.text}"'),
        "logit": (node.index, name.partition("_")[0], "logit", f"L_{node.index}-{node.position}",
                  f'Output "{node.text}" (p={node.value:.3f})'),
    }[node.kind]  # fmt: skip
    feature, layer, kind, js_id, clerp = told
    return {
        "node_id": name, "jsNodeId": js_id, "feature": feature, "layer": layer, "ctx_idx": node.position,
        "feature_type": kind, "token_prob": node.value if node.kind == "logit" else 0.0,
        "is_target_logit": bool(logits) and number == logits[0], "run_idx": 0,
        "reverse_ctx_idx": len(graph.ids) - 1 - node.position, "clerp": clerp, "influence": influence,
        "activation": node.value if node.kind == "feature" else None,
    }  # fmt: skip


def write_packed_features(folder: Path, blocks: Iterable[Iterable[dict[str, Any]]], features: int) -> None:
    """Write features as circuit-tracer packs them: `layer_{i}.bin` of length and gzip JSON for each feature,
    and `index.json.gz` with where each begins; a dead one takes no place."""
    index: dict[str, Any] = {"version": "1.0", "format": "variable_chunks"}
    with whole_folder(folder) as fresh:
        for number, some in enumerate(blocks):
            by_index = {one["index"]: one for one in some}
            offsets, name = [0], f"layer_{number}.bin"
            with (fresh / name).open("wb") as stream:
                for feature in range(features):
                    if feature in by_index:
                        packed = gzip.compress(json.dumps(by_index[feature]).encode(), mtime=0)
                        stream.write(struct.pack("<I", len(packed)) + packed)
                    offsets.append(stream.tell())
            index[str(number)] = {"filename": name, "offsets": offsets}
        (fresh / "index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode(), mtime=0))


def read_packed_feature(folder: Path, block: int, feature: int) -> dict[str, Any] | None:
    """One feature of a packed folder; None where it was never above zero."""
    index = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes()))[str(block)]
    begin, end = index["offsets"][feature : feature + 2]
    if begin == end:
        return None
    with (folder / index["filename"]).open("rb") as stream:
        stream.seek(begin)
        (length,) = struct.unpack("<I", stream.read(4))
        assert begin + 4 + length == end
        return json.loads(gzip.decompress(stream.read(length)))


def write_circuit_tracer_weights(graft: Transcoders, folder: Path, model_name: str, scan: str) -> None:
    """Write the branches as `layer_{i}.safetensors` and `config.yaml`."""
    with whole_folder(folder) as fresh:
        lines = [
            f"model_name: {json.dumps(model_name)}", "model_kind: transcoder_set",
            f"scan: {json.dumps(scan)}",
            "feature_input_hook: mlp.hook_in", "feature_output_hook: hook_mlp_out",
            f"note: {json.dumps(BRANCH_ALONE)}", "transcoders:",
        ]  # fmt: skip
        for number, adapter in enumerate(graft):
            save_file(_tensors(adapter, transposed=False), fresh / f"layer_{number}.safetensors")
            lines.append(f"  - layer_{number}.safetensors")
        (fresh / "config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_saelens(graft: Transcoders, folder: Path, model_name: str) -> None:
    """Write every branch as a folder `block-{i}` that SAELens reads."""
    with whole_folder(folder) as fresh:
        for number, adapter in enumerate(graft):
            own = fresh / f"block-{number}"
            own.mkdir()
            save_file(_tensors(adapter, transposed=True), own / "sae_weights.safetensors")
            config = {
                "architecture": "transcoder", "d_in": graft.shape.width, "d_out": graft.shape.width,
                "d_sae": graft.shape.features, "dtype": "float32", "apply_b_dec_to_input": False,
                "normalize_activations": "none",
                "metadata": {
                    "hook_name": f"blocks.{number}.mlp.hook_in",
                    "hook_name_out": f"blocks.{number}.hook_mlp_out", "model_name": model_name,
                    "note": BRANCH_ALONE,
                },
            }  # fmt: skip
            (own / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _tensors(adapter: Any, transposed: bool) -> dict[str, torch.Tensor]:
    enc_FD = adapter.enc.weight.detach().float().cpu()
    bias = adapter.dec.bias
    width = enc_FD.shape[1]
    return {
        "W_enc": (enc_FD.T if transposed else enc_FD).contiguous(),
        "W_dec": adapter.dec.weight.detach().float().cpu().T.contiguous(),
        "b_enc": adapter.enc.bias.detach().float().cpu(),
        "b_dec": torch.zeros(width) if bias is None else bias.detach().float().cpu(),
    }
