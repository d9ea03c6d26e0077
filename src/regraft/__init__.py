"""regraft: take a transformer apart, see what every part does, replace one, and prove that it still works.

Names are imported when they are first used, so that the command line can answer `--help` without loading PyTorch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from regraft.registering import register

if TYPE_CHECKING:
    from regraft.engine.metric import kl_to_clean as kl_to_clean
    from regraft.engine.metric import log_probability as log_probability
    from regraft.engine.metric import logit_difference as logit_difference
    from regraft.engine.metric import loss as loss
    from regraft.engine.metric import probability as probability
    from regraft.engine.metric import rank as rank
    from regraft.engine.metric import stream_distance as stream_distance
    from regraft.engine.metric import token_logit as token_logit
    from regraft.engine.metric import top1_agreement as top1_agreement
    from regraft.engine.sweep import sweep as sweep
    from regraft.engine.variant import Add as Add
    from regraft.engine.variant import Edit as Edit
    from regraft.engine.variant import Noise as Noise
    from regraft.engine.variant import Replace as Replace
    from regraft.engine.variant import Route as Route
    from regraft.engine.variant import Scale as Scale
    from regraft.engine.variant import Variant as Variant
    from regraft.engine.variant import Zero as Zero
    from regraft.graft.byte_embedding import ByteConfig as ByteConfig
    from regraft.graft.byte_embedding import ByteEmbedding as ByteEmbedding
    from regraft.graft.certificate import certify as certify
    from regraft.graft.export import export as export
    from regraft.graft.folder import attach as attach
    from regraft.graft.folder import make_embedding as make_embedding
    from regraft.graft.folder import swaps_of as swaps_of
    from regraft.graft.tree_head import TreeHead as TreeHead
    from regraft.graft.tree_head import tree_head as tree_head
    from regraft.model.load import load as load
    from regraft.model.opened import Model as Model
    from regraft.model.recording import Recording as Recording

_HOMES = {
    "load": "regraft.model.load",
    "Model": "regraft.model.opened",
    "Recording": "regraft.model.recording",
    "sweep": "regraft.engine.sweep",
    **dict.fromkeys(("ByteConfig", "ByteEmbedding"), "regraft.graft.byte_embedding"),
    **dict.fromkeys(("TreeHead", "tree_head"), "regraft.graft.tree_head"),
    **dict.fromkeys(("attach", "make_embedding", "swaps_of"), "regraft.graft.folder"),
    "certify": "regraft.graft.certificate",
    "export": "regraft.graft.export",
    **dict.fromkeys(("Variant", "Route", "Edit", "Replace", "Zero", "Add", "Scale", "Noise"), "regraft.engine.variant"),
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
        "regraft.engine.metric",
    ),
}


register()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("regraft")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    from regraft.experiment import experiments

    if name in experiments():
        return experiments()[name].seeded()
    raise AttributeError(f"module 'regraft' has no attribute {name!r}")


def __dir__() -> list[str]:
    from regraft.experiment import experiments

    return sorted([*_HOMES, *experiments(), "__version__"])
