"""Continues a prompt with a model, and shows the text as it grows.

The prompt comes from the command line, a file or standard input. With --jsonl
every line of a file is a prompt, and the answers are lines of JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from pygen.cli import jsonl
from pygen.cli.call import add_call, prepare
from pygen.cli.flags import flag, given
from pygen.cli.parser import UsageError
from pygen.cli.prompt import prompt_of
from pygen.config.config import GenerationMode
from pygen.explain import explain
from pygen.generate import generate
from pygen.streamers.text import TextStreamer

USAGE = """pygen generate [PROMPT] [--model NAME] [--SETTING VALUE ...]
       pygen generate --jsonl FILE [--output FILE] [--model NAME] [--SETTING VALUE ...]"""
EPILOG = """examples:
  pygen generate "Why is the sky blue?" --do-sample --top-p 0.9 --seed 7
  cat letter.txt | pygen generate --model HuggingFaceTB/SmolLM2-135M --raw --num-beams 4
  pygen generate --jsonl prompts.jsonl --output answers.jsonl --max-new-tokens 100
"""

# No token of these searches is certain before the end.
_NOT_STREAMED = (GenerationMode.GROUP_BEAM_SEARCH.value, GenerationMode.CONSTRAINED_BEAM_SEARCH.value)
_RETURNED = ("return_dict_in_generate", "top_logprobs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--no-stream", action="store_true", help="print the text once it is complete")
    group.add_argument("--stats", action="store_true", help="print the number of tokens and the time to standard error")
    jsonl.add_arguments(group)
    add_call(parser)


def run(arguments: argparse.Namespace) -> int:
    _refuse_outputs(arguments)
    if arguments.jsonl is not None:
        return jsonl.run(arguments)
    text = prompt_of(arguments)
    loaded = prepare(arguments)
    call = loaded.call(text)
    plan = explain(loaded.model, **call)
    streams = not arguments.no_stream and plan.mode not in _NOT_STREAMED and plan["num_return_sequences"].value == 1
    decode: dict[str, Any] = {"skip_special_tokens": True}
    streamer = TextStreamer(loaded.tokenizer, skip_prompt=True, **decode) if streams else None
    start = time.perf_counter()
    sequences: Any = generate(loaded.model, streamer=streamer, **call)
    seconds = time.perf_counter() - start
    rows = sequences[:, plan.prompt_length :]
    if not streams:
        texts = [loaded.tokenizer.decode(row, **decode) for row in rows]
        print("\n".join(texts if len(texts) == 1 else [f"[{n}] {text}" for n, text in enumerate(texts, 1)]))
    if arguments.stats:
        print(f"{rows.numel()} tokens in {seconds:.2f} s, {rows.numel() / seconds:.1f} tokens/s", file=sys.stderr)
    return 0


def _refuse_outputs(arguments: argparse.Namespace) -> None:
    """UsageError for settings that choose what `generate()` returns beside the text, as far as it is not printed."""
    for name, value in given(arguments).items():
        is_printed = name == "output_logprobs" and arguments.jsonl is not None
        if value and not is_printed and (name in _RETURNED or name.startswith("output_")):
            raise UsageError(f"argument {flag(name)}: returns more than a text, which is all that is printed here")
