"""Faults of one token that nothing could tell from the original, and why (`mutants.py` counts them apart)."""

from __future__ import annotations

TWO_AXES = (
    ("sweeps/metrics.py", "return (logits_cV.argmax(-1) == clean(pair_c).argmax(-1)).float()"),
    (
        "sweeps/metrics.py",
        "ours, theirs = log_softmax(_full(logits_cV), -1), log_softmax(_full(clean(pair_c)), -1)",
    ),
    ("experiments/observe/lens.py", '"rank": (logits_NV > true_N).sum(-1),'),
    (
        "experiments/intervene/quantization/packed_checkpoint.py",
        "for piece in weight.detach().float().split(group, dim=-1):",
    ),
    (
        "experiments/intervene/quantization/packed_checkpoint.py",
        "step = piece.abs().amax(-1, keepdim=True) / levels",
    ),
    ("experiments/intervene/quantization/packed_checkpoint.py", "return torch.cat(found, dim=-1)"),
    ("sweeps/metrics.py", "return log_softmax(_full(logits_cV), -1)[:, self.token].exp()"),
    ("sweeps/metrics.py", "return log_softmax(_full(logits_cV), -1)[:, self.token]"),
    ("sweeps/metrics.py", "return (logits > logits[:, self.token, None]).sum(-1).float()"),
    ("modules/tree_head.py", "turn = (upto <= uniform_RL[walking, level, None]).sum(-1).minimum(last)"),
    ("modules/tree_head.py", "last = (self.children_NB[nodes] != ABSENT).sum(-1) - 1"),
    (
        "experiments/intervene/noise.py",
        "ratio = (changed - after)[real].norm(dim=-1) / drawn[real].norm(dim=-1)",
    ),
    ("experiments/intervene/repeat.py", "length = steps[0][real].norm(dim=-1)"),
    ("experiments/observe/lens.py", "logp_NV = log_softmax(logits_NV, -1)"),
    ("experiments/observe/lens.py", "top = logp_NV.topk(min(SHOWN, logp_NV.shape[1]), -1)"),
    ("tokenizers/encoder.py", "return torch.nn.functional.normalize(vectors_BD, dim=-1).cpu()"),
    ("tokenizers/init_methods.py", "unit_ME = torch.nn.functional.normalize(atoms_ME.double(), dim=-1)"),
    (
        "tokenizers/nearest.py",
        "found.append((asked_ND[start : start + rows] @ known_VD.T).topk(count, dim=-1))",
    ),
    (
        "tokenizers/nearest.py",
        (
            "asked_ND, known_VD = (torch.nn.functional.normalize(x.float(), dim=-1) for x in (asked_ND,"
            " known_VD))"
        ),
    ),
)
"""(file, text of the line) where a sign lost makes -1 to 1: of two axes the last is number 1."""

EQUIVALENT = {
    **{(path, text, "- ->"): "of two axes the last is number 1" for path, text in TWO_AXES},
    (
        "modules/hf_model.py",
        "AutoConfig.register(GraftedConfig.model_type, GraftedConfig, exist_ok=True)",
        "True -> False",
    ): "a module is imported once",
    (
        "reference/official.py",
        "mean_BD = torch.sum(hidden_BTD * mask_BTD, 1) / torch.clamp(mask_BTD.sum(1), min=1e-9)",
        "1e-9 -> 2e-09",
    ): "a mask sums to 0 or to 1 and more",
    (
        "experiments/observe/trajectories.py",
        "for position, (a, b) in enumerate(zip(base, other, strict=False)):",
        "base, other -> other, base",
    ): "two tokens differ whichever is named first",
    (
        "modules/trees.py",
        "below = below[below >= 0]",
        ">= -> >",
    ): "the root, node 0, is nobody's child",
    (
        "modules/trees.py",
        "leaf, inner = (below < 0) & (below != ABSENT), below >= 0",
        ">= -> >",
    ): "the root, node 0, is nobody's child",
    (
        "modules/trees.py",
        "children: list[list[int]] = [[0, 0]]",
        "0 -> 1",
    ): "both places are filled before the tree is made",
    (
        "experiments/observe/trajectories.py",
        (
            "interval = [np.percentile(c[h], BAND) if h.any() else [np.nan] * 2 for c, h in zip(crossed.T,"
            " happened.T, strict=True)]"
        ),
        "2 -> 3",
    ): "only the first two are read",
    (
        "checkpoint/dissection.py",
        "for depth in range(4):",
        "4 -> 5",
    ): "no name of a checkpoint has five numbers",
    (
        "sweeps/sweep.py",
        "carried = Carried(0, 1, (1,))",
        "1 -> 2",
    ): "edits without a position ask for no prompt's length",
    (
        "modules/trees.py",
        "waiting: list[tuple[Any, int, int]] = [(heap[0][2], -1, 0)]",
        "1 -> 2",
    ): "any number below 0 says that the root is nobody's child",
    (
        "jobs/graft_jobs.py",
        'domains = domains or {"almanac": almanac_windows(model, length, 99, HELD_CHARACTERS)}',
        "99 -> 100",
    ): "a seed: another almanac that was not trained on is as good",
    (
        "sweeps/prefix_cache.py",
        "worst = max(worst, gap(out, wanted))",
        "out, wanted -> wanted, out",
    ): (
        "where two outputs agree within the bound, so do their largest values; where they do not, both shares"
        " are far above it"
    ),
    (
        "tokenizers/mixtures.py",
        "kept_N = (sorted_NK * ranks_K > sums_NK).sum(1)",
        "> -> >=",
    ): "a score that equals the threshold has a share of nothing, counted or not",
    (
        "experiments/intervene/norm_parameters.py",
        "x[-3:] = torch.tensor([1.0, 1.0, -2.0]) if width > 3 else torch.tensor([1.0, 1.0, -2.0])[-width:]",
        "3 -> 4",
    ): "the width is odd here, so more than 3 is more than 4",
    (
        "experiments/intervene/norm_parameters.py",
        "x = torch.linspace(-1, 1, width, device=weight.device, dtype=weight.dtype).roll(1)[None, None]",
        "1 -> 2",
    ): "any other uneven vector tells a shift as well",
    (
        "reference/diagnose_norms.py",
        "return bool(rows.isfinite().all()) and float((rows.pow(2).mean(-1) - 1).abs().max()) < 0.01",
        "all -> any",
    ): "a row that is not finite is not near 1 either",
    (
        "tokenizers/init_methods.py",
        (
            "gram_NKK += (1e-9 * gram_NKK.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] *"
            " torch.eye(gram_NKK.shape[1]))"
        ),
        "1e-9 -> 2e-09",
    ): "it keeps the solve from failing and moves the weights by a billionth either way",
    (
        "tokenizers/byte_codec.py",
        "best: list[tuple[int, int] | None] = [(0, 0)] + [None] * len(content)",
        "0 -> 1",
    ): "numbers of tokens are compared with each other only, and the beginning has none before it",
    (
        "modules/tree_head.py",
        "inner, leaf = below_X >= 0, (below_X < 0) & (below_X != ABSENT)",
        "< -> <=",
    ): "the root, node 0, is nobody's child",
    (
        "modules/tree_head.py",
        "inner, leaf = below_X >= 0, (below_X < 0) & (below_X != ABSENT)",
        ">= -> >",
    ): "the root, node 0, is nobody's child",
    (
        "model/branches.py",
        "fitted = float(sum_N @ wanted_N / (sum_N @ sum_N).clamp_min(1e-300))",
        "1e-300 -> 2e-300",
    ): "a sum that is clamped is 0, and so is what it divides",
    (
        "tokenizers/text_chunks.py",
        "held, bound, number = 0, 1.0, 0",
        "1.0 -> 2.0",
    ): "a random number is below 1",
    (
        "tokenizers/text_chunks.py",
        "likely = math.ceil((len(text) - start) / lengths.mean) + 8",
        "/ -> *",
    ): "what is drawn too much is not used: another sample is as good",
    (
        "tokenizers/text_chunks.py",
        "likely = math.ceil((len(text) - start) / lengths.mean) + 8",
        "- -> +",
    ): "what is drawn too much is not used: another sample is as good",
    (
        "tokenizers/text_chunks.py",
        "likely = math.ceil((len(text) - start) / lengths.mean) + 8",
        "8 -> 9",
    ): "what is drawn too much is not used: another sample is as good",
    (
        "reference/stage_case.py",
        (
            "return a.shape == b.shape and float((a - b).abs().max()) <= CLOSE * max(float(b.abs().max()),"
            " 1e-30)"
        ),
        "1e-30 -> 2e-30",
    ): "no numbers of a model are that small",
    (
        "reference/stage_case.py",
        (
            "return ratio if float((a - ratio * b).abs().max()) <= CLOSE * max(float(a.abs().max()), 1e-30)"
            " else None"
        ),
        "1e-30 -> 2e-30",
    ): "no numbers of a model are that small",
    (
        "experiments/observe/correlations.py",
        "as_far = int((shuffled >= abs(rho) - 1e-12).sum())",
        ">= -> >",
    ): "two rank correlations are the same to rounding or a billion times as far apart",
    (
        "experiments/observe/correlations.py",
        "as_far = int((shuffled >= abs(rho) - 1e-12).sum())",
        "1e-12 -> 2e-12",
    ): "two rank correlations are the same to rounding or a billion times as far apart",
    (
        "tokenizers/encoder.py",
        'depth = getattr(self.hf.config, "num_hidden_layers", 1)',
        "1 -> 2",
    ): "what a text's end changes in its beginning is far above rounding at any depth",
    (
        "tokenizers/nearest.py",
        "cells = max(1, min(4 * int(len(known_VD) ** 0.5), len(known_VD) // 39))",
        "39 -> 40",
    ): "the least that faiss asks for, or one more",
    (
        "tokenizers/healing.py",
        "rows.append(torch.tensor([token for *_, token in spans] or [0]))",
        "0 -> 1",
    ): "no place of a text that the old tokenizer does not keep is compared",
    (
        "experiments/intervene/norm_parameters.py",
        "probe_D = x_D.roll(1) * torch.linspace(0.5, 1.5, width, device=at)",
        "0.5 -> 1.0",
    ): "any numbers of different size prove the form",
    (
        "experiments/intervene/quantization/quantize.py",
        "chosen, lacking = _recipes(model, blocks, alone - clean, widths, read)",
        "- -> +",
    ): (
        "recipes go by the order of losses and by their least sum, which one number more in all of them"
        " leaves as they are"
    ),
    (
        "model/load.py",
        "return trace(hf, _probe_inputs(hf, length, 1, False)), length",
        "1 -> 2",
    ): "what adds up is read off two prompts as off one",
    (
        "model/model.py",
        "return ids[-1 - len(plain) : -1] == plain and len(plain) < len(ids)",
        "< -> <=",
    ): "what equals all but the last of the ids is shorter than they are",
}
"""(file, text of the line, "old -> new") of mutants that nothing could tell from the original, and why."""
