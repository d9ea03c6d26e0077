"""Safetensors files that are header alone, in the shapes of models that nobody has code for."""

from __future__ import annotations

import json
import struct

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8, "I32": 4}


def header_file(path, tensors, dtype="BF16"):
    """A safetensors file with the right header and no data but a hole of the right length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end, header = 0, {}
    for name, shape in tensors.items():
        kind, shape = shape if isinstance(shape[0], str) else (dtype, shape)
        size = SIZES[kind]
        for n in shape:
            size *= n
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    return path


def speech(dim=2560, codes=40_960):
    """The shape of a dual-autoregressive speech model: a slow stack of 36 blocks, a fast one of 4, packed
    wqkv."""

    def block(path, heads, groups, width, inner, norms):
        return {
            f"{path}.attention.wqkv.weight": ((heads + 2 * groups) * width, dim),
            f"{path}.attention.wo.weight": (dim, heads * width),
            **({f"{path}.attention.{n}_norm.weight": (width,) for n in "qk"} if norms else {}),
            f"{path}.feed_forward.w1.weight": (inner, dim),
            f"{path}.feed_forward.w3.weight": (inner, dim),
            f"{path}.feed_forward.w2.weight": (dim, inner),
            f"{path}.attention_norm.weight": (dim,),
            f"{path}.ffn_norm.weight": (dim,),
        }

    tensors = {
        "embeddings.weight": (155_776, dim),
        "codebook_embeddings.weight": (codes, dim),
        "norm.weight": (dim,),
    }
    for i in range(36):
        tensors |= block(f"layers.{i}", 32, 8, 128, 9728, norms=True)
    for i in range(4):
        tensors |= block(f"fast_layers.{i}", 32, 8, 128, 9728, norms=False)
    return tensors | {
        "fast_embeddings.weight": (4096, dim), "fast_norm.weight": (dim,), "fast_output.weight": (4096, dim),
    }  # fmt: skip


def write_diffusion(folder):
    """A diffusion transformer with modulation and cross-attention, and its text encoder in a folder
    beside."""
    tensors = {
        "x_embedder.proj.weight": (1536, 64, 2, 2),
        "x_embedder.proj.bias": (1536,),
        "time_embed.0.weight": (1536, 256),
    }
    tensors |= {
        "time_embed.2.weight": (1536, 1536),
        "proj_out.weight": (256, 1536),
        "norm_out.linear.weight": (3072, 1536),
    }
    for i in range(24):
        path = f"transformer_blocks.{i}"
        tensors |= {f"{path}.attn1.{n}.weight": (1536, 1536) for n in ("to_q", "to_k", "to_v", "to_out.0")}
        tensors |= {f"{path}.attn1.norm_{n}.weight": (64,) for n in "qk"}
        tensors |= {
            f"{path}.cross_attn.{n}.weight": (1536, 1536 if n == "to_q" else 1024)
            for n in ("to_q", "to_k", "to_v")
        }
        tensors |= {
            f"{path}.cross_attn.to_out.0.weight": (1536, 1536),
            f"{path}.adaln_modulation.1.weight": (9216, 1536),
        }
        tensors |= {
            f"{path}.ff.fc1.weight": (6144, 1536),
            f"{path}.ff.fc2.weight": (1536, 6144),
            f"{path}.norm1.weight": (1536,),
        }
    header_file(folder / "transformer" / "diffusion_pytorch_model.safetensors", tensors, "F16")
    text = {"shared.weight": (32_128, 1024), "encoder.final_layer_norm.weight": (1024,)}
    for i in range(12):
        path = f"encoder.block.{i}.layer"
        text |= {f"{path}.0.SelfAttention.{n}.weight": (1024, 1024) for n in "qkvo"} | {
            f"{path}.0.layer_norm.weight": (1024,)
        }
        text |= {f"{path}.1.DenseReluDense.{n}.weight": (2816, 1024) for n in ("wi_0", "wi_1")}
        text |= {f"{path}.1.DenseReluDense.wo.weight": (1024, 2816), f"{path}.1.layer_norm.weight": (1024,)}
        if i == 0:
            text[f"{path}.0.SelfAttention.relative_attention_bias.weight"] = (32, 16)
    header_file(folder / "text_encoder" / "model.safetensors", text, "F32")
    return folder


def dual_autoregressive():
    """The same speech model as its parts are published: each of its own name, the codes' table with the fast
    one."""
    names = {"embeddings": "text_model.model.embeddings", "layers": "text_model.model.layers",
             "norm": "text_model.model.norm", "codebook_embeddings": "audio_decoder.codebook_embeddings",
             "fast_layers": "audio_decoder.layers", "fast_embeddings": "audio_decoder.embeddings",
             "fast_norm": "audio_decoder.norm", "fast_output": "audio_decoder.output"}  # fmt: skip
    made = {}
    for name, shape in speech().items():
        first, _, rest = name.partition(".")
        made[f"{names[first]}.{rest}"] = shape
    return made


def music():
    """The shape of a music diffusion model: a decoder of 24 blocks with two embeddings of time, encoders of
    lyrics and timbre, a tokenizer with a scalar quantizer, a detokenizer."""
    width, inner = 2048, 6144

    def attention(path):
        rows = {"q_proj": width, "k_proj": width // 2, "v_proj": width // 2}
        made = {f"{path}.{name}.weight": (size, width) for name, size in rows.items()}
        made |= {f"{path}.{name}_norm.weight": (128,) for name in "qk"}
        return made | {f"{path}.o_proj.weight": (width, width)}

    def block(path, cross=False):
        made = attention(f"{path}.self_attn")
        made |= {f"{path}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        made |= {f"{path}.mlp.down_proj.weight": (width, inner)}
        made |= {f"{path}.{name}_norm.weight": (width,) for name in ("self_attn", "mlp")}
        if cross:
            made |= attention(f"{path}.cross_attn") | {f"{path}.cross_attn_norm.weight": (width,)}
            made[f"{path}.scale_shift_table"] = (1, 6, width)
        return made

    tensors = {}
    for i in range(24):
        tensors |= block(f"decoder.layers.{i}", cross=True)
    for path, count in (("encoder.lyric_encoder", 8), ("encoder.timbre_encoder", 4), ("tokenizer.pooler", 2),
                        ("detokenizer", 2)):  # fmt: skip
        for i in range(count):
            tensors |= block(f"{path}.layers.{i}")
    for path in ("decoder.time_embed", "decoder.time_embed_r"):
        sizes = {"linear_1": (width, 256), "linear_2": (width, width), "time_proj": (6 * width, width)}
        for name, shape in sizes.items():
            tensors |= {f"{path}.{name}.weight": shape, f"{path}.{name}.bias": shape[:1]}
    return tensors | {
        "decoder.proj_in.weight": (width, 192, 2), "decoder.norm_out.weight": (width,),
        "tokenizer.quantizer.project_in.weight": (6, width),
        "tokenizer.quantizer.project_out.weight": (width, 6),
        "encoder.text_projector.weight": (width, 1024), "encoder.special_token": (1, 1, width),
    }  # fmt: skip
