"""`python -m tests.batch.workloads --count 500`: random batches against `generate` for each prompt alone."""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import random
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch

import pygen
from pygen.batch.results import BatchResult
from tests.batch.alone import differences
from tests.batch.models import FAMILIES, small_model
from tests.batch.settings import draw_prompt, tokenizer


def run_workload(seed: int, family: str) -> tuple[int, list[str]]:
    """Runs random prompts by `generate_batch` or an `Engine`. Returns the number of tokens, and what was wrong."""
    source, model = random.Random(seed), small_model(family)
    seeds = [source.randrange(2**62) for _ in range(source.randint(1, 12))]
    options = {
        "rows": source.randint(1, 9),
        "prefill_chunk_size": source.choice((None, 1, 5, 16)),
        "prefix_positions": source.choice((0, 60, 2048)),
        "tokenizer": tokenizer(),
    }
    run = source.choice((_in_order, _as_completed, _by_engine))
    with _silent():
        torch.manual_seed(seed)
        results = run(model, [draw_prompt(random.Random(prompt_seed)) for prompt_seed in seeds], options, source)
        by_prompt = collections.defaultdict(list)
        for result in results:
            by_prompt[result.index].append(result)
        wrong = [f"prompt {index} has no result" for index in range(len(seeds)) if index not in by_prompt]
        for index, found in sorted(by_prompt.items()):
            prompt = draw_prompt(random.Random(seeds[index]))
            found.sort(key=lambda result: result.copy)
            for what in differences(model, prompt, found, tokenizer=tokenizer()):
                wrong.append(f"{run.__name__} {options}\n  {prompt}\n  {what}")
    return sum(len(result.token_ids) for result in results), wrong


def _in_order(model: Any, prompts: list[Any], options: dict[str, Any], source: random.Random) -> list[BatchResult]:
    results = [*pygen.generate_batch(model, iter(prompts), **options)]
    assert [(result.index, result.copy) for result in results] == sorted((r.index, r.copy) for r in results)
    return results


def _as_completed(model: Any, prompts: list[Any], options: dict[str, Any], source: random.Random) -> list[BatchResult]:
    return [*pygen.generate_batch(model, iter(prompts), as_completed=True, **options)]


def _by_engine(model: Any, prompts: list[Any], options: dict[str, Any], source: random.Random) -> list[BatchResult]:
    """Three threads submit, with pauses."""
    handles: list[Any] = [None] * len(prompts)
    # An engine numbers prompts as they come.
    refused: list[BatchResult] = []
    lock = threading.Lock()

    def submit(numbers: list[int], pauses: list[float]) -> None:
        for number, pause in zip(numbers, pauses, strict=True):
            time.sleep(pause)
            try:
                handles[number] = engine.submit(prompts[number])
            except (ValueError, TypeError, NotImplementedError) as error:
                with lock:
                    refused.append(_refused(number, error))

    numbers = [*range(len(prompts))]
    source.shuffle(numbers)
    pauses = [source.choice((0.0, 0.0, 0.01)) for _ in numbers]
    with pygen.Engine(model, max_queued=source.randint(1, 5), **options) as engine:
        threads = [threading.Thread(target=submit, args=(numbers[k::3], pauses[k::3])) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ended = [(number, handle) for number, handle in enumerate(handles) if handle is not None]
    found = [_numbered(result, number) for number, handle in ended for result in handle.results(timeout=60)]
    return [*refused, *found]


def _refused(index: int, error: Exception) -> BatchResult:
    return BatchResult(index, 0, [], [], "error", pygen.BatchTimes(0.0), error=error)


def _numbered(result: BatchResult, index: int) -> BatchResult:
    return BatchResult(**{**vars(result), "index": index})


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Random settings contradict each other, of which `generate` warns."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.batch.workloads", description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first workload; the next ones count on")
    parser.add_argument("--family", choices=FAMILIES, default=None, help="one architecture instead of all in turn")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokens, failed, began = 0, 0, time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        family = arguments.family or FAMILIES[seed % len(FAMILIES)]
        count, wrong = run_workload(seed, family)
        tokens += count
        failed += bool(wrong)
        for what in wrong:
            print(f"workload {seed}, {family}: {what}", flush=True)
    seconds = time.monotonic() - began
    print(f"{arguments.count} workloads, {tokens} tokens, {seconds:.0f} s: {failed} differ")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
