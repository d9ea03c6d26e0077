"""Every public name of regraft, by the page of the reference that it stands on."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Models": (
        "Open a model, run it, read it, change it.",
        (
            "load", "Model", "Recording", "generate", "Generated", "changed", "activations", "gradients",
            "inspect", "inspect_headers",
        ),
    ),
    "Sweeps": (
        "Many variants of one run, and what differs.",
        (
            "sweep", "grid", "Variant", "Route", "Edit", "Zero", "Replace", "Add", "Scale", "Noise", "Apply",
            "CutAttention", "keeping", "Devices", "Cluster",
        ),
    ),
    "Metrics": (
        "What is read at the end of every run.",
        (
            "loss", "logit_difference", "token_logit", "log_probability", "probability", "rank",
            "kl_to_clean", "top1_agreement", "stream_distance", "metric", "Metric",
        ),
    ),
    "Observing": (
        "Experiments that read a model as it is. Each takes an opened model first and returns an"
        " `xarray.Dataset`.",
        (
            "lens", "attention", "compile", "disaggregate", "contributions", "geometry", "spectra",
            "linearity", "trajectories",
            "neurons", "correlations", "completions",
        ),
    ),
    "Intervening": (
        "Experiments that change a part and measure what it did. Each takes an opened model first and returns"
        " an `xarray.Dataset`.",
        (
            "cache", "knockout", "swap", "patch", "paths", "push", "ablate", "bottleneck", "steer", "repeat",
            "noise", "replacement", "quantize", "quantizers", "shuffle", "transplant", "prune", "reorder",
        ),
    ),
    "Results": (
        "What was measured: drawn, on a page, read again, compared.",
        ("figure", "report", "report_beside", "open_run", "found_runs", "compare_runs", "reproduce"),
    ),
    "Grafts": (
        "Another part in a part's place, trained against the model, measured, exported.",
        (
            "fit_embedding", "evaluate_grafts", "bake_embedding", "export_grafts", "make_embedding",
            "ByteConfig", "ByteEmbedding", "build_head", "fit_head", "Build", "tree_head", "TreeHead",
            "attach", "swaps_of", "certify", "write_grafted", "fit_lens", "TrainingPlan",
        ),
    ),
    "Transcoders": (
        "What tuning changed, as sparse features.",
        (
            "fit_transcoder", "open_transcoder", "evaluate_transcoder", "export_transcoder",
            "describe_features", "attribute_prompt", "pareto_transcoder", "TranscoderLoss",
        ),
    ),
    "Tokenizers": (
        "Other vocabularies: trained, compared, given to a model.",
        (
            "train_tokenizer", "Recipe", "compare_tokenizers", "transplant_tokenizer", "explain_token",
            "InitSettings", "Sources",
        ),
    ),
    "Rebuilding": (
        "A model written anew from its files; files packed.",
        ("rebuild", "codec"),
    ),
}  # fmt: skip
"""Title of a page: what stands on it, and its names in order."""
EXPERIMENTS = ("Observing", "Intervening")
"""Pages whose names are experiments: what each returns is told from what its example measured."""


def public_names() -> list[str]:
    """All of them, page by page."""
    return [name for _, names in GROUPS.values() for name in names]
