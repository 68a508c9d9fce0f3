"""Streams an answer of SmolLM2 with pygen, then compares it with transformers on the same prompt, seed and settings.

python -m examples.demo --prompt "Why is the sky blue?" --max-new-tokens 200 --seed 1
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import pygen
from pygen.cli import smollm2

SETTINGS = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}


@dataclass
class Run:
    """One generation: its new token ids (n,), and its times in seconds."""

    tokens: torch.Tensor
    total: float
    forward: float
    streamer: float

    @property
    def outside(self) -> float:
        return self.total - self.forward - self.streamer

    def row(self, name: str) -> str:
        count = len(self.tokens)
        parts = [1000 * seconds / count for seconds in (self.forward, self.outside, self.streamer)]
        return f"{name:<14}{count:>7}{count / self.total:>12.1f}" + "".join(f"{part:>12.3f}" for part in parts)


class Stopwatch:
    """Adds up the seconds between `start` and `stop`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def start(self, *_: object) -> None:
        self._since = time.perf_counter()

    def stop(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since


class TimedStreamer:
    """Passes everything to `streamer` and measures its time."""

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer
        self.watch = Stopwatch()

    def put(self, value: torch.Tensor) -> None:
        self.watch.start()
        self.streamer.put(value)
        self.watch.stop()

    def end(self) -> None:
        self.watch.start()
        self.streamer.end()
        self.watch.stop()


def run(generate: Callable[..., Any], model: Any, inputs: dict[str, Any], streamer: Any, seed: int, limit: int) -> Run:
    """Runs `generate` from `seed`, and times the model's forward and the streamer."""
    # A short run first, so that the timed run pays neither for first touches of memory nor for thread starts.
    generate(**inputs, **SETTINGS, max_new_tokens=min(limit, 4))
    watch, timed = Stopwatch(), TimedStreamer(streamer)
    hooks = [model.register_forward_pre_hook(watch.start), model.register_forward_hook(watch.stop)]
    torch.manual_seed(seed)
    begin = time.perf_counter()
    try:
        output = generate(**inputs, **SETTINGS, streamer=timed, max_new_tokens=limit)
    finally:
        for hook in hooks:
            hook.remove()
    total = time.perf_counter() - begin
    return Run(output[0, inputs["input_ids"].shape[1] :], total, watch.seconds, timed.watch.seconds)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Stream an answer with pygen and compare with transformers.")
    parser.add_argument("--prompt", default="Explain why the sky is blue, then write a short poem about it.")
    parser.add_argument("--max-new-tokens", type=int, default=160, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, metavar="N", help="torch's thread count (default: torch's own choice)")
    arguments = parser.parse_args(argv)
    if arguments.max_new_tokens < 1 or (arguments.threads is not None and arguments.threads < 1):
        parser.error("--max-new-tokens and --threads must be at least 1")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    try:
        from transformers import TextStreamer

        model, tokenizer = smollm2.load()
    except (ImportError, FileNotFoundError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    messages = [{"role": "user", "content": arguments.prompt}]
    inputs = dict(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    )

    class Silent(TextStreamer):  # type: ignore[misc]
        """Decodes the text and prints nothing."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            pass

    print(f"\n> {arguments.prompt}\n")
    ours = run(
        lambda **kwargs: pygen.generate(model, **kwargs),
        model,
        inputs,
        pygen.TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        arguments.seed,
        arguments.max_new_tokens,
    )
    print("\nNow transformers, same prompt, seed and settings ...", flush=True)
    silent = Silent(tokenizer, skip_prompt=True, skip_special_tokens=True)
    theirs = run(model.generate, model, inputs, silent, arguments.seed, arguments.max_new_tokens)

    print(f"\n{'':<33}{'ms/token in':>12}\n{'':<14}{'tokens':>7}{'tokens/s':>12}", end="")
    print(f"{'forward':>12}{'outside':>12}{'streamer':>12}")
    print(ours.row("pygen"))
    print(theirs.row("transformers"))
    settings = ", ".join(f"{name}={value}" for name, value in SETTINGS.items())
    print(f"({settings}, seed={arguments.seed}, {torch.get_num_threads()} threads, {model.dtype})")
    if torch.equal(ours.tokens, theirs.tokens):
        print(f"identical tokens: yes, all {len(ours.tokens)}")
        return 0
    shorter = min(len(ours.tokens), len(theirs.tokens))
    differs = (ours.tokens[:shorter] != theirs.tokens[:shorter]).nonzero()
    print(f"identical tokens: no, first difference at token {int(differs[0]) if len(differs) else shorter}")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
