"""What `regraft graft transcoder features | attribute` do once their options are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from regraft.core.files import check_empty, expanded
from regraft.core.progress import advance
from regraft.data.records import Records
from regraft.data.windows import Windows
from regraft.export.graft_folder import read_about
from regraft.export.transcoder_certificate import Standing
from regraft.features.attribution import AttributionGraph, attribute, pruned
from regraft.features.descriptions import Description, Endpoint, EndpointError
from regraft.features.descriptions import described as description
from regraft.features.feature_facts import Facts
from regraft.features.feature_pass import feature_pass
from regraft.features.feature_sources import (
    FeatureSource,
    Of,
    adapter_features,
    neuron_features,
    random_features,
)
from regraft.features.neighbour_files import (
    write_circuit_tracer_weights,
    write_graph,
    write_packed_features,
    write_saelens,
)
from regraft.jobs.checks import named_texts
from regraft.jobs.transcoder_jobs import opened_pair
from regraft.jobs.transcoder_text import LONGEST, TextSource, text_of_source, worked_sums
from regraft.reporting.feature_page import write_feature_page
from regraft.reporting.graph_page import write_graph_page
from regraft.sweeps.provenance import provenance

OFTEN = 0.1
"""Share of the tokens from which on a feature is no feature of something, and is not described."""
TITLES: dict[Of, str] = {
    "adapters": "What tuning added: {base} to {target}",
    "random": "Random directions in the place of features: {base} to {target}",
    "neurons": "Neurons of the MLPs: {base} to {target}",
}
"""Of the page, by whose features it shows."""
NOUNS: dict[Of, str] = {"adapters": "feature", "random": "random", "neurons": "neuron"}
"""What one is called in its address."""
PAGE, PACKED, WEIGHTS, SAELENS = "page", "features", "circuit-tracer", "saelens"


def describe_features(
    folder: Path | str,
    out: Path | str,
    texts: Sequence[str] = (),
    *,
    most: int = 500,
    length: int = LONGEST,
    k: int = 20,
    seed: int = 0,
    device: str = "cpu",
    neighbours: bool = False,
    endpoint: Endpoint | None = None,
    described: int = 20,
    of: Of = "adapters",
) -> xr.Dataset:
    """Read text once and write the page that tells of every feature; with `neighbours` also the files of
    circuit-tracer and SAELens.

    Args:
        folder: of the adapters.
        out: a new folder; `page/index.html` opens without a server.
        texts: by domain (NAME=PATH); without them worked sums.
        most: sequences of each domain.
        length: tokens of a sequence of a named text.
        k: activations of each feature that are kept, of the largest and of a random sample.
        seed: of the sample.
        device: where to run.
        neighbours: write the neighbours' files, too.
        endpoint: a language model that describes features; none by default, and nothing is sent anywhere.
        described: features of each block that it describes, the most frequent of those that are above zero
            at fewer than a tenth of the tokens.
        of: whose features: the adapters', or what they are held against, read by the same code: `random`
            directions, as frequent and as long as theirs, or the `neurons` of the MLPs.

    Returns:
        Numbers of all features.

    Raises:
        RunFolderError: the folder is not empty.
        ValueError: a text without a token, or neighbours' files of what are no adapters.

    Examples:
        >>> tuned, few = regraft.load("specimen:tuned"), regraft.TrainingPlan(steps=2, batch=2)
        >>> fitted = regraft.fit_transcoder(model, tuned, "described", features=32, plan=few, length=64)
        >>> data = regraft.describe_features("described/graft", "page", most=2, length=64, k=2)
        >>> dict(data.frequency.sizes), data.frequency.attrs["units"]
        ({'block': 12, 'feature': 32}, 'share of tokens above zero')
    """
    folder, out = expanded(folder), expanded(out)
    check_empty(out, "--out")
    if of not in NOUNS:
        raise ValueError(f"of is {of!r}: choose of {', '.join(NOUNS)}")
    if neighbours and of != "adapters":
        raise ValueError(f"neighbours' files hold adapters, not {of}: leave out --neighbours")
    standing = opened_pair(folder, device=device)
    domains = _domains(standing, texts, length, folder)
    source = _source(standing, of, list(domains.values()), seed)
    found = feature_pass(standing.carrier, source, domains, most, k, seed)
    facts = Facts(standing.carrier, source, found)
    data, about = facts.table(), read_about(folder)
    data.attrs = {
        **provenance(standing.carrier), "experiment": "features", "of": of,
        "pair_base": about["pair"]["base"], "pair_target": about["pair"]["target"],
    }  # fmt: skip
    blocks = range(source.blocks)
    said, why = _descriptions(facts, blocks, endpoint, described) if endpoint else ({}, "")
    write_feature_page(
        out / PAGE, TITLES[of].format(**about["pair"]),
        [*feature_sentences(data), *([why] if why else [])], (facts.of_block(block) for block in blocks),
        {place: (one.text, one.score) for place, one in said.items()}, NOUNS[of],
    )  # fmt: skip
    data.attrs |= {"described": len(said), "descriptions": why or "none were asked for"}
    if neighbours:
        scan = about["pair"]["target"]
        write_packed_features(
            out / PACKED, (facts.of_block(block) for block in blocks), standing.graft.shape.features
        )
        write_circuit_tracer_weights(standing.graft, out / WEIGHTS, about["pair"]["target"], scan)
        write_saelens(standing.graft, out / SAELENS, about["pair"]["target"])
    return data


def _source(standing: Standing, of: Of, texts: Sequence[Windows | Records], seed: int) -> FeatureSource:
    if of == "adapters":
        return adapter_features(standing.carrier, standing.graft)
    if of == "neurons":
        return neuron_features(standing.carrier, standing.graft)
    return random_features(standing.carrier, standing.graft, texts, seed)


def _descriptions(
    facts: Facts, blocks: Sequence[int], endpoint: Endpoint, most: int
) -> tuple[dict[tuple[int, int], Description], str]:
    """Descriptions by block and feature, and a sentence on them; those that came before an endpoint stopped
    answering are kept."""
    found: dict[tuple[int, int], Description] = {}
    try:
        for block in blocks:
            rare = [one for one in facts.of_block(block) if one["activation_frequency"] < OFTEN]
            rare.sort(key=lambda one: -one["activation_frequency"])
            for one in rare[:most]:
                if len(rare) > 1:
                    found[block, one["index"]] = description(endpoint, one, rare)
            advance("describing", block + 1, len(blocks))
    except (EndpointError, ValueError) as error:
        return found, f"{len(found)} features are described; then it ended: {error}."
    mean = sum(one.score for one in found.values()) / max(1, len(found))
    return found, (
        f"{len(found)} features are described by {endpoint.model}, each with the share of contexts that its"
        f" description tells rightly (0.5 is chance); mean {mean:.2f}."
    )


def feature_sentences(data: xr.Dataset) -> list[str]:
    """What was read, how many features live, and how often they are above zero."""
    live = data.frequency.values > 0
    tokens = int(data.tokens.sum())
    shown = data.frequency.values[live]
    middle = float(sorted(shown)[len(shown) // 2]) if len(shown) else 0.0
    often = f", half of them at fewer than {middle:.2%} of the tokens" if len(shown) else ""
    return [
        f"{tokens:,} tokens were read. {int(live.sum()):,} of {live.size:,} features were above zero{often}.",
        "Shades show how strongly a feature is active at a token; the outlined token is the one that the"
        " context is shown for.",
    ]


def attribute_prompt(
    folder: Path | str,
    prompt: str,
    out: Path | str,
    *,
    nodes: float = 0.8,
    edges: float = 0.98,
    most: int = 512,
    device: str = "cpu",
) -> AttributionGraph:
    """The graph of features, tokens and logits of the token behind a prompt, pruned, drawn on a page, and
    written as circuit-tracer's front end reads it.

    Args:
        folder: of the adapters.
        prompt: the text.
        out: a new folder.
        nodes: share of all influence that is kept in nodes.
        edges: share that is kept in edges.
        most: features at tokens that are looked at.
        device: where to run.

    Returns:
        Nodes and edges of the pruned graph, in logits.

    Raises:
        RunFolderError: the folder is not empty.
        ValueError: an empty prompt, or a model that no rule makes linear.

    Examples:
        >>> tuned, few = regraft.load("specimen:tuned"), regraft.TrainingPlan(steps=2, batch=2)
        >>> fitted = regraft.fit_transcoder(model, tuned, "attributed", features=32, plan=few, length=64)
        >>> graph = regraft.attribute_prompt("attributed/graft", "Anna has 12 coins", "graph", most=16)
        >>> {node.kind for node in graph.nodes} >= {"token", "logit"}
        True
    """
    folder, out = expanded(folder), expanded(out)
    check_empty(out, "--out")
    standing = opened_pair(folder, device=device)
    ids = standing.carrier.encode(prompt)
    graph = pruned(attribute(standing.carrier, standing.graft, ids, most), nodes, edges)
    scan = read_about(folder)["pair"]["target"]
    out.mkdir(parents=True, exist_ok=True)
    write_graph(graph, out, "graph", scan, nodes)
    write_graph_page(out / "graph.html", graph)
    return graph


def graph_sentences(graph: AttributionGraph) -> list[str]:
    """What the graph holds, how much of the prediction it explains, and which features matter most."""
    count = sum(node.kind == "feature" for node in graph.nodes)
    influence = graph.influence()
    best = sorted(range(count), key=lambda i: -influence[i])[:5]
    named = ", ".join(f"{graph.nodes[i].name} at {graph.nodes[i].text!r}" for i in best)
    logit = next(node for node in graph.nodes if node.kind == "logit")
    return [
        f"next token {logit.text!r} ({logit.value:.1%}): {count} of {graph.active:,} active features and"
        f" {len(graph.ids)} tokens; before pruning, features, tokens and biases added up to the score within"
        f" {graph.left_over:.1e} of it (errors are zero by construction: the MLPs stay in the model)",
        f"most influential: {named}" if named else "no feature matters: the adapters were not trained",
    ]


def _domains(
    standing: Standing, texts: Sequence[str], length: int, folder: Path
) -> dict[str, Windows | Records]:
    named: dict[str, Windows | Records] = {
        name: text_of_source(standing.target, TextSource(paths, length=length), folder / "text")
        for name, paths in named_texts(texts).items()
    }
    return named or {"worked sums": worked_sums(standing.target, 1000, 7)}
