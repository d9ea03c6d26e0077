"""regraft: take a transformer apart, see what every part does, replace one, and prove that it still works.

Names are imported when they are first used, so that the command line can answer `--help` without loading PyTorch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from regraft.core.auto_classes import register

if TYPE_CHECKING:
    from regraft.export.certificate import certify as certify
    from regraft.export.graft_folder import attach as attach
    from regraft.export.graft_folder import make_embedding as make_embedding
    from regraft.export.graft_folder import swaps_of as swaps_of
    from regraft.export.grafted_model import write_grafted as write_grafted
    from regraft.model.load import load as load
    from regraft.model.model import Model as Model
    from regraft.model.recording import Recording as Recording
    from regraft.modules.byte_embedding import ByteConfig as ByteConfig
    from regraft.modules.byte_embedding import ByteEmbedding as ByteEmbedding
    from regraft.modules.tree_head import TreeHead as TreeHead
    from regraft.modules.tree_head import tree_head as tree_head
    from regraft.sweeps.metrics import kl_to_clean as kl_to_clean
    from regraft.sweeps.metrics import log_probability as log_probability
    from regraft.sweeps.metrics import logit_difference as logit_difference
    from regraft.sweeps.metrics import loss as loss
    from regraft.sweeps.metrics import probability as probability
    from regraft.sweeps.metrics import rank as rank
    from regraft.sweeps.metrics import stream_distance as stream_distance
    from regraft.sweeps.metrics import token_logit as token_logit
    from regraft.sweeps.metrics import top1_agreement as top1_agreement
    from regraft.sweeps.sweep import sweep as sweep
    from regraft.sweeps.variants import Add as Add
    from regraft.sweeps.variants import Edit as Edit
    from regraft.sweeps.variants import Noise as Noise
    from regraft.sweeps.variants import Replace as Replace
    from regraft.sweeps.variants import Route as Route
    from regraft.sweeps.variants import Scale as Scale
    from regraft.sweeps.variants import Variant as Variant
    from regraft.sweeps.variants import Zero as Zero

_HOMES = {
    "load": "regraft.model.load",
    "Model": "regraft.model.model",
    "Recording": "regraft.model.recording",
    "sweep": "regraft.sweeps.sweep",
    **dict.fromkeys(("ByteConfig", "ByteEmbedding"), "regraft.modules.byte_embedding"),
    **dict.fromkeys(("TreeHead", "tree_head"), "regraft.modules.tree_head"),
    **dict.fromkeys(("attach", "make_embedding", "swaps_of"), "regraft.export.graft_folder"),
    "certify": "regraft.export.certificate",
    "write_grafted": "regraft.export.grafted_model",
    **dict.fromkeys(("Variant", "Route", "Edit", "Replace", "Zero", "Add", "Scale", "Noise"), "regraft.sweeps.variants"),
    **dict.fromkeys(
        (
            "loss",
            "logit_difference",
            "token_logit",
            "probability",
            "log_probability",
            "rank",
            "kl_to_clean",
            "top1_agreement",
            "stream_distance",
        ),
        "regraft.sweeps.metrics",
    ),
}


register()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("regraft")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    from regraft.core.registry import experiments

    if name in experiments():
        return experiments()[name].checked()
    raise AttributeError(f"module 'regraft' has no attribute {name!r}")


def __dir__() -> list[str]:
    from regraft.core.registry import experiments

    return sorted([*_HOMES, *experiments(), "__version__"])
