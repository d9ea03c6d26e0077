"""Texts and log-probabilities of an exported folder, served by vLLM in an environment of its own.

`.vllm/bin/python tools/serve_with_vllm.py REQUEST.json ANSWER.json`, run by `tests/test_vllm.py`
(`make test-vllm`). The request names the folder, prompts as ids, how many tokens to write, the processes that
the features are parted over, and the runs: switches of the adapters by name. Imports vLLM and the plugin's
switch alone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Serve, switch between the runs, write what came out."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    alone = request["parallel"] == 1
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if alone else "1",
    }  # fmt: skip
    from vllm import LLM, SamplingParams, TokensPrompt

    from regraft.serving.vllm_plugin import EXTENSION, switch

    engine = LLM(
        request["folder"], dtype="float32", enforce_eager=True, max_model_len=256, seed=0,
        tensor_parallel_size=request["parallel"], hf_overrides=request["overrides"],
        worker_extension_cls=EXTENSION if request["switchable"] else "",
    )  # fmt: skip
    asked = SamplingParams(
        temperature=0, max_tokens=request["tokens"], logprobs=1, prompt_logprobs=1, ignore_eos=True
    )
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in request["prompts"]]
    answers = []
    for switches in request["runs"]:
        if switches is not None:
            switch(engine, **switches)
        outputs = engine.generate(prompts, asked, use_tqdm=False)
        answers.append([told(output) for output in outputs])
    Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")


def told(output) -> dict[str, list]:
    """Written ids, their log-probabilities (nats), and those of the prompt's tokens from the second on."""
    one = output.outputs[0]
    written = list(one.token_ids)
    own = [row[token].logprob for row, token in zip(one.logprobs, written, strict=True)]
    prompt = list(output.prompt_token_ids)
    before = [row[token].logprob for row, token in zip(output.prompt_logprobs[1:], prompt[1:], strict=True)]
    return {"written": written, "logprobs": own, "prompt_logprobs": before}


if __name__ == "__main__":
    main()
