"""The official model's own tensors at every stage, taken by hooks in a process of their own and handed over
as a file."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regraft.checkpoint.locate import CheckpointError
from regraft.core.silence import silent
from regraft.core.structure import main_tensor, walk_tensors
from regraft.model.block_call import without_cache
from regraft.model.float64 import KeepFloat64
from regraft.model.from_files import read_checkpoint
from regraft.reference.stages import PAIRS

DTYPES = {"float32": torch.float32, "float64": torch.float64}
IDS = "ids"


@dataclass(frozen=True)
class Order:
    """What the other process is asked for."""

    folder: str
    architecture: str
    prefix: str
    dtype: str
    rows: list[list[int]]
    texts: list[str]
    inputs: dict[str, list[Any]]
    generate: int
    threads: int
    ends: list[int]
    pooling: str
    normalises: bool
    out: str


@dataclass(frozen=True)
class Official:
    """The official tensors by stage, what it generated, its own token ids, and the versions that it ran
    with."""

    tensors: dict[str, Tensor]
    generated: list[int]
    rows: list[list[int]]
    facts: dict[str, Any]


def ask(order: dict[str, Any]) -> Official:
    """Run the official model in a process of its own and read what it left in a file.

    Raises:
        CheckpointError: it could not be run; with the last line that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "official.safetensors"
        words = json.dumps({**order, "out": str(out)})
        run = subprocess.run(
            [sys.executable, "-m", __name__], input=words, capture_output=True, text=True, check=False
        )
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["no word why"])[-1]
            raise CheckpointError(f"the official model could not be run: {last}")
        return read(out)


def read(file: Path) -> Official:
    """What the other process left."""
    facts = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    return Official(load_file(file), facts.pop("generated"), facts.pop("rows"), facts)


def answer(order: Order) -> None:
    """Run the official model, take its tensors, and write them to the file that is asked for."""
    dtype = DTYPES[order.dtype]
    torch.set_num_threads(order.threads)
    hf: Any = read_checkpoint(Path(order.folder), "cpu", dtype, "eager").eval()
    inputs = {name: torch.tensor(value) for name, value in order.inputs.items()}
    places = {stage: place for stage, place in PAIRS[order.architecture].items()}
    with torch.no_grad(), KeepFloat64() if dtype == torch.float64 else nullcontext():
        with taking(hf, order.prefix, places) as seen:
            result = hf(**inputs, **without_cache(hf))
        if order.pooling:
            seen["sentence"] = pooled(result[0], inputs, order.pooling, order.normalises)
    wanted = order.generate if hf.can_generate() else 0
    generated = generate(hf, inputs, wanted, order.ends) if wanted else []
    rows = tokenized(order)
    out = Path(order.out)
    save_file({stage: tensor.clone().contiguous() for stage, tensor in seen.items()}, out)
    facts = {
        "generated": generated,
        "rows": rows,
        "transformers": transformers.__version__,
        "class": type(hf).__name__,
    }
    facts["generates"] = bool(wanted)
    out.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")


def tokenized(order: Order) -> list[list[int]]:
    """The texts' ids by the official tokenizer; the given ids where the folder has none."""
    if not (Path(order.folder) / "tokenizer.json").is_file():
        return order.rows
    with silent():
        tokenizer = transformers.AutoTokenizer.from_pretrained(order.folder)
        return [tokenizer(text)["input_ids"] for text in order.texts]


def pooled(hidden_BTD: Tensor, inputs: Mapping[str, Tensor], pooling: str, normalises: bool) -> Tensor:
    """The sentence encoder's vector as the model cards of sentence-transformers compute it, (B, D)."""
    if pooling == "cls":
        first_BD = hidden_BTD[:, 0]
        return torch.nn.functional.normalize(first_BD, p=2, dim=1) if normalises else first_BD
    mask_BT = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    mask_BTD = mask_BT.unsqueeze(-1).expand(hidden_BTD.size()).to(hidden_BTD.dtype)
    mean_BD = torch.sum(hidden_BTD * mask_BTD, 1) / torch.clamp(mask_BTD.sum(1), min=1e-9)
    return torch.nn.functional.normalize(mean_BD, p=2, dim=1) if normalises else mean_BD


def generate(hf: Any, inputs: Mapping[str, Tensor], tokens: int, ends: list[int]) -> list[int]:
    """The official greedy continuation of the first text, without the folder's own wishes (penalties and the
    like)."""
    mask_BT = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    first = inputs["input_ids"][:1, mask_BT[0]]
    start = int(inputs["decoder_input_ids"][0, 0]) if "decoder_input_ids" in inputs else None
    hf.generation_config = transformers.GenerationConfig(
        max_new_tokens=tokens, do_sample=False, num_beams=1, use_cache=False, eos_token_id=ends or None,
        decoder_start_token_id=start, pad_token_id=hf.config.get_text_config().pad_token_id or 0,
    )  # fmt: skip
    with torch.no_grad(), silent():
        made = hf.generate(first, attention_mask=torch.ones_like(first))
    begin = 1 if hf.config.is_encoder_decoder else first.shape[1]
    return made[0, begin:].tolist()


@contextmanager
def taking(hf: nn.Module, prefix: str, places: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """While inside, a run of the model fills the dictionary with the tensor at every place that this model
    has."""
    modules = {name.removeprefix(prefix): module for name, module in hf.named_modules()}
    seen: dict[str, Tensor] = {}
    handles: list[Any] = []
    softmaxes: dict[str, dict[str, str]] = {}
    for stage, place in _spelled(places, modules):
        if "~" in place:
            path, _, side = place.partition("~")
            softmaxes.setdefault(path, {})[side] = stage
        elif place.startswith(">"):
            handles.append(
                modules[place[1:]].register_forward_pre_hook(_keep_input(seen, stage), with_kwargs=True)
            )
        else:
            path, _, number = place.partition(">")
            handles.append(modules[path].register_forward_hook(_keep_output(seen, stage, int(number or 0))))
    mode = Softmaxes(seen)
    for path, stages in softmaxes.items():
        handles.append(
            modules[path].register_forward_pre_hook(lambda m, args, stages=stages: mode.enter(stages))
        )
    try:
        with mode:
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def _spelled(places: Mapping[str, str], modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    """Every stage and place with the block's number put in, for the modules that there are."""
    for stage, place in places.items():
        for number in range(len(modules)) if "{i}" in place else (0,):
            spelled = place.replace("{i}", str(number))
            if spelled.split("~")[0].strip(">").split(">")[0] not in modules:
                break
            yield stage.replace("{i}", str(number)), spelled


def _keep_input(seen: dict[str, Tensor], stage: str):
    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[stage] = next(tensor for _, tensor in walk_tensors((args, kwargs))).detach().clone()

    return keep


def _keep_output(seen: dict[str, Tensor], stage: str, number: int):
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        tensor = output[number] if number else main_tensor(output)
        assert tensor is not None
        seen[stage] = tensor.detach().clone()

    return keep


class Softmaxes(TorchFunctionMode):
    """Keeps what the next softmax inside an attention is given and what it returns."""

    def __init__(self, seen: dict[str, Tensor]):
        super().__init__()
        self.seen = seen
        self.waiting: dict[str, str] = {}

    def enter(self, stages: dict[str, str]) -> None:
        """The next softmax is this attention's."""
        self.waiting = stages

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function; keep both sides of a softmax that is waited for."""
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.softmax and self.waiting:
            waiting, self.waiting = self.waiting, {}
            for side, tensor in (("in", args[0]), ("out", result)):
                if side in waiting:
                    self.seen[waiting[side]] = tensor.detach().clone()
        return result


if __name__ == "__main__":
    answer(Order(**json.loads(sys.stdin.read())))
