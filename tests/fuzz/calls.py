"""Random calls of the ops from several threads, with kernels under ASan and UBSan.

`python -m tests.fuzz.calls SEED SECONDS` needs an environment of tests.helpers.cuda_host. Sane calls must agree with
the reference. Hostile calls use any value and layout that passes the checks. They must return ids of the vocabulary
and known statuses, or raise a documented error.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

import pygen
from pygen import ops
from pygen.knobs import KNOBS
from pygen.ops import BeamState
from tests.helpers.draws import assert_same_tokens
from tests.helpers.kept_sets import assert_same_scores, unfiltered
from tests.helpers.logits import KINDS, make_history, make_logits

THREADS = 3
SIZES = (1, 2, 7, 33, 63, 64, 65, 130, 700, 1025, 5000)
EXPECTED_ERRORS = (TypeError, ValueError, NotImplementedError)

SANE: dict[str, tuple[Any, ...]] = {
    "do_sample": (True, True, True, False),
    "temperature": (0.0, 0.3, 0.7, 1.0, 2.5),
    "top_k": (0, 0, 1, 5, 50, 10**6),
    "top_p": (1.0, 1.0, 0.5, 0.9, 0.0),
    "min_p": (0.0, 0.0, 0.05, 1.0),
    "typical_p": (1.0, 1.0, 0.9, 0.2),
    "epsilon_cutoff": (0.0, 0.0, 1e-3),
    "eta_cutoff": (0.0, 0.0, 1e-3),
    "top_n_sigma": (0.0, 0.0, 1.0),
    "top_h": (0.0, 0.0, 0.5),
    "repetition_penalty": (1.0, 1.0, 1.3, 0.5),
    "presence_penalty": (0.0, 0.7, -1.5),
    "frequency_penalty": (0.0, 0.3, -0.4),
    "no_repeat_ngram_size": (0, 0, 1, 2, 3),
    "prompt_lengths": (0, 3, 20),
    "min_tokens_to_keep": (1, 1, 2, 1000),
}
HOSTILE: dict[str, tuple[Any, ...]] = {
    "temperature": (1e-45, 1e-38, 1e-20, 3e38),
    "top_k": (2**31, 2**63 - 1),
    "top_p": (1e-45, 1 - 2**-24),
    "min_p": (1e-45, 1.0),
    "typical_p": (1e-45, 1 - 2**-24),
    "epsilon_cutoff": (1e-45, 1 - 2**-24),
    "eta_cutoff": (1e-45, 1 - 2**-24),
    "top_n_sigma": (1e-45, 3e38),
    "top_h": (1e-45, 1.0),
    "repetition_penalty": (1e-38, 3e38),
    "presence_penalty": (-3e38, 3e38),
    "frequency_penalty": (-3e38, 3e38),
    "no_repeat_ngram_size": (4, 2**31, 2**63 - 1),
    "prompt_lengths": (2**31, 2**63 - 1),
    "min_tokens_to_keep": (2**31, 2**63 - 1),
}
INTEGERS = {"prompt_lengths", *(knob.name for knob in KNOBS if knob.type is int)}
SPECIAL = (math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-45, 3.4e38, -3.4e38)


class Dice(Random):
    """All random choices of a call, from its seed. Threads share torch's default generator, so calls do not use it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def chance(self, shape: torch.Size, share: float) -> Tensor:
        """Returns a bool tensor that is True in `share` of its elements."""
        return torch.rand(shape, generator=self.generator) < share

    def ints(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)


def load_kernels(folder: Path) -> None:
    """Replaces pygen._C with the module built with sanitizers."""
    loader = ExtensionFileLoader("pygen._C", str(folder / f"_C{EXTENSION_SUFFIXES[0]}"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["pygen._C"] = pygen._C = module  # type: ignore[attr-defined]


def knobs_of(dice: Dice, rows: int, hostile: bool) -> dict[str, Any]:
    """Draws a number, or one per row, for every knob."""
    knobs: dict[str, Any] = {}
    for name, values in SANE.items():
        if hostile and name in HOSTILE and dice.random() < 0.3:
            values = HOSTILE[name]
        if dice.random() < 0.5:
            knobs[name] = dice.choice(values)
            continue
        kind = torch.bool if name == "do_sample" else torch.int64 if name in INTEGERS else torch.float32
        knobs[name] = torch.tensor([dice.choice(values) for _ in range(rows)], dtype=kind)
    if not isinstance(knobs["top_h"], Tensor):
        knobs["top_h"] = knobs["top_h"] or None
    return knobs


def odd_rows(dice: Dice, table: Tensor) -> Tensor:
    """Returns the same values with other strides, with the memory ending right after them."""
    rows, width = table.shape
    kind = dice.randrange(4)
    if kind == 0 and rows > 0:
        return table[:1].expand(rows, width)
    if kind == 1:
        pitch = width + dice.randrange(1, 9)
        memory = torch.empty(max(0, (rows - 1) * pitch + width), dtype=table.dtype)
        return torch.as_strided(memory, (rows, width), (pitch, 1)).copy_(table)
    return table.clone()


def tables_of(dice: Dice, rows: int, vocab_size: int, hostile: bool) -> dict[str, Any]:
    history = make_history(rows, dice.randrange(13), vocab_size, seed=dice.randrange(10**6))
    tables: dict[str, Any] = {"input_ids": history.masked_fill(dice.chance(history.shape, 0.1), -1)}
    if hostile:
        wild = dice.ints(-(2**62), 2**62, history.shape)
        tables["input_ids"] = odd_rows(dice, torch.where(dice.chance(history.shape, 0.2), wild, history))
    if dice.random() < 0.5:
        tables["bias"] = make_logits("normal", rows, vocab_size, seed=dice.randrange(10**6))
        if hostile:
            tables["bias"][dice.chance(tables["bias"].shape, 0.1)] = dice.choice(SPECIAL)
            tables["bias"] = odd_rows(dice, tables["bias"])
    if dice.random() < 0.5:
        limit = 2**62 if hostile else vocab_size + 2
        tables["suppress"] = [dice.randrange(-limit, limit) for _ in range(dice.randrange(5))]
    if dice.random() < 0.5:
        words = dice.ints(-(2**31), 2**31, (dice.choice([1, rows]), (vocab_size + 31) // 32)).to(torch.int32)
        tables["token_bitmask"] = odd_rows(dice, words)
    return tables


def logits_of(dice: Dice, rows: int, vocab_size: int, hostile: bool) -> Tensor:
    dtype = dice.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
    logits = make_logits(dice.choice(KINDS), rows, vocab_size, seed=dice.randrange(10**6), dtype=dtype)
    if not hostile:
        return logits
    for _ in range(dice.randrange(3)):
        logits[dice.chance(logits.shape, dice.choice([0.01, 0.5, 1.0]))] = dice.choice(SPECIAL)
    return odd_rows(dice, logits)


def check_output(result: Any, vocab_size: int) -> None:
    assert bool(((result.token_ids >= 0) & (result.token_ids < vocab_size)).all()), result
    assert bool(((result.status >= 0) & (result.status <= 3)).all()), result


def sample(dice: Dice, hostile: bool) -> None:
    rows, vocab_size = dice.randrange(0 if hostile else 1, 6), dice.choice(SIZES)
    logits = logits_of(dice, rows, vocab_size, hostile)
    knobs: dict[str, Any] = {**knobs_of(dice, rows, hostile), **tables_of(dice, rows, vocab_size, hostile)}
    noise = torch.empty(rows, vocab_size).exponential_(generator=dice.generator).clamp_(min=1e-30)
    asked: dict[str, Any] = {}
    if dice.random() < 0.5:
        knobs["min_p"] = dice.choice([1e-12, 0.1])  # some filter has to act
        asked = {"output_kept": True, "kept_limit": dice.choice([1, 7, vocab_size])}
    if hostile:
        noise[dice.chance(noise.shape, 0.1)] = dice.choice([1e-45, 3.4e38])
        source: dict[str, Any] = dice.choice(
            [
                {"noise": odd_rows(dice, noise)},
                {"seed": dice.randrange(2**64), "step": dice.choice([0, 2**32 - 1])},
                {"rng": "torch", "generator": dice.generator},
            ]
        )
        logprobs = dice.randrange(9)
        check_output(ops.sample(logits, **knobs, **source, **asked, logprobs=logprobs, backend="cpu"), vocab_size)
        ops.process_logits(logits, **knobs, backend="cpu")
        return
    scores = ops.process_logits(logits, **knobs, backend="cpu")
    expected = ops.process_logits(logits, **knobs, backend="torch")
    before_filters = ops.process_logits(logits, **unfiltered(knobs), backend="torch")
    assert_same_scores(
        scores, expected, before_filters, {**knobs, "top_h": 0.0 if knobs["top_h"] is None else knobs["top_h"]}
    )
    result = ops.sample(logits, **knobs, **asked, noise=noise, backend="cpu")
    wanted = ops.sample(logits, **knobs, **asked, noise=noise, backend="torch")
    check_output(result, vocab_size)
    assert result.status.equal(wanted.status)
    if scores.equal(expected):
        ok = (result.status == 0).nonzero()[:, 0]
        greedy = torch.zeros(rows, dtype=torch.bool) | ~torch.as_tensor(knobs["do_sample"])
        greedy |= torch.as_tensor(knobs["temperature"]) == 0
        assert result.token_ids[greedy].equal(wanted.token_ids[greedy])
        drawn = ok[~greedy[ok]]
        assert_same_tokens(result.token_ids[drawn], wanted.token_ids[drawn], scores[drawn], noise[drawn])
        for ours, theirs in zip(result.kept or (), wanted.kept or (), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-6)


def token_logprobs(dice: Dice, hostile: bool) -> None:
    rows, vocab_size = dice.randrange(0 if hostile else 1, 6), dice.choice(SIZES)
    logits = logits_of(dice, rows, vocab_size, hostile)
    limit = 2**62 if hostile else vocab_size + 2
    ids = odd_rows(dice, dice.ints(-limit, limit, (rows, dice.randrange(5))))
    if hostile and dice.random() < 0.5:
        ids = ids.int()
    top = dice.choice([0, 1, 3, 2 * vocab_size if vocab_size < 2000 else 5])
    result = ops.token_logprobs(logits, ids, top=top, backend="cpu")
    if not hostile:
        wanted = ops.token_logprobs(logits, ids, top=top, backend="torch")
        torch.testing.assert_close(result.logprobs, wanted.logprobs, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert result.status.equal(wanted.status)


def verify_draft(dice: Dice, hostile: bool) -> None:
    rows, vocab_size, drafts = dice.randrange(0, 5), dice.choice(SIZES), dice.randrange(4)
    target = logits_of(dice, rows * (drafts + 1), vocab_size, hostile).reshape(rows, drafts + 1, vocab_size)
    draft = logits_of(dice, rows * drafts, vocab_size, hostile).reshape(rows, drafts, vocab_size)
    limit = 2**62 if hostile else vocab_size
    ids = dice.ints(-limit if hostile else 0, limit, (rows, drafts))
    temperature = knobs_of(dice, rows, hostile)["temperature"]
    knobs: dict[str, Any] = {"temperature": temperature, "seed": dice.randrange(2**64), "step": dice.randrange(99)}
    given = draft if dice.random() < 0.7 else None
    result = ops.verify_draft(target, ids, given, **knobs, backend="cpu")
    check_output(result, vocab_size)
    assert bool(((result.accepted_lengths >= 0) & (result.accepted_lengths <= drafts)).all())
    if not hostile:
        wanted = ops.verify_draft(target, ids, given, **knobs, backend="torch")
        greedy = (torch.as_tensor(temperature) == 0).expand(rows)
        assert result.accepted_lengths[greedy].equal(wanted.accepted_lengths[greedy])
        assert result.token_ids[greedy].equal(wanted.token_ids[greedy])


def reorder_cache(dice: Dice, hostile: bool) -> None:
    rows, length = dice.randrange(0, 7), dice.randrange(40)
    dtype = dice.choice([torch.float32, torch.float16, torch.int8])
    cache = [dice.ints(-99, 99, (rows, dice.randrange(1, 4), length, dice.randrange(9))).to(dtype)]
    if dice.random() < 0.5:
        cache.append(cache[0].transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2))
    beam_idx = dice.ints(0, max(rows, 1), (rows,))
    start = dice.ints(0, length + 1, (rows,))
    wanted = [tensor.clone() for tensor in cache]
    ops.reorder_cache(cache, beam_idx, start, length, backend="cpu")
    ops.reorder_cache(wanted, beam_idx, start, length, backend="torch")
    assert all(a.equal(b) for a, b in zip(cache, wanted, strict=True))


def beams(dice: Dice, hostile: bool) -> None:
    prompts, num_beams, steps, vocab_size = dice.randrange(1, 4), dice.randrange(1, 5), 3, dice.choice(SIZES)
    rows = prompts * num_beams
    eos = dice.sample(range(vocab_size), k=min(vocab_size, dice.randrange(3)))
    prompt = dice.ints(0, vocab_size, (prompts, dice.randrange(1, 4)))
    state = BeamState.create(prompt, steps, num_beams, eos_token_ids=eos)
    knobs = {**knobs_of(dice, rows, hostile), "do_sample": dice.random() < 0.5}
    knobs["temperature"] = dice.choice([1e-38, 0.5, 3e38] if hostile else [0.5, 1.0])
    del knobs["prompt_lengths"]
    knobs |= {
        "length_penalty": dice.choice([0.0, 1.0, -2.0]),
        "early_stopping": dice.choice([False, True, "never"]),
        "rng": dice.choice(["philox", "torch"]),
        "generator": dice.generator,
    }
    for step in range(steps):
        logits = logits_of(dice, rows, vocab_size, hostile)
        ops.beam_step(logits, state, step=step, **knobs, backend="cpu")
    ops.beam_finalize(state, dice.randrange(1, num_beams + 1), backend="cpu")


CALLS: tuple[Callable[[Dice, bool], None], ...] = (
    sample, sample, sample, token_logprobs, verify_draft, reorder_cache, beams,
)  # fmt: skip


def call_of(seed: int) -> str:
    """Runs the call of a seed, and returns its description."""
    dice = Dice(seed)
    hostile, call = dice.random() < 0.6, dice.choice(CALLS)
    torch.set_num_threads(dice.choice([1, 1, 2]))
    try:
        call(dice, hostile)
    except EXPECTED_ERRORS:
        if not hostile:
            raise
        return f"{call.__name__}, refused"
    return call.__name__


def main(first: int, seconds: float) -> int:
    load_kernels(Path(__file__).resolve().parents[2] / "build" / f"fuzz-{sys.implementation.cache_tag}")
    seeds, end = itertools.count(first), time.monotonic() + seconds
    counts: dict[str, int] = {}
    failures: list[tuple[int, BaseException]] = []
    turn = threading.Lock()

    def play() -> None:
        while not failures:
            with turn:
                seed = next(seeds)
            if seed > first and time.monotonic() > end:
                return
            try:
                name = call_of(seed)
            except Exception as error:
                failures.append((seed, error))
                return
            with turn:
                counts[name] = counts.get(name, 0) + 1

    threads = [threading.Thread(target=play) for _ in range(THREADS if seconds > 0 else 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(", ".join(f"{name}: {count}" for name, count in sorted(counts.items())), flush=True)
    for seed, error in failures:
        print(f"seed {seed}:", flush=True)
        raise error
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
