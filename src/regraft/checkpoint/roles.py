"""The names that matrices bear, and the role that each tells: one table for live models and for files.

A family whose projection bears a new name needs the name here and nothing else.
"""

from __future__ import annotations

import re
from typing import Literal

OUTPUT_PROJECTIONS = (
    "o_proj", "out_proj", "c_proj", "dense", "Wo", "wo", "o", "fc_out", "dense_4h_to_h", "fc2", "down_proj",
    "w2",
    "proj_out", "out_lin", "lin2", "output_proj", "to_out", "proj",
)  # fmt: skip
QUERY_NAMES = ("q_proj", "query", "q", "wq", "to_q", "q_lin")
KEY_NAMES = ("k_proj", "key", "k", "wk", "to_k", "k_lin")
VALUE_NAMES = ("v_proj", "value", "v", "wv", "to_v", "v_lin")
PACKED_NAMES = ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "wqkv", "qkv", "in_proj_weight", "att_proj")
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
CROSS_ATTENTION = re.compile(r"encoder_?attn|EncDec|cross_?att", re.IGNORECASE)
BranchKind = Literal["attn", "cross", "mixer", "mlp"]
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
GATE_NAMES = ("gate_proj", "w1", "wi_0", "linear_1")
UP_NAMES = (
    "up_proj", "w3", "wi_1", "wi", "c_fc", "fc1", "fc_in", "dense_h_to_4h", "lin1", "linear_v",
)  # fmt: skip
PACKED_MLP_NAMES = ("gate_up_proj", "Wi", "w13", "gate_and_up_proj")


def side_of(name: str) -> BranchKind:
    """The side of a block that a module's name speaks of: attention, cross-attention or, failing both, the
    MLP."""
    components = name.split(".")
    if any(CROSS_ATTENTION.search(component) for component in components):
        return "cross"
    return "attn" if any(ATTENTION.search(component) for component in components[:-1]) else "mlp"


def role_of(rest: str) -> str:
    """The role of a tensor by its name inside the block; its own last name where the tables do not know
    it."""
    components = rest.split(".")
    leaf, side = components[-1], side_of(rest)
    if leaf == "dense" and len(components) > 1 and components[-2] == "intermediate":
        return "up"
    if leaf == "gate":
        return "router"
    if "mixer" in components:
        return leaf
    if side in ("attn", "cross"):
        named = [
            ("q", QUERY_NAMES),
            ("k", KEY_NAMES),
            ("v", VALUE_NAMES),
            ("qkv", PACKED_NAMES),
            ("o", OUTPUT_PROJECTIONS),
        ]
    else:
        down = ("w2", *OUTPUT_PROJECTIONS)
        named = [("gate", GATE_NAMES), ("up", UP_NAMES), ("gate_up", PACKED_MLP_NAMES), ("down", down)]
    role = next((role for role, names in named if leaf in names), leaf)
    return f"cross_{role}" if side == "cross" else role
