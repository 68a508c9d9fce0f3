"""Times the set-up of stop strings for large vocabularies: the first for a tokenizer, and one more set of strings.

python -m benchmarks.bench_stop_strings                  pygen, by CPU time
python -m benchmarks.bench_stop_strings --transformers   transformers' class too, which takes seconds each time
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks import cli
from pygen.stopping import token_bytes
from pygen.stopping.criteria import StopStringCriteria

LETTERS = "etaoinshrdlucmfgypwbvkxjqz"
STRINGS = ("\nUser:", "<|im_end|>")


def words(count: int) -> list[str]:
    """Distinct tokens like those of a multilingual vocabulary: half begin with a space, a third is not Latin."""
    draw, found = random.Random(0), dict[str, None]()
    weights = [1 / (rank + 1) for rank in range(len(LETTERS))]
    while len(found) < count:
        kind, length = draw.random(), max(1, min(24, int(draw.gauss(5.5, 2.6))))
        if kind < 0.7:
            word = "".join(draw.choices(LETTERS, weights, k=length))
        elif kind < 0.8:
            word = "".join(draw.choices("()[]{}.,;:=+-*/<>_\n\t\"'", k=max(1, length // 2)))
        elif kind < 0.92:
            word = "".join(chr(0x4E00 + draw.randrange(5000)) for _ in range(draw.randrange(1, 5)))
        else:
            word = "".join(chr(0x430 + draw.randrange(32)) for _ in range(length))
        found[" " * draw.randrange(2) + word] = None
    return list(found)


def byte_level(size: int) -> Any:
    """A tokenizer like Qwen's."""
    coder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {letter: i for i, letter in enumerate(sorted(coder.alphabet()))}
    for word in words(size):
        vocabulary.setdefault(coder.pre_tokenize_str(word)[0][0], len(vocabulary))
        if len(vocabulary) == size:
            break
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_piece(size: int) -> Any:
    """A tokenizer like Gemma's."""
    vocabulary = {"<unk>": 0, **{f"<0x{value:02X}>": value + 1 for value in range(256)}}
    for word in words(size - len(vocabulary)):
        vocabulary.setdefault(word.replace(" ", "▁"), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def fastest_ms(function: Callable[[int], object], repeats: int) -> float:
    """The least CPU time of `function(number)`; other processes make a call slower, never faster."""
    times = []
    for number in range(repeats):
        start = time.process_time()
        function(number)
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def measure(tokenizer: Any, repeats: int, *, theirs: bool) -> dict[str, float]:
    """Milliseconds of the first set of a tokenizer and of another one, and of transformers if `theirs`."""

    def first(number: int) -> None:
        token_bytes._cache.clear()
        StopStringCriteria(tokenizer, [*STRINGS, f"first {number}"])

    def another(number: int) -> None:
        StopStringCriteria(tokenizer, [*STRINGS, f"other {number}"])

    def of_transformers(number: int) -> None:
        transformers.StopStringCriteria(tokenizer, [*STRINGS, f"{number}"])

    with cli.threads(1):
        took = {"first": fastest_ms(first, repeats), "another set": fastest_ms(another, repeats)}
        return {**took, "transformers": fastest_ms(of_transformers, 1)} if theirs else took


def main() -> None:
    parser = argparse.ArgumentParser(description="Set-up of stop strings.")
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    for name, build, size in (
        ("bytes", byte_level, 151_643),
        ("bytes", byte_level, 262_144),
        ("SentencePiece", sentence_piece, 262_144),
    ):
        took = measure(build(size), args.repeats, theirs=args.transformers)
        print(f"{name} {size:,}: " + ", ".join(f"{key} {value:.0f} ms" for key, value in took.items()), flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
