"""Open a model: the embedded specimen, a folder, a hub id, or a live Hugging Face model."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from regraft.checkpoint.compressed import holds_integers, with_plain_weights
from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import DEFAULT_SPECIMEN, CheckpointError, check_folder
from regraft.core.silence import silent
from regraft.model.block_call import CANNOT, learn_batched, text_config, without_cache
from regraft.model.cpu_pack import pack_if_it_pays
from regraft.model.model import Model
from regraft.model.part_search import find_parts
from regraft.model.selfcheck import LENGTH, check, sample_ids
from regraft.model.session import hold_of
from regraft.model.sites import Taps
from regraft.model.trace import Trace, trace
from regraft.model.wrappers import refuse_adapter_folder, unwrapped

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load(
    source: str | Path | nn.Module | tuple[nn.Module, Any] | None = None,
    tokenizer: Any = None,
    *,
    target_tokenizer: Any = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str | None = None,
    remote_code: bool = False,
    pack: bool = True,
) -> Model:
    """Open a transformer, find its parts, and prove on a short input that they are what they seem.

    Args:
        source: nothing for the embedded specimen, `"specimen:tuned"`, `"specimen:gpt2"` or `"specimen:t5"`, a
            folder, a hub id, or a live Hugging Face model (then `tokenizer` may go with it, or both as a
            pair). A wrapper (an adapter, a sentence encoder, a compiled or data-parallel model) is opened
            through what it wraps, which the notes say.
        tokenizer: a tokenizer, or the folder or hub id of one; by default the model's own.
        target_tokenizer: a tokenizer, or the folder or hub id of one, of what an encoder-decoder writes,
            where that is not the one of what it reads.
        device: where to put the weights, for example `"cuda"`; by default the CPU. A live model stays where
            it is.
        dtype: floating type; by default float32 on a CPU and the checkpoint's own elsewhere.
        attention: `"sdpa"` (the default), or `"eager"`, which alone returns attention patterns.
        remote_code: run modelling code that comes with the checkpoint. Only where you trust it.
        pack: on a CPU, pack linear layers for sweeps where a trial shows that it pays.

    Raises:
        ValueError: the checkpoint is damaged, incomplete, not safetensors, or no transformer was found in it.
    """
    notes: list[str] = []
    source, tokenizer = _source_of(source, tokenizer)
    if isinstance(source, nn.Module):
        if device or dtype:
            raise ValueError(
                "a live model is opened as it is: move it or change its dtype before, then load it without"
                " them"
            )
        inner, notes = unwrapped(source)
        hf, folder, name = cast(Any, inner), None, type(inner).__name__
        tokenizer = tokenizer or _own_tokenizer(source, inner)
        if attention:
            hf.set_attn_implementation(attention)
    else:
        folder, name = resolve(source)
        refuse_adapter_folder(folder)
        check_folder(folder)
        hf = read_checkpoint(folder, device or "cpu", dtype, attention, remote_code)
        tokenizer = tokenizer or read_tokenizer(folder, remote_code)
    tokenizer, target_tokenizer = (
        _named_tokenizer(one, remote_code) for one in (tokenizer, target_tokenizer)
    )
    model = open_live(hf, tokenizer, name, folder, pack)
    model.notes, model.target_tokenizer = notes, target_tokenizer
    if target_tokenizer is not None and not model.two_stacks:
        raise ValueError(
            f"{name} writes what it reads: a tokenizer of its own for what is written belongs to an"
            " encoder-decoder"
        )
    model.source = name if isinstance(source, nn.Module) else str(source or DEFAULT_SPECIMEN)
    return model


def _source_of(source: Any, tokenizer: Any) -> tuple[str | Path | nn.Module | None, Any]:
    """A source and a tokenizer from what was given, be it both in one pair.

    Raises:
        ValueError: it is neither a name nor a model, or there are two tokenizers.
    """
    if isinstance(source, (tuple, list)) and len(source) == 2:
        if tokenizer is not None:
            raise ValueError("there are two tokenizers, one in the pair and one beside it: give one")
        source, tokenizer = source
    if source is None or isinstance(source, (str, Path, nn.Module)):
        return source, tokenizer
    raise ValueError(
        f"a {type(source).__name__} cannot be opened: give a folder, a hub id, a specimen's name, a live"
        " Hugging Face model, or a pair of a model and its tokenizer"
    )


def _named_tokenizer(given: Any, remote_code: bool) -> Any:
    """A tokenizer, read where it is named."""
    return read_tokenizer(resolve(str(given))[0], remote_code) if isinstance(given, (str, Path)) else given


def _own_tokenizer(source: nn.Module, inner: nn.Module) -> Any:
    """The tokenizer that a wrapper carries beside its model."""
    return None if source is inner else getattr(source, "tokenizer", None)


def open_live(hf: nn.Module, tokenizer: Any, name: str, folder: Path | None, pack: bool) -> Model:
    """Find the parts of a live model and check them; it is left in the mode, training or evaluation, that it
    was in."""
    with hold_of(hf).on(hf):
        return _opened(hf, tokenizer, name, folder, pack)


def _opened(hf: nn.Module, tokenizer: Any, name: str, folder: Path | None, pack: bool) -> Model:
    _refuse_nonfinite(hf)
    traced, probe = _probed(hf)
    parts = find_parts(hf, traced, torch.tensor([sample_ids(_table_rows(hf), probe)]))
    attention = getattr(hf.config, "_attn_implementation", None) or "eager"
    model = Model(
        hf,
        tokenizer,
        name,
        folder,
        parts,
        Taps(parts, hf.config, attention),
        learn_batched(hf, parts, partial(_probe_inputs, hf, probe)),
        attention,
        probe,
    )
    try:
        model.check = check(model)
    except CANNOT as error:
        if isinstance(error, ValueError):
            raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"the blocks of {name} cannot be called again by themselves ({reason}): it cannot be opened"
        ) from error
    if pack and model.device.type == "cpu":
        model.packed = pack_if_it_pays(hf)
    return model


def _probe_inputs(hf: nn.Module, length: int, batch: int, padded: bool) -> dict[str, Any]:
    """The same few ids for every row; with `padded`, the last one is masked."""
    device = next(hf.parameters()).device
    ids = torch.tensor([sample_ids(_table_rows(hf), length)] * batch, device=device)
    inputs: dict[str, Any] = {"input_ids": ids, **without_cache(hf)}
    if padded:
        inputs["attention_mask"] = torch.tensor([[1] * (length - 1) + [0]] * batch, device=device)
    if getattr(hf.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
        if padded:
            inputs["decoder_attention_mask"] = inputs["attention_mask"]
    return inputs


def _probed(hf: nn.Module) -> tuple[Trace, int]:
    """A traced run of a few ids, fewer where the model has fewer positions, and how many they were.

    Raises:
        ValueError: the model cannot be run on token ids.
    """
    first: Exception | None = None
    for length in range(LENGTH, 1, -1):
        try:
            return trace(hf, _probe_inputs(hf, length, 1, False)), length
        except CANNOT as error:
            first = first or error
    reason = (str(first) or type(first).__name__).strip().splitlines()[0]
    raise ValueError(
        f"{type(hf).__name__} cannot be run on token ids alone ({reason}): models that read text are opened,"
        " and of a model of images or sound the part that reads text"
    ) from first


def _table_rows(hf: nn.Module) -> int:
    """Rows of the smallest embedding that could be the token table, so that sample ids exist in it."""
    declared = getattr(text_config(hf.config), "vocab_size", None)
    if isinstance(declared, int):
        return declared
    tables = [module.num_embeddings for module in hf.modules() if isinstance(module, nn.Embedding)]
    if not tables:
        raise ValueError("this model has no embedding table: it cannot be opened")
    return tables[0]


def read_checkpoint(
    folder: Path,
    device: str,
    dtype: str | torch.dtype | None,
    attention: str | None,
    remote_code: bool = False,
) -> nn.Module:
    """The Hugging Face model of a folder, by plain transformers, refused where it is not whole."""
    check_device(device)
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known: choose one of {', '.join(DTYPES)}")
    wanted = DTYPES[dtype] if isinstance(dtype, str) else dtype
    wanted = wanted or (torch.float32 if device == "cpu" else "auto")
    extra = {"attn_implementation": attention} if attention else {}
    with silent():
        config = read_config(folder, remote_code)
        chosen = _model_class(config, remote_code)
        try:
            hf, info = chosen.from_pretrained(
                folder, config=config, dtype=wanted, use_safetensors=True, output_loading_info=True,
                trust_remote_code=remote_code, **extra,
            )  # fmt: skip
        except ImportError as error:
            if not attention:
                raise CheckpointError(
                    f"{folder.name} cannot be opened here: {str(error).splitlines()[0]}"
                ) from error
            raise ValueError(
                f"attention {attention!r} cannot be used here: {str(error).splitlines()[0]}"
            ) from error
        except SafetensorError as error:
            raise CheckpointError(
                f"a weight file of {folder.name} is damaged: {error}: fetch it again"
            ) from error
        except RuntimeError as error:
            if "size mismatch" in str(error) or "mismatch" in str(error).lower():
                raise CheckpointError(_mismatch_sentence(folder, error)) from error
            raise
    _refuse_incomplete(folder, info)
    _refuse_truncated(folder, hf, info)
    if holds_integers(hf):
        with silent():
            hf = with_plain_weights(hf, read_config(folder, remote_code), attention)
    return hf.to(device)


def check_device(device: str) -> None:
    """Make sure that there is such a device here.

    Raises:
        ValueError: there is not.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not known: write cpu, cuda or cuda:1") from error
    if kind == "meta":
        raise ValueError("device 'meta' holds no numbers: write cpu, cuda or cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but this PyTorch sees no GPU: use --device cpu")


def read_config(folder: Path, remote_code: bool) -> Any:
    """The configuration of a folder; code that comes with it is run only where it is asked for.

    Raises:
        CheckpointError: transformers cannot use it.
    """
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        json.JSONDecodeError,
        StrictDataclassError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"the config.json of {folder.name} cannot be used: {reason}") from error


def _model_class(config: Any, remote_code: bool) -> Any:
    """The class that the checkpoint names, else the first general one that knows this kind of config."""
    for architecture in config.architectures or ():
        named = getattr(transformers, architecture, None)
        if named is not None and issubclass(named, transformers.PreTrainedModel):
            return named
    for auto in (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForSeq2SeqLM,
        transformers.AutoModelForMaskedLM,
        transformers.AutoModel,
    ):
        if type(config) in auto._model_mapping or (
            remote_code and auto.__name__ in getattr(config, "auto_map", {})
        ):
            return auto
    raise CheckpointError(f"transformers knows no model for a config of type {type(config).__name__}")


def _refuse_incomplete(folder: Path, info: Any) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        named = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise CheckpointError(
            f"{folder.name} lacks {len(missing)} tensors that its config calls for ({named}): they would be"
            " random, so the model is not opened"
        )
    wrong = sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"{folder.name}: the shapes of {', '.join(wrong[:4])} disagree with its config.json"
        )


def _refuse_truncated(folder: Path, hf: nn.Module, info: Any) -> None:
    """Tensors of further blocks that the config does not call for: the config belongs to a smaller model."""

    def pattern(name: str) -> str:
        return re.sub(r"\.\d+\.", ".#.", name)

    known = {pattern(name) for name in hf.state_dict()}
    extra = sorted(
        name for name in info["unexpected_keys"] if ".#." in pattern(name) and pattern(name) in known
    )
    if extra:
        raise CheckpointError(
            f"{folder.name} holds {len(extra)} tensors of blocks that its config does not call for, first"
            f" {extra[0]}: the config belongs to a smaller model"
        )


def _mismatch_sentence(folder: Path, error: Exception) -> str:
    lines = [
        line.strip() for line in str(error).splitlines() if "torch.Size" in line or "shape" in line.lower()
    ]
    detail = lines[0] if lines else str(error).splitlines()[0]
    return f"{folder.name}: the shapes in its weights disagree with its config.json: {detail}"


def _refuse_nonfinite(hf: nn.Module) -> None:
    for name, tensor in hf.named_parameters():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            what = "NaN (not a number)" if bool(torch.isnan(tensor).any()) else "infinite values"
            raise CheckpointError(
                f"the weights hold {what}, first in {name}: nothing measured would mean much"
            )
    for name, tensor in hf.named_buffers():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise CheckpointError(
                f"the buffers hold NaN (not a number), first in {name}: nothing measured would mean much"
            )


_TOKENIZER_REMEDY = "fetch its files again, or name another one with --tokenizer"


def read_tokenizer(folder: Path, remote_code: bool) -> Any:
    """The tokenizer of a folder, or None where it has none: then token ids still work.

    Raises:
        CheckpointError: its files are damaged, or need a library that is not installed, or code that is not
            allowed.
    """
    known = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "tokenizer_config.json",
    )
    if not any((folder / name).is_file() for name in known):
        return None
    try:
        with silent():
            return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code)
    except Exception as error:  # tokenizers raises a bare Exception for what is damaged
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"the tokenizer of {folder.name} does not open ({reason}): {_TOKENIZER_REMEDY}"
        ) from error
