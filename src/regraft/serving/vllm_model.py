"""A plain model of vLLM's with adapters beside its MLPs, in parts for tensor parallelism.

Imported by vLLM alone. Names of modules are those of the exported folder, so that vLLM's own loader puts
every tensor where it belongs. Shapes: N tokens of all requests together, D width, F features, f those of one
parallel process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import (  # pyright: ignore[reportMissingImports]
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.model_executor.layers.linear import (  # pyright: ignore[reportMissingImports]
    ColumnParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.models.utils import (  # pyright: ignore[reportMissingImports]
    AutoWeightsLoader,
    init_vllm_registered_model,
    maybe_prefix,
)

from regraft.serving.vllm_plugin import (
    Switches,
    adapters_of,
    check_features,
    mlp_at,
    place_of,
    share_of,
    switches_of,
)


class ServedAdapter(nn.Module):
    """One block's adapter, `dec(relu(enc(x)))`: each process holds its share of the features.

    How features are switched is kept in tensors, so that a compiled or captured pass heeds it.
    """

    strength: Tensor
    factor_f: Tensor
    fixed_f: Tensor
    is_fixed_f: Tensor

    def __init__(self, width: int, features: int, dec_bias: bool, prefix: str):
        super().__init__()
        parts, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        self.own = share_of(features, parts, rank)
        self.enc = ColumnParallelLinear(width, features, bias=True, prefix=f"{prefix}.enc")
        self.dec = RowParallelLinear(features, width, bias=dec_bias, prefix=f"{prefix}.dec")
        own = len(self.own)
        for name, start in (("factor_f", torch.ones(own)), ("fixed_f", torch.zeros(own))):
            self.register_buffer(name, start, persistent=False)
        self.register_buffer("is_fixed_f", torch.zeros(own, dtype=torch.bool), persistent=False)
        self.register_buffer("strength", torch.ones(()), persistent=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        """What is added to the MLP's output, (N, D)."""
        before_Nf, _ = self.enc(x_ND)
        found_Nf = torch.where(self.is_fixed_f, self.fixed_f, torch.relu(before_Nf) * self.factor_f)
        added_ND, _ = self.dec(found_Nf.to(x_ND.dtype))
        return added_ND * self.strength

    def switch(self, strength: float, scaled: dict[int, float], clamped: dict[int, float]) -> None:
        """Run so from now on; features of other processes are theirs."""
        self.strength.fill_(strength)
        for tensor, start in ((self.factor_f, 1.0), (self.fixed_f, 0.0), (self.is_fixed_f, False)):
            tensor.fill_(start)
        for feature, value in scaled.items():
            if feature in self.own:
                self.factor_f[feature - self.own.start] = value
        for feature, value in clamped.items():
            if feature in self.own:
                self.fixed_f[feature - self.own.start] = value
                self.is_fixed_f[feature - self.own.start] = True


class ServedMLP(nn.Module):
    """An MLP of vLLM's with its adapter beside it."""

    def __init__(self, mlp: nn.Module, adapter: ServedAdapter):
        super().__init__()
        self.mlp, self.adapter = mlp, adapter

    def forward(self, x_ND: Tensor) -> Tensor:
        """The MLP's output with what the adapter adds, (N, D)."""
        return self.mlp(x_ND) + self.adapter(x_ND)


class ServedModel(nn.Module):
    """What vLLM runs for an exported folder: its own class of the plain architecture, adapters put in.

    Raises:
        ValueError: the folder holds other grafts, or vLLM's class has no module at an MLP's place.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.shape, places = adapters_of(config)
        switches = switches_of(config.switched)
        check_features(switches, len(places), self.shape["features"])
        plain = config.get_text_config()
        self.base = init_vllm_registered_model(
            vllm_config, prefix=maybe_prefix(prefix, "base"), hf_config=plain,
            architectures=plain.architectures,
        )  # fmt: skip
        self.adapters = [self._put(place, maybe_prefix(prefix, f"base.{place}")) for place in places]
        self.make_empty_intermediate_tensors = self.base.make_empty_intermediate_tensors
        self.switch(switches)

    def _put(self, place: str, prefix: str) -> ServedAdapter:
        parent, name, mlp = mlp_at(self.base, place)
        shape = self.shape
        adapter = ServedAdapter(shape["width"], shape["features"], shape["dec_bias"], f"{prefix}.adapter")
        setattr(parent, name, ServedMLP(mlp, adapter))
        return adapter

    def switch(self, switches: Switches) -> None:
        """Run the adapters so from now on; there are such features."""
        chosen = {
            kind: {place_of(name): value for name, value in given.items()}
            for kind, given in (("scaled", switches.scaled), ("clamped", switches.clamped))
        }
        for number, adapter in enumerate(self.adapters):
            own = {
                kind: {feature: value for (block, feature), value in given.items() if block == number}
                for kind, given in chosen.items()
            }
            adapter.switch(switches.strength, own["scaled"], own["clamped"])

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Embeddings (N, D) of ids."""
        return self.base.embed_input_ids(input_ids)

    def forward(
        self, input_ids: Any, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Any = None
    ) -> Any:
        """Last states (N, D) of the plain model with its adapters."""
        return self.base(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Any:
        """Scores of tokens (N, V)."""
        return self.base.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Put every tensor of the folder where it belongs, in its parts."""
        return AutoWeightsLoader(self).load_weights(weights)
