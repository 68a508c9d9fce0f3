"""Says in seconds whether a GPU backend works, and prints the first fault with its whole traceback.

python -m benchmarks.gpu_smoke --backend cuda        or triton; with --device cpu a rehearsal without a GPU
python -m benchmarks.gpu_smoke --share 0/3           every third check, since compiling Triton's kernels takes a while

It calls every op and compares with the torch reference on the CPU, replays one capture 1,000 times, and makes one
`generate()` call of every mode, whose tokens must be those of the reference on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import faulthandler
import functools
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import pygen
from benchmarks import gpu_counters, gpu_models
from benchmarks.gpu_small_ops import FIRST, RUNS, Scope
from benchmarks.gpu_ways import captured
from benchmarks.inputs import make_logits, random_ids
from pygen.backends import interprets_triton, use_backend
from pygen.ops import prepare_sample, sample

CPU = torch.device("cpu")
REPLAYS = 1000
SEED = 3
DRAWS: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": SEED}
# Modes that a capture serves come first.
CAPTURED: dict[str, dict[str, Any]] = {
    "greedy": {"repetition_penalty": 1.2},
    "sampling": DRAWS,
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 3, **DRAWS},
}
OTHERS: dict[str, dict[str, Any]] = {
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained beams": {"num_beams": 3, "force_words_ids": [[7, 8]]},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "DoLa": {"dola_layers": "low"},
}
Check = tuple[str, Callable[[], None]]


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def compare(found: Any, wanted: Any, name: str) -> None:
    """Raises AssertionError unless integers are equal and floats agree to 1e-5."""
    ours, theirs = [*tensors_in(found)], [*tensors_in(wanted)]
    assert ours and len(ours) == len(theirs), f"{name}: {len(ours)} outputs, the reference has {len(theirs)}"
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        tolerance = 1e-5 if other.is_floating_point() else 0.0
        words = functools.partial("{}: output {}: {}".format, name, index)
        torch.testing.assert_close(one.cpu(), other, rtol=tolerance, atol=tolerance, msg=words)


def check_op(op: str, scope: Scope, most: int) -> None:
    """Compares the first `most` calls of `op` with the reference."""
    both = zip(RUNS[op](scope), RUNS[op](scope._replace(device=CPU, backend="torch")), strict=True)
    for (name, found), (_, wanted) in itertools.islice(both, most):
        compare(found, wanted, name)


def check_replays(device: torch.device, backend: str, count: int) -> None:
    """Every replay of one capture draws anew, as eager calls at that step do, and allocates nothing."""
    logits, ids = make_logits("normal1", 4, 20011), random_ids(4, 40, 20011)
    here = logits.to(device)
    steps = torch.zeros(4, dtype=torch.int64, device=device)
    prepared = prepare_sample(here, input_ids=ids.to(device), seed=SEED, step=steps, **FIRST, backend=backend)

    def one_step() -> None:
        prepared(here)
        steps.add_(1)

    replay = captured(one_step, device)
    tokens = torch.full((count, 4), -1, dtype=torch.int64, device=device)
    replay()
    steps.zero_()
    before = gpu_counters.allocated_bytes(device)
    for index in range(count):
        replay()
        tokens[index].copy_(prepared.out.token_ids)
    grown = gpu_counters.allocated_bytes(device) - before
    assert not grown, f"{count} replays left {grown} bytes"
    for step in sorted({0, 1, count // 2, count - 1}):
        wanted = sample(logits, input_ids=ids, seed=SEED, step=step, **FIRST, backend="torch").token_ids
        compare(tokens[step], wanted, f"replay {step}")
    different = len({*map(tuple, tokens.tolist())})
    assert different > 0.9 * count, f"{count} replays drew only {different} different rows of tokens"


def check_mode(device: torch.device, backend: str, settings: dict[str, Any], runtime: str, assisted: bool) -> None:
    """A call on the device has the tokens of the reference on the CPU."""
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])

    def tokens(where: torch.device, name: str, how: str) -> Tensor:
        extra = {"assistant_model": model_on(where)} if assisted else {}
        with use_backend(name):
            made = pygen.generate(model_on(where), ids.to(where), max_new_tokens=12, runtime=how, **settings, **extra)
        assert isinstance(made, Tensor)
        return made

    compare(tokens(device, backend, runtime), tokens(CPU, "torch", "eager"), "tokens")


def check_batch(device: torch.device, backend: str, runtime: str) -> None:
    """Rows that come and go on the device have the tokens of the reference on the CPU."""
    prompts = [{"input_ids": [5, 6, 7] * n, "max_new_tokens": 4 + n, "seed": n, "top_k": 5 + n} for n in range(1, 7)]

    def tokens(where: torch.device, name: str, how: str) -> Tensor:
        with use_backend(name):
            results = pygen.generate_batch(model_on(where), prompts, rows=3, do_sample=True, runtime=how)
            return torch.tensor([token_id for result in results for token_id in result.token_ids])

    compare(tokens(device, backend, runtime), tokens(CPU, "torch", "eager"), "tokens")


@functools.cache
def model_on(device: torch.device) -> Any:
    return copy.deepcopy(gpu_models.load("llama", True, CPU)).float().to(device)


def checks_of(device: torch.device, backend: str) -> Iterator[Check]:
    """Every kind of Triton kernel takes seconds to compile, so Triton makes fewer calls."""
    triton = backend == "triton"
    for op in RUNS:
        yield op, functools.partial(check_op, op, Scope(device, backend, few=True), 1 if triton else 99)
    count = 3 if interprets_triton() and triton else REPLAYS
    yield f"{count} replays", functools.partial(check_replays, device, backend, count)
    runtime = "graph" if device.type == "cuda" else "eager"
    for mode, settings in CAPTURED.items():
        if not triton or mode in ("sampling", "beams"):
            yield mode, functools.partial(check_mode, device, backend, settings, runtime, False)
    if not triton:
        yield "batch", functools.partial(check_batch, device, backend, runtime)
    for mode, settings in {} if triton else OTHERS.items():
        yield mode, functools.partial(check_mode, device, backend, settings, "eager", mode == "assisted")


def run(checks: Iterator[Check], device: torch.device) -> list[tuple[str, str]]:
    """Runs all checks and returns (name, traceback) of those that failed."""
    faults = []
    for name, check in checks:
        start, fault = time.perf_counter(), ""
        try:
            check()
            gpu_counters.synchronize(device)
        except Exception:
            fault = traceback.format_exc()
            faults.append((name, fault))
        print(f"{'FAULT' if fault else 'ok':5} {time.perf_counter() - start:6.2f} s  {name}", flush=True)
        if fault and len(faults) == 1:
            print(f"first fault: {name}\n{fault}", flush=True)
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Says in seconds whether a GPU backend works.")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--seconds", type=float, default=600.0, help="after this time, print where it is and stop")
    parser.add_argument("--share", default="0/1", metavar="I/N", help="run checks I, I + N, I + 2 N, ...")
    args = parser.parse_args(arguments)
    first, every = map(int, args.share.split("/"))
    faulthandler.dump_traceback_later(args.seconds, exit=True, file=2)
    faults = run(itertools.islice(checks_of(args.device, args.backend), first, None, every), args.device)
    faulthandler.cancel_dump_traceback_later()
    if not faults:
        print(f"{args.backend}: everything agrees with the reference")
        return 0
    name, fault = faults[0]
    print(f"{args.backend}: {len(faults)} faults; the first, {name}, again:\n{fault}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
