"""The tasks in nnsight 0.8.1."""

from __future__ import annotations

import nnsight
import plotly.express as px
import torch
from nnsight.modeling.transformers import TransformersModel

from benchmarks.tasks.shared import CHAT, CLEAN, CORRUPT, PROMPTS, STORY, answers, autoencoder, opened

if __name__ == "__main__":
    hf, tokenizer, folder = opened()
    model, sae = TransformersModel(hf, tokenizer=tokenizer, task="text-generation"), autoencoder()
    day, night = (tokenizer(word)["input_ids"][0] for word in (" morning", " night"))
    blocks = model.transformer.h


def tokens(text):
    return torch.tensor([tokenizer(text)["input_ids"]])


def difference(logits):
    return logits[0, -1, day] - logits[0, -1, night]


def steer():
    with model.trace(tokens(" night")):
        vector = nnsight.save(blocks[3].input[0, -1])
    ids = tokens(STORY)
    start = ids.shape[1]
    for _ in range(8):
        with model.trace(ids):
            blocks[3].input[:, start:] += vector
            following = nnsight.save(model.output.logits[:, -1:].argmax(-1))
        ids = torch.cat([ids, following], 1)
    return ids[0, start:]


def cache():
    with model.trace() as tracer:
        rows = nnsight.save([])
        for prompt in PROMPTS:
            with tracer.invoke(tokens(prompt)):
                rows.append(blocks[3].input[0, -1])
    return torch.stack(rows)


def path_patch():
    with model.trace(tokens(CLEAN)):
        said = nnsight.save(blocks[2].attn.c_proj.input)
    with model.trace(tokens(CORRUPT)):
        still = nnsight.save(blocks[2].mlp.output)
        unpatched = nnsight.save(difference(model.output.logits))
    with model.trace(tokens(CORRUPT)):
        blocks[2].attn.c_proj.input[:, :, 32:64] = said[:, :, 32:64]
        blocks[2].mlp.output = still
        arrived = nnsight.save(blocks[3].attn.c_attn.output)
    with model.trace(tokens(CORRUPT)):
        blocks[3].attn.c_attn.output[:, :, 288:320] = arrived[:, :, 288:320]
        value = nnsight.save(difference(model.output.logits))
    return value - unpatched


def attribution():
    with model.trace(tokens(CLEAN)):
        clean = nnsight.save(blocks[2].attn.c_proj.input)
    with model.trace(tokens(CORRUPT)):
        z = nnsight.save(blocks[2].attn.c_proj.input)
        z.retain_grad()
        value = nnsight.save(difference(model.output.logits))
    (slope,) = torch.autograd.grad(value, z)
    return (slope * (clean - z)).view(1, -1, 4, z.shape[-1] // 4).sum((0, 1, 3))


def own_metric():
    with model.trace(tokens(CORRUPT)):
        blocks[2].mlp.output[:] = 0
        logits = model.output.logits[0, -1]
        value = nnsight.save(-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1, keepdim=True))
    return value


def splice():
    with model.trace(tokens(CORRUPT)):
        x = blocks[3].input
        blocks[3].input[:] = (x @ sae["W_enc"] + sae["b_enc"]).relu() @ sae["W_dec"] + sae["b_dec"]
        value = nnsight.save(model.output.logits[0, -1, night])
    return value.view(1)


def notebook():
    values = torch.zeros(4, 4, dtype=torch.float64)
    for block in range(4):
        with model.trace() as tracer:
            row = nnsight.save([])
            for head in range(4):
                with tracer.invoke(tokens(CORRUPT)):
                    blocks[block].attn.c_proj.input[:, :, head * 32 : (head + 1) * 32] = 0
                    row.append(difference(model.output.logits))
        values[block] = torch.stack(row)
    px.imshow(values, labels={"x": "head", "y": "block"})
    return values


def chat():
    ids = tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with model.trace(ids["input_ids"]):
        value = nnsight.save(model.output.logits[0, -1].topk(3).values)
    return value


if __name__ == "__main__":
    answers(globals())
