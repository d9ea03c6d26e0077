"""A graph of features, tokens and logits for one prediction: what each adds to each, in the model made
linear at the prompt.

Source: "Circuit Tracing" (Ameisen et al., 2025), with adapters in place of cross-layer transcoders and the
rules of `linear_model`. The MLPs stay in the model and pass gradients on, so that nothing is left over as an
error: errors are zero by construction. Shapes: T tokens, D width, F features, L blocks, V vocabulary, n
nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.progress import advance
from regraft.core.structure import main_tensor, with_main_tensor
from regraft.features.linear_model import Linearised
from regraft.model.model import Model
from regraft.modules.backbone import mlps_of
from regraft.modules.transcoder import Transcoders, beside

MASS, MOST_LOGITS = 0.95, 10
"""Logits of the graph: the most probable tokens, to this share of the probability or so many."""
AT_ONCE = 64
"""Features whose rows are found between two looks at which matter most."""
LEFT_OVER = 1e-3
"""Share of a score that its parts may miss, in float32, before the model is refused as one that no rule makes
linear."""


@dataclass(frozen=True)
class GraphNode:
    """A feature at a token (`kind` feature: block, feature, token), a token's embedding, or a logit; `text`
    is the token's."""

    kind: str
    block: int
    index: int
    position: int
    value: float
    text: str

    @property
    def name(self) -> str:
        """The feature's address."""
        return f"{self.block}.feature.{self.index}"


@dataclass(frozen=True)
class AttributionGraph:
    """Nodes in the order features, tokens, logits; `weights_nn[t, s]` is what node s adds to node t.

    `scores` are the logits' heights over the mean logit, `biases` what of them comes from biases,
    `probability` the tokens' probabilities; `left_over` is the largest share of a score that parts and
    biases miss.
    """

    ids: tuple[int, ...]
    nodes: tuple[GraphNode, ...]
    weights_nn: np.ndarray
    scores: np.ndarray
    biases: np.ndarray
    probability: np.ndarray
    left_over: float
    active: int

    @property
    def completeness(self) -> np.ndarray:
        """For each logit the sum over features, tokens and biases, over its score."""
        count = len(self.scores)
        return (self.weights_nn[-count:].sum(1) + self.biases) / self.scores

    def influence(self) -> np.ndarray:
        """How much of the logits each node is behind, directly and through others (n,), the logits weighed by
        their probabilities."""
        size_nn = np.abs(self.weights_nn)
        share_nn = size_nn / np.maximum(size_nn.sum(1, keepdims=True), 1e-12)
        wanted = np.zeros(len(self.nodes))
        wanted[-len(self.probability) :] = self.probability
        found, step = np.zeros_like(wanted), wanted
        for _ in range(len(self.nodes)):
            step = step @ share_nn
            if not step.any():
                break
            found += step
        return found


class _Linear:
    """One run of the adapted model, made linear, whose parts can be asked what they add to what."""

    def __init__(self, model: Model, graft: Transcoders, ids: Sequence[int]):
        self.model, self.graft, self.ids = model, graft, torch.tensor([ids], device=model.device)
        self.biases = [
            p for m in (*model.hf.modules(), *graft.modules())
            for name, p in m.named_parameters(recurse=False) if name == "bias"
        ]  # fmt: skip
        first = model.main_blocks[0].module
        self.start: Tensor | None = None

        def begin(module: nn.Module, args: Any, kwargs: Any) -> Any:
            stream = main_tensor((args, kwargs))
            assert stream is not None
            self.start = stream.detach().requires_grad_(True)
            return (self.start, *args[1:]) if args else args, kwargs if args else with_main_tensor(
                kwargs, self.start
            )

        every = [*model.hf.parameters(), *graft.parameters()]
        needed = [p.requires_grad for p in every]
        with model.held(), ExitStack() as stack:
            stack.callback(lambda: [p.requires_grad_(n) for p, n in zip(every, needed, strict=True)])
            for parameter in every:
                parameter.requires_grad_(False)
            for bias in self.biases:
                bias.requires_grad_(True)
            stack.callback(first.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.enter_context(beside(model.hf, mlps_of(model), graft))
            heard = stack.enter_context(graft.hearing(cuts=True))
            with torch.enable_grad(), Linearised():
                self.logits_V = model.run(input_ids=self.ids).logits[0, -1].float()
        assert self.start is not None
        self.before = [own[0][0] for own in heard]
        self.features = [own[0][1] for own in heard]

    def row(self, target: Tensor) -> tuple[Tensor, Tensor, float]:
        """What every feature (L, T, F), every token (T,), and all biases together add to a number."""
        leaves = [*self.features, self.start, *self.biases]
        found = torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True)
        count = len(self.features)
        features = [
            torch.zeros_like(leaf[0]) if g is None else (g * leaf).detach()[0]
            for g, leaf in zip(found[:count], self.features, strict=True)
        ]
        assert self.start is not None
        tokens = found[count]
        tokens_T = (
            torch.zeros(self.start.shape[1]) if tokens is None else (tokens * self.start).detach()[0].sum(-1)
        )
        biases = sum(
            float((g * b).detach().sum())
            for g, b in zip(found[count + 1 :], self.biases, strict=True)
            if g is not None
        )
        return torch.stack(features).float().cpu(), tokens_T.float().cpu(), biases


def attribute(
    model: Model, graft: Transcoders, ids: Sequence[int], most_features: int = 512
) -> AttributionGraph:
    """The graph of the next token's prediction.

    Args:
        model: what the adapters stand in.
        graft: the adapters.
        ids: the prompt.
        most_features: features at tokens that are made nodes: those that the logits hang on most, found in
            turns, each looking through those that are known already.

    Raises:
        ValueError: the parts of a score do not add up to it: this model has a function that no rule makes
            linear.
    """
    if model.dtype.itemsize < torch.float32.itemsize:
        raise ValueError(
            f"{model.name} computes in half precision, whose rounding hides what adds up: open it in float32"
        )
    run = _Linear(model, graft, ids)
    if not run.logits_V.requires_grad:
        raise ValueError(
            f"{model.name} has a function that no rule makes linear (a cap on its scores, for one): nothing"
            " flows to its scores"
        )
    probability_V = run.logits_V.detach().softmax(-1)
    chosen = salient(probability_V)
    middle = run.logits_V.mean()
    rows = [run.row(run.logits_V[token] - middle) for token in chosen.tolist()]
    scores = (run.logits_V[chosen] - middle).detach().double().cpu().numpy()
    biases = np.array([row[2] for row in rows])
    sums = np.array([float(row[0].double().sum() + row[1].double().sum()) for row in rows]) + biases
    left_over = float(np.abs((sums - scores) / np.abs(scores).max()).max())
    if not left_over <= LEFT_OVER:
        raise ValueError(
            f"the parts of the prediction miss {left_over:.1%} of it: {model.name} has a function that no"
            " rule makes linear (a cap on its scores, for one)"
        )
    active_LTF = torch.stack([f[0].detach() for f in run.features]).cpu() > 0
    places = _chosen_features(run, rows, probability_V[chosen].cpu(), active_LTF, most_features)
    return _graph(run, places, rows, chosen, probability_V, scores, biases, left_over, int(active_LTF.sum()))


def salient(probability_V: Tensor) -> Tensor:
    """The most probable tokens, to 95% of the probability or ten of them."""
    top = probability_V.topk(min(MOST_LOGITS, len(probability_V)))
    before = top.values.cumsum(0) - top.values
    return top.indices[before < MASS]


def _chosen_features(
    run: _Linear, rows: list[tuple[Tensor, Tensor, float]], weights_k: Tensor, active_LTF: Tensor, most: int
) -> list[tuple[tuple[int, int, int], tuple[Tensor, Tensor, float]]]:
    """Features with their rows, most influential first found."""
    influence_LTF = sum(w * _share(row) for w, row in zip(weights_k, rows, strict=True))
    assert isinstance(influence_LTF, Tensor)
    found: dict[tuple[int, int, int], tuple[Tensor, Tensor, float]] = {}
    open_LTF = active_LTF.clone()
    most = min(most, int(active_LTF.sum()))
    while len(found) < most:
        left = (influence_LTF * open_LTF).flatten()
        top = left.topk(min(AT_ONCE, most - len(found)))
        if not float(top.values[0]) > 0:
            break
        for flat, value in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            place = np.unravel_index(flat, active_LTF.shape)
            block, position, feature = (int(i) for i in place)
            open_LTF[block, position, feature] = False
            if value > 0:
                row = run.row(run.before[block][0, position, feature])
                found[block, position, feature] = row
                influence_LTF = influence_LTF + value * _share(row)
        advance("features of the graph", len(found), most)
    return sorted(found.items())


def _share(row: tuple[Tensor, Tensor, float]) -> Tensor:
    features, tokens, _ = row
    size = features.abs()
    return size / (size.sum() + tokens.abs().sum()).clamp_min(1e-12)


def _graph(
    run: _Linear, places: list[tuple[tuple[int, int, int], tuple[Tensor, Tensor, float]]],
    rows: list[tuple[Tensor, Tensor, float]], chosen: Tensor, probability_V: Tensor,
    scores: np.ndarray, biases: np.ndarray, left_over: float, active: int,
) -> AttributionGraph:  # fmt: skip
    at = [place for place, _ in places]
    block, position, feature = (torch.tensor([p[i] for p in at], dtype=torch.long) for i in range(3))
    ids = run.ids[0].tolist()
    count, tokens, logits = len(at), len(ids), len(chosen)
    weights_nn = np.zeros((count + tokens + logits,) * 2, np.float32)
    targets = [(number, row) for number, (_, row) in enumerate(places)]
    targets += [(count + tokens + number, row) for number, row in enumerate(rows)]
    for number, (features_LTF, tokens_T, _) in targets:
        weights_nn[number, :count] = features_LTF[block, position, feature].numpy() if count else 0.0
        weights_nn[number, count : count + tokens] = tokens_T.numpy()
    values = [float(run.features[b][0, t, f].detach()) for b, t, f in at]
    words = [run.model.token_text(token) for token in ids]
    nodes = [
        GraphNode("feature", b, f, t, value, words[t]) for (b, t, f), value in zip(at, values, strict=True)
    ]
    nodes += [GraphNode("token", -1, token, place, 0.0, words[place]) for place, token in enumerate(ids)]
    last = len(run.features)
    probability = probability_V[chosen].double().cpu().numpy()
    nodes += [
        GraphNode("logit", last, token, tokens - 1, float(p), run.model.token_text(token))
        for token, p in zip(chosen.tolist(), probability, strict=True)
    ]
    return AttributionGraph(
        tuple(ids), tuple(nodes), weights_nn, scores, biases, probability, left_over, active
    )


def pruned(graph: AttributionGraph, nodes: float = 0.8, edges: float = 0.98) -> AttributionGraph:
    """The nodes that make up a share of all influence, and of their edges those that make up another; nodes
    without edges go, tokens and logits stay.

    Raises:
        ValueError: a share that is none.
    """
    for name, share in (("nodes", nodes), ("edges", edges)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} is {share}: it is a share of all influence, above 0 and at most 1")
    count = sum(node.kind == "feature" for node in graph.nodes)
    influence = graph.influence()
    keep = np.ones(len(graph.nodes), bool)
    keep[:count] = _first_of(influence[:count], nodes)
    weights_nn = graph.weights_nn * keep[:, None] * keep[None]
    heights = influence + np.array([node.value if node.kind == "logit" else 0.0 for node in graph.nodes])
    size_nn = np.abs(weights_nn)
    flow_nn = size_nn / np.maximum(size_nn.sum(1, keepdims=True), 1e-12) * heights[:, None]
    weights_nn = weights_nn * _first_of(flow_nn.ravel(), edges).reshape(flow_nn.shape)
    while True:
        lonely = keep.copy()
        lonely[count:] = False
        lonely[:count] &= ~((weights_nn[:, :count] != 0).any(0) & (weights_nn[:count] != 0).any(1))
        if not lonely.any():
            break
        keep &= ~lonely
        weights_nn = weights_nn * keep[:, None] * keep[None]
    chosen = np.nonzero(keep)[0]
    left = tuple(graph.nodes[i] for i in chosen)
    return AttributionGraph(
        graph.ids, left, weights_nn[np.ix_(chosen, chosen)], graph.scores, graph.biases, graph.probability,
        graph.left_over, graph.active,
    )  # fmt: skip


def _first_of(values: np.ndarray, share: float) -> np.ndarray:
    """True for the largest values that make up a share of their sum."""
    order = np.argsort(-values, kind="stable")
    total = np.cumsum(values[order])
    enough = int(np.searchsorted(total, share * total[-1] - 1e-12)) + 1 if len(total) else 0
    found = np.zeros(len(values), bool)
    found[order[:enough]] = values[order[:enough]] > 0
    return found
