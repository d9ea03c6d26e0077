"""The tasks in TransformerLens 4.3.0, on a bridge over the same weights, unfolded."""

from __future__ import annotations

import plotly.express as px
import torch
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.tasks.shared import CHAT, CLEAN, CORRUPT, PROMPTS, STORY, answers, autoencoder, opened

if __name__ == "__main__":
    hf, tokenizer, folder = opened()
    model, sae = TransformerBridge.boot_transformers(folder, hf_model=hf, device="cpu").eval(), autoencoder()
    day, night = (tokenizer(word)["input_ids"][0] for word in (" morning", " night"))


def tokens(text):
    return torch.tensor([tokenizer(text)["input_ids"]])


def difference(logits):
    return logits[0, -1, day] - logits[0, -1, night]


def steer():
    vector = model.run_with_cache(tokens(" night"))[1]["blocks.2.hook_resid_post"][0, -1]
    ids = tokens(STORY)
    start = ids.shape[1]

    def add(resid, hook):
        return torch.cat([resid[:, :start], resid[:, start:] + vector], 1)

    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", add)]):
        for _ in range(8):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    return ids[0, start:]


def cache():
    rows = []
    for prompt in PROMPTS:
        _, cache = model.run_with_cache(tokens(prompt), names_filter="blocks.2.hook_resid_post")
        rows.append(cache["blocks.2.hook_resid_post"][0, -1])
    return torch.stack(rows)


def path_patch():
    _, clean = model.run_with_cache(tokens(CLEAN))
    _, corrupt = model.run_with_cache(tokens(CORRUPT))

    def speak(z, hook):
        z = z.clone()
        z[:, :, 1] = clean["blocks.2.attn.hook_z"][:, :, 1].view(z[:, :, 1].shape)
        return z

    def still(out, hook):
        return corrupt[hook.name]

    arrived = {}

    def listen(v, hook):
        arrived["v"] = v.clone()

    hooks = [("blocks.2.attn.hook_z", speak), ("blocks.2.hook_mlp_out", still)]
    model.run_with_hooks(tokens(CORRUPT), fwd_hooks=[*hooks, ("blocks.3.attn.hook_v", listen)])

    def tell(v, hook):
        v = v.clone()
        v[:, :, 1] = arrived["v"][:, :, 1]
        return v

    told = model.run_with_hooks(tokens(CORRUPT), fwd_hooks=[("blocks.3.attn.hook_v", tell)])
    return difference(told) - difference(model(tokens(CORRUPT)))


def attribution():
    _, clean = model.run_with_cache(tokens(CLEAN))
    kept, slopes = {}, {}

    def keep(z, hook):
        kept["z"] = z
        z.register_hook(lambda slope: slopes.update(z=slope))
        return z

    difference(model.run_with_hooks(tokens(CORRUPT), fwd_hooks=[("blocks.2.attn.hook_z", keep)])).backward()
    product = slopes["z"] * (clean["blocks.2.attn.hook_z"] - kept["z"])
    return product.view(1, -1, 4, product.numel() // 4 // tokens(CORRUPT).shape[1]).sum((0, 1, 3))


def own_metric():
    hooks = [("blocks.2.hook_mlp_out", lambda out, hook: torch.zeros_like(out))]
    logits = model.run_with_hooks(tokens(CORRUPT), fwd_hooks=hooks)[0, -1]
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1, keepdim=True)


def splice():
    def rebuild(x, hook):
        return (x @ sae["W_enc"] + sae["b_enc"]).relu() @ sae["W_dec"] + sae["b_dec"]

    logits = model.run_with_hooks(tokens(CORRUPT), fwd_hooks=[("blocks.2.hook_resid_post", rebuild)])
    return logits[0, -1, night].view(1)


def notebook():
    values = torch.zeros(4, 4, dtype=torch.float64)
    for block in range(4):
        for head in range(4):

            def without(z, hook, head=head):
                z = z.clone()
                z[:, :, head] = 0
                return z

            hooks = [(f"blocks.{block}.attn.hook_z", without)]
            values[block, head] = difference(model.run_with_hooks(tokens(CORRUPT), fwd_hooks=hooks))
    px.imshow(values, labels={"x": "head", "y": "block"})
    return values


def chat():
    ids = tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return model(ids["input_ids"])[0, -1].topk(3).values


if __name__ == "__main__":
    answers(globals())
