"""Times whole `generate()` calls on a GPU, with random weights, against transformers eager and compiled.

python -m benchmarks.bench_gpu_generate --table     GPT-2 124M and a Llama of 1B in bfloat16
python -m benchmarks.bench_gpu_generate --quick     two layers of each; with --device cpu a rehearsal without a GPU

Launches and waits of the host are counted by the profiler over one call and divided by its tokens per row.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm import tqdm

import pygen
from benchmarks import cli
from benchmarks.bench_generate import compare, generate_once
from benchmarks.harness import BASELINE, Options, Row, Target
from benchmarks.inputs import random_ids
from benchmarks.machine import commit, today

PROMPT_TOKENS, NEW_TOKENS = 32, 64
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9},
    "4 beams": {"do_sample": False, "num_beams": 4},
}
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def gpt2(layers: int | None) -> Any:
    """124M parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=layers or 12))


def llama(layers: int | None) -> Any:
    """The shape of Llama 3.2 1B."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers or 16,
            num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
        )
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[int | None], Any], torch.dtype]] = {
    "GPT-2 124M": (gpt2, torch.float32),
    "Llama 1B": (llama, torch.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class Engine:
    name: str
    call: Callable[..., Any]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def engines(model: Any, mode: str) -> list[Engine]:
    found = [
        Engine(BASELINE, model.generate),
        Engine("pygen", functools.partial(pygen.generate, model)),
    ]
    # transformers compiles the forward by itself where the cache is static.
    if model.device.type == "cuda" and mode != "4 beams":
        found.append(Engine(f"{BASELINE} compiled", model.generate, {"cache_implementation": "static"}))
    return found


def load(name: str, layers: int | None, device: torch.device) -> Any:
    make, dtype = MODELS[name]
    torch.manual_seed(0)
    with torch.device(device):
        model = make(layers).to(dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def rows_of(name: str, model: Any, mode: str, batch: int, options: Options, new_tokens: int) -> list[Row]:
    """All engines on one prompt tensor, each run in turn; red where pygen's tokens are not those of transformers."""
    prompt = random_ids(batch, PROMPT_TOKENS, model.config.vocab_size).to(model.device)
    knobs = {**MODES[mode], "max_new_tokens": new_tokens}
    rows, tokens = [], {}
    for engine in engines(model, mode):
        given = {**knobs, **engine.extra}
        row = Row(
            options.suite, "generate", f"{name}, {mode}", "model", batch, model.config.vocab_size,
            str(model.dtype).removeprefix("torch."), engine.name, "gpu" if prompt.is_cuda else "cpu",
            device=str(prompt.device), commit=commit(), date=today(),
        )  # fmt: skip
        try:
            tokens[engine.name] = generate_once(engine.call, prompt, given)
            seconds = [seconds_of(engine, prompt, given) for _ in range(3)]
            row.tokens_per_s = batch * new_tokens / min(seconds)
            row.median_us = 1e6 * sorted(seconds)[1] / new_tokens
            row.launches_per_token, row.syncs_per_token = counted(engine, prompt, given, new_tokens)
        except Exception as error:  # one engine that fails must not hide the others
            row.check = f"{type(error).__name__}: {error}".splitlines()[0]
        rows.append(row)
    ours = next(row for row in rows if row.variant == "pygen")
    if not ours.check:
        same = BASELINE in tokens and torch.equal(tokens[BASELINE], tokens["pygen"])
        ours.check = "ok" if same else "the tokens are not those of transformers"
    compare([rows[0], ours], Target())
    return rows


def seconds_of(engine: Engine, prompt: torch.Tensor, knobs: dict[str, Any]) -> float:
    start = time.perf_counter()
    generate_once(engine.call, prompt, knobs)
    if prompt.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def counted(
    engine: Engine, prompt: torch.Tensor, knobs: dict[str, Any], new_tokens: int
) -> tuple[float | None, float | None]:
    """Launches and waits of the host per token, as the profiler sees them; None without a GPU."""
    if not prompt.is_cuda:
        return None, None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        generate_once(engine.call, prompt, knobs)
        torch.cuda.synchronize()
    count = {event.key: event.count for event in profiler.key_averages()}
    launches = sum(count.get(name, 0) for name in LAUNCHES)
    # The last wait is that of the measurement.
    return launches / new_tokens, (sum(count.get(name, 0) for name in WAITS) - 1) / new_tokens


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.parser("Times generate() on a GPU against transformers.", ("quick", "table"))
    parser.set_defaults(device=torch.device("cuda"))
    args: Any = parser.parse_args(arguments)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        print("not run: torch finds no CUDA device")
        return 0
    options = cli.options(args, "gpu-generate", 1.0)
    quick = args.size == "quick"
    rows: list[Row] = []
    with cli.threads(args.threads):
        for name in MODELS:
            model = load(name, 2 if quick else None, args.device)
            jobs = [(mode, batch) for mode in MODES for batch in ((2,) if quick else (1, 8, 64))]
            for mode, batch in tqdm(jobs, desc=name, disable=args.quiet):
                rows += rows_of(name, model, mode, batch, options, 4 if quick else NEW_TOKENS)
            del model
        return cli.finish(rows, args, save=not quick)


if __name__ == "__main__":
    sys.exit(main())
