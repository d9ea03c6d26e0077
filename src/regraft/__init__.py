"""regraft: take a transformer apart, see what every part does, replace one, and prove that it still works.

Names are imported when they are first used, so that the command line can answer `--help` without loading
PyTorch; this file lists them once, for Python below `_HOMES` and for type checkers below TYPE_CHECKING (a
test holds the two together).
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from regraft.core.auto_classes import register
from regraft.core.silence import silent

if TYPE_CHECKING:
    from regraft.codecs.codec_table import codec as codec
    from regraft.core.runs import open_run as open_run
    from regraft.experiments.intervene.ablate import ablate as ablate
    from regraft.experiments.intervene.bottleneck import bottleneck as bottleneck
    from regraft.experiments.intervene.cache import cache as cache
    from regraft.experiments.intervene.knockout import knockout as knockout
    from regraft.experiments.intervene.noise import noise as noise
    from regraft.experiments.intervene.patch import patch as patch
    from regraft.experiments.intervene.paths import paths as paths
    from regraft.experiments.intervene.prune import prune as prune
    from regraft.experiments.intervene.push import push as push
    from regraft.experiments.intervene.quantization.quantize import quantize as quantize
    from regraft.experiments.intervene.quantization.quantizers import quantizers as quantizers
    from regraft.experiments.intervene.reorder import reorder as reorder
    from regraft.experiments.intervene.repeat import repeat as repeat
    from regraft.experiments.intervene.replacement import replacement as replacement
    from regraft.experiments.intervene.shuffle.shuffle import shuffle as shuffle
    from regraft.experiments.intervene.steer import steer as steer
    from regraft.experiments.intervene.swap import swap as swap
    from regraft.experiments.intervene.transplant import transplant as transplant
    from regraft.experiments.observe.attention import attention as attention
    from regraft.experiments.observe.compile import compile as compile
    from regraft.experiments.observe.completions import completions as completions
    from regraft.experiments.observe.contributions import contributions as contributions
    from regraft.experiments.observe.correlations import correlations as correlations
    from regraft.experiments.observe.disaggregate import disaggregate as disaggregate
    from regraft.experiments.observe.geometry import geometry as geometry
    from regraft.experiments.observe.lens import lens as lens
    from regraft.experiments.observe.linearity import linearity as linearity
    from regraft.experiments.observe.neurons import neurons as neurons
    from regraft.experiments.observe.spectra import spectra as spectra
    from regraft.experiments.observe.trajectories import trajectories as trajectories
    from regraft.export.certificate import certify as certify
    from regraft.export.changed_model import Generated as Generated
    from regraft.export.changed_model import changed as changed
    from regraft.export.changed_model import generate as generate
    from regraft.export.graft_folder import attach as attach
    from regraft.export.graft_folder import make_embedding as make_embedding
    from regraft.export.graft_folder import swaps_of as swaps_of
    from regraft.export.grafted_model import write_grafted as write_grafted
    from regraft.jobs.activations_job import activations as activations
    from regraft.jobs.feature_jobs import attribute_prompt as attribute_prompt
    from regraft.jobs.feature_jobs import describe_features as describe_features
    from regraft.jobs.graft_jobs import bake_embedding as bake_embedding
    from regraft.jobs.graft_jobs import evaluate_grafts as evaluate_grafts
    from regraft.jobs.graft_jobs import export_grafts as export_grafts
    from regraft.jobs.graft_jobs import fit_embedding as fit_embedding
    from regraft.jobs.head_jobs import Build as Build
    from regraft.jobs.head_jobs import build_head as build_head
    from regraft.jobs.head_jobs import fit_head as fit_head
    from regraft.jobs.inspection import inspect as inspect
    from regraft.jobs.inspection import inspect_headers as inspect_headers
    from regraft.jobs.lens_job import fit_lens as fit_lens
    from regraft.jobs.pareto_job import pareto_transcoder as pareto_transcoder
    from regraft.jobs.report_job import report as report
    from regraft.jobs.report_job import report_beside as report_beside
    from regraft.jobs.reproduce_job import reproduce as reproduce
    from regraft.jobs.run_folders import compare_runs as compare_runs
    from regraft.jobs.run_folders import found_runs as found_runs
    from regraft.jobs.tokenizer_jobs import compare_tokenizers as compare_tokenizers
    from regraft.jobs.tokenizer_jobs import train_tokenizer as train_tokenizer
    from regraft.jobs.transcoder_jobs import evaluate_transcoder as evaluate_transcoder
    from regraft.jobs.transcoder_jobs import export_transcoder as export_transcoder
    from regraft.jobs.transcoder_jobs import fit_transcoder as fit_transcoder
    from regraft.jobs.transcoder_jobs import open_transcoder as open_transcoder
    from regraft.jobs.transplant_job import transplant_tokenizer as transplant_tokenizer
    from regraft.jobs.transplant_sources import Sources as Sources
    from regraft.jobs.transplant_sources import explain_token as explain_token
    from regraft.model.load import load as load
    from regraft.model.model import Model as Model
    from regraft.model.recording import Recording as Recording
    from regraft.modules.byte_embedding import ByteConfig as ByteConfig
    from regraft.modules.byte_embedding import ByteEmbedding as ByteEmbedding
    from regraft.modules.tree_head import TreeHead as TreeHead
    from regraft.modules.tree_head import tree_head as tree_head
    from regraft.reference.verify import rebuild as rebuild
    from regraft.reporting.notebook import figure as figure
    from regraft.sweeps.attention_edits import CutAttention as CutAttention
    from regraft.sweeps.cluster import Cluster as Cluster
    from regraft.sweeps.gradients import gradients as gradients
    from regraft.sweeps.grids import grid as grid
    from regraft.sweeps.kept_sweeps import keeping as keeping
    from regraft.sweeps.metric_kinds import Metric as Metric
    from regraft.sweeps.metrics import kl_to_clean as kl_to_clean
    from regraft.sweeps.metrics import log_probability as log_probability
    from regraft.sweeps.metrics import logit_difference as logit_difference
    from regraft.sweeps.metrics import loss as loss
    from regraft.sweeps.metrics import probability as probability
    from regraft.sweeps.metrics import rank as rank
    from regraft.sweeps.metrics import stream_distance as stream_distance
    from regraft.sweeps.metrics import token_logit as token_logit
    from regraft.sweeps.metrics import top1_agreement as top1_agreement
    from regraft.sweeps.own_metrics import metric as metric
    from regraft.sweeps.routes import Route as Route
    from regraft.sweeps.several_devices import Devices as Devices
    from regraft.sweeps.sweep import sweep as sweep
    from regraft.sweeps.variants import Add as Add
    from regraft.sweeps.variants import Apply as Apply
    from regraft.sweeps.variants import Edit as Edit
    from regraft.sweeps.variants import Noise as Noise
    from regraft.sweeps.variants import Replace as Replace
    from regraft.sweeps.variants import Scale as Scale
    from regraft.sweeps.variants import Variant as Variant
    from regraft.sweeps.variants import Zero as Zero
    from regraft.tokenizers.init_methods import InitSettings as InitSettings
    from regraft.tokenizers.training import Recipe as Recipe
    from regraft.training.tasks.transcoder_task import TranscoderLoss as TranscoderLoss
    from regraft.training.trainer import TrainingPlan as TrainingPlan

_HOMES = {
    "model.load": ("load",),
    "model.model": ("Model",),
    "model.recording": ("Recording",),
    "sweeps.sweep": ("sweep",),
    "sweeps.routes": ("Route",),
    "sweeps.attention_edits": ("CutAttention",),
    "sweeps.variants": ("Add", "Apply", "Edit", "Noise", "Replace", "Scale", "Variant", "Zero"),
    "sweeps.metric_kinds": ("Metric",),
    "sweeps.metrics": (
        "kl_to_clean",
        "log_probability",
        "logit_difference",
        "loss",
        "probability",
        "rank",
        "stream_distance",
        "token_logit",
        "top1_agreement",
    ),
    "sweeps.own_metrics": ("metric",),
    "sweeps.gradients": ("gradients",),
    "sweeps.cluster": ("Cluster",),
    "sweeps.several_devices": ("Devices",),
    "sweeps.kept_sweeps": ("keeping",),
    "sweeps.grids": ("grid",),
    "core.runs": ("open_run",),
    "codecs.codec_table": ("codec",),
    "reporting.notebook": ("figure",),
    "modules.byte_embedding": ("ByteConfig", "ByteEmbedding"),
    "modules.tree_head": ("TreeHead", "tree_head"),
    "export.graft_folder": ("attach", "make_embedding", "swaps_of"),
    "export.certificate": ("certify",),
    "export.changed_model": ("Generated", "changed", "generate"),
    "export.grafted_model": ("write_grafted",),
    "training.trainer": ("TrainingPlan",),
    "training.tasks.transcoder_task": ("TranscoderLoss",),
    "jobs.activations_job": ("activations",),
    "jobs.graft_jobs": ("bake_embedding", "evaluate_grafts", "export_grafts", "fit_embedding"),
    "jobs.feature_jobs": ("attribute_prompt", "describe_features"),
    "jobs.pareto_job": ("pareto_transcoder",),
    "jobs.lens_job": ("fit_lens",),
    "jobs.transcoder_jobs": ("evaluate_transcoder", "export_transcoder", "fit_transcoder", "open_transcoder"),
    "jobs.head_jobs": ("Build", "build_head", "fit_head"),
    "jobs.tokenizer_jobs": ("compare_tokenizers", "train_tokenizer"),
    "tokenizers.training": ("Recipe",),
    "tokenizers.init_methods": ("InitSettings",),
    "jobs.reproduce_job": ("reproduce",),
    "jobs.transplant_job": ("transplant_tokenizer",),
    "jobs.transplant_sources": ("Sources", "explain_token"),
    "reference.verify": ("rebuild",),
    "jobs.inspection": ("inspect", "inspect_headers"),
    "jobs.report_job": ("report", "report_beside"),
    "jobs.run_folders": ("compare_runs", "found_runs"),
}
"""Names by module; experiments stand in `regraft.core.registry`."""

__all__ = [
    "Add",
    "Apply",
    "Build",
    "ByteConfig",
    "ByteEmbedding",
    "Cluster",
    "CutAttention",
    "Devices",
    "Edit",
    "Generated",
    "InitSettings",
    "Metric",
    "Model",
    "Noise",
    "Recipe",
    "Recording",
    "Replace",
    "Route",
    "Scale",
    "Sources",
    "TrainingPlan",
    "TranscoderLoss",
    "TreeHead",
    "Variant",
    "Zero",
    "__version__",  # pyright: ignore[reportUnsupportedDunderAll]",
    "ablate",
    "activations",
    "attach",
    "attention",
    "attribute_prompt",
    "bake_embedding",
    "bottleneck",
    "build_head",
    "cache",
    "certify",
    "changed",
    "codec",
    "compare_runs",
    "compare_tokenizers",
    "compile",
    "completions",
    "contributions",
    "correlations",
    "describe_features",
    "disaggregate",
    "evaluate_grafts",
    "evaluate_transcoder",
    "explain_token",
    "export_grafts",
    "export_transcoder",
    "figure",
    "fit_embedding",
    "fit_head",
    "fit_lens",
    "fit_transcoder",
    "found_runs",
    "generate",
    "geometry",
    "gradients",
    "grid",
    "inspect",
    "inspect_headers",
    "keeping",
    "kl_to_clean",
    "knockout",
    "lens",
    "linearity",
    "load",
    "log_probability",
    "logit_difference",
    "loss",
    "make_embedding",
    "metric",
    "neurons",
    "noise",
    "open_run",
    "open_transcoder",
    "pareto_transcoder",
    "patch",
    "paths",
    "probability",
    "prune",
    "push",
    "quantize",
    "quantizers",
    "rank",
    "rebuild",
    "reorder",
    "repeat",
    "replacement",
    "report",
    "report_beside",
    "reproduce",
    "shuffle",
    "spectra",
    "steer",
    "stream_distance",
    "swap",
    "swaps_of",
    "sweep",
    "token_logit",
    "top1_agreement",
    "train_tokenizer",
    "trajectories",
    "transplant",
    "transplant_tokenizer",
    "tree_head",
    "write_grafted",
]

register()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("regraft")
    for module, names in _HOMES.items():
        if name in names:
            with silent():  # what libraries say as they are imported is of this machine
                return getattr(import_module(f"regraft.{module}"), name)
    from regraft.core.registry import experiments

    if name in experiments():
        return experiments()[name].checked()
    raise AttributeError(f"module 'regraft' has no attribute {name!r}")


def __dir__() -> list[str]:
    from regraft.core.registry import experiments

    return sorted({*__all__, *experiments()})
