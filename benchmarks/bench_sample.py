"""Times `pygen.ops.sample` against the step of transformers' `generate()`.

python -m benchmarks.bench_sample --table     the figures of the README, with their targets
python -m benchmarks.bench_sample --quick     a look, in seconds
python -m benchmarks.bench_sample --full      dtypes, vocabularies, batches, distributions and filters
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from benchmarks import cli
from benchmarks.baseline import Settings, TransformersStep
from benchmarks.harness import BASELINE, Case, Options, Row, Target, Variant, judge, run_case
from benchmarks.inputs import make_logits, random_ids, rotation, trace_file
from benchmarks.machine import commit, today
from benchmarks.memory import in_child, peak_temporary_bytes
from pygen.ops import KeptRows, prepare_sample

SEED = 20
REFERENCE_ROWS = 8
# Noise, and whether the call also returns the kept tokens, which may take 5 % more time.
KEPT = "philox, kept"
FIRST = Settings(temperature=0.7, repetition_penalty=1.1, top_k=50, top_p=0.9)
BIG = 128256
TRACE_VOCAB = 49152


@dataclasses.dataclass(frozen=True)
class Spec:
    """A case before its buffers exist: settings, shape, input, and a target for each kind of noise."""

    settings: Settings
    rows: int
    vocab_size: int = BIG
    dtype: torch.dtype = torch.float32
    distribution: str = "normal1"
    targets: Mapping[str, Target] = dataclasses.field(default_factory=lambda: {"philox": Target(), "torch": Target()})


def table_specs() -> list[Spec]:
    philox = {"philox": Target()}
    specs = [
        Spec(
            FIRST,
            64,
            targets={
                "philox": Target(speedup=150, reads=3),
                "torch": Target(speedup=35),
                KEPT: Target(speedup=150 / 1.05),
            },
        ),
        Spec(FIRST, 1, targets={"philox": Target(speedup=60), "torch": Target(), KEPT: Target(speedup=60 / 1.05)}),
        Spec(FIRST, 8, targets={"philox": Target(speedup=60), "torch": Target()}),
        Spec(Settings(top_p=0.9), 64, targets={"philox": Target(speedup=100, reads=8)}),
        Spec(Settings(), 64, targets={"philox": Target(speedup=40), "torch": Target(speedup=12)}),
        Spec(Settings(do_sample=False, repetition_penalty=1.1), 64, targets={"greedy": Target(speedup=2, reads=2)}),
    ]
    if trace_file() is not None:
        specs.append(Spec(FIRST, 64, TRACE_VOCAB, distribution="smollm2", targets=philox))
        specs.append(Spec(Settings(top_p=0.9), 64, TRACE_VOCAB, distribution="smollm2", targets=philox))
    return specs


def quick_specs() -> list[Spec]:
    return [
        Spec(FIRST, 4, 32000),
        Spec(Settings(top_p=0.9), 4, 32000, torch.bfloat16),
        Spec(Settings(do_sample=False, repetition_penalty=1.1), 4, 32000, targets={"greedy": Target()}),
    ]


def full_specs() -> list[Spec]:
    philox = {"philox": Target()}
    specs = [
        Spec(FIRST, rows, vocab_size, dtype, targets=philox)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for vocab_size in (32000, 50257, BIG, 151936)
        for rows in (1, 8, 64)
    ]
    specs += [
        Spec(settings, 64, distribution=distribution, targets=philox)
        for distribution in ("normal5", "gumbel", "ties")
        for settings in (FIRST, Settings(top_p=0.9), Settings())
    ]
    alone: list[Settings] = [
        Settings(top_k=50),
        Settings(top_p=0.5),
        Settings(top_p=0.99),
        Settings(temperature=0.7),
        Settings(repetition_penalty=1.1),
        Settings(no_repeat_ngram_size=3),
        Settings(min_p=0.05),
        Settings(typical_p=0.9),
        Settings(epsilon_cutoff=3e-6),
        Settings(eta_cutoff=3e-6),
        Settings(top_h=0.5),
        Settings(do_sample=False),
    ]
    specs += [Spec(settings, 8, targets=philox if settings.do_sample else {"greedy": Target()}) for settings in alone]
    if trace_file() is not None:
        inputs = [Settings(min_p=0.05), Settings(typical_p=0.9), Settings(eta_cutoff=3e-4), FIRST, Settings(top_p=0.9)]
        specs += [Spec(settings, 8, TRACE_VOCAB, distribution="smollm2", targets=philox) for settings in inputs]
    return specs


def knobs_of(settings: Settings, noise: str, input_ids: torch.Tensor, backend: str) -> dict[str, Any]:
    knobs: dict[str, Any] = {**settings.pygen_knobs(input_ids), "backend": backend}
    if noise in ("philox", KEPT):
        knobs.update(seed=SEED, output_kept=noise == KEPT)
    elif noise == "torch":
        knobs["rng"] = "torch"
    return knobs


def make_case(spec: Spec, options: Options, device: torch.device, backend: str) -> Case:
    logits = make_logits(spec.distribution, spec.rows, spec.vocab_size, spec.dtype).to(device)
    input_ids = random_ids(spec.rows, spec.settings.history, spec.vocab_size).to(device)
    buffers = rotation(logits, options.cache)
    step = TransformersStep(spec.settings, input_ids)
    prepared = {
        noise: prepare_sample(logits, **knobs_of(spec.settings, noise, input_ids, backend)) for noise in spec.targets
    }
    n = len(buffers)

    def variant(noise: str) -> Variant:
        call = prepared[noise]
        name = "pygen" if noise == "greedy" else f"pygen {noise}"
        return Variant(name, call.backend, lambda i: call(buffers[i % n], step=i), spec.targets[noise])

    def check() -> dict[str, str]:
        found = {variant(noise).name: check_tokens(spec, logits, input_ids, noise, backend) for noise in spec.targets}
        return {name: fault for name, fault in found.items() if fault}

    moved = logits.numel() * logits.element_size() + 12 * spec.rows
    if spec.settings.needs_ids:
        moved += input_ids.numel() * input_ids.element_size()
    baseline = Variant(BASELINE, "torch", lambda i: step.tokens(buffers[i % n]))
    variants = [baseline, *map(variant, spec.targets)]
    return Case("sample", spec.settings.label, spec.distribution, buffers, moved, variants, check)


def check_tokens(spec: Spec, logits: torch.Tensor, input_ids: torch.Tensor, noise: str, backend: str) -> str:
    """Returns what is wrong with pygen's tokens, or "".

    transformers keeps every token, or one of equal score, because its order among equals is undefined. The first rows
    equal the torch reference. With torch's noise, the tokens and the generator's final state equal transformers',
    except where ties allow several.
    """
    step = TransformersStep(spec.settings, input_ids)
    knobs = knobs_of(spec.settings, noise, input_ids, backend)
    torch.manual_seed(SEED)
    output = prepare_sample(logits, **knobs)(logits, step=0)
    tokens = output.token_ids.clone()
    state = torch.get_rng_state()
    fault = check_support(spec.settings, logits, input_ids, tokens)
    if fault:
        return fault
    few = slice(0, REFERENCE_ROWS)
    knobs = knobs_of(spec.settings, noise, input_ids[few], "torch")
    torch.manual_seed(SEED)
    wanted_output = prepare_sample(logits[few], **knobs)(logits[few], step=0)
    reference = wanted_output.token_ids
    if not torch.equal(tokens[few], reference):
        row = int((tokens[few] != reference).nonzero()[0])
        return f"row {row}: token {int(tokens[row])}, the reference gives {int(reference[row])}"
    if isinstance(output.kept, KeptRows) and isinstance(wanted_output.kept, KeptRows):
        ids, wanted_ids = output.kept.compressed().token_ids, wanted_output.kept.compressed().token_ids
        if not torch.equal(ids[: len(wanted_ids)], wanted_ids):
            return "the kept tokens are not those of the reference"
    if noise == "torch":
        torch.manual_seed(SEED)
        wanted = step.tokens(logits)
        has_ties = spec.dtype != torch.float32 or spec.distribution in ("ties", "smollm2")
        if not has_ties and not torch.equal(tokens, wanted):
            row = int((tokens != wanted).nonzero()[0])
            return f"row {row}: token {int(tokens[row])}, transformers gives {int(wanted[row])} under the same seed"
        if not torch.equal(state, torch.get_rng_state()):
            return "the generator is not where transformers leaves it"
    return ""


def check_support(settings: Settings, logits: torch.Tensor, input_ids: torch.Tensor, tokens: torch.Tensor) -> str:
    before = TransformersStep(settings.unfiltered, input_ids).scores(logits)
    after = TransformersStep(settings, input_ids).scores(logits)
    for row, token in enumerate(tokens.tolist()):
        if not 0 <= token < logits.shape[1]:
            return f"row {row}: token {token} is outside the vocabulary"
        kept = after[row] != -torch.inf
        if not settings.do_sample:
            kept &= after[row] == after[row].max()
        if not kept[token] and not bool((kept & (before[row] == before[row, token])).any()):
            return f"row {row}: transformers removes token {token}"
    return ""


def call_overhead(options: Options, backend: str) -> list[Row]:
    """Times a prepared call on a tiny row, where the kernel does almost nothing."""
    settings = dataclasses.replace(FIRST, history=8)
    spec = Spec(settings, 1, 8, targets={"philox": Target(time_us=5)})
    case = make_case(spec, dataclasses.replace(options, cache="warm"), torch.device("cpu"), backend)
    case = dataclasses.replace(case, floors=False, variants=[v for v in case.variants if v.name != BASELINE])
    return run_case(case, dataclasses.replace(options, cache="warm"))


def memory_rows(options: Options, backend: str, command: Callable[[str], int | None]) -> Iterator[Row]:
    """Measures peak temporary memory in a separate process. The limit is an eighth of (rows, vocab_size) float32."""
    spec = table_specs()[0]
    limit = spec.rows * spec.vocab_size * 4 // 8
    ran = prepare_sample(torch.zeros(1, 8), seed=SEED, backend=backend).backend
    for name, target in ((BASELINE, Target()), ("pygen philox", Target(memory_bytes=limit))):
        row = Row(
            options.suite, "sample memory", spec.settings.label, spec.distribution, spec.rows, spec.vocab_size,
            "float32", name, "torch" if name == BASELINE else ran,
            threads=torch.get_num_threads(), device="cpu", commit=commit(), date=today(),
        )  # fmt: skip
        try:
            row.memory_bytes = command(name)
        except RuntimeError as error:
            row.check = f"the measuring process failed: {error}"
        judge(row, target)
        yield row


def memory_of(name: str, backend: str) -> int | None:
    spec = table_specs()[0]

    def run(rows: int, vocab_size: int, logits: torch.Tensor) -> object:
        input_ids = ids[:rows] % vocab_size
        if name == BASELINE:
            return TransformersStep(spec.settings, input_ids).tokens(logits)
        return prepare_sample(logits, **knobs_of(spec.settings, "philox", input_ids, backend))(logits, step=0)

    logits = make_logits(spec.distribution, spec.rows, spec.vocab_size)
    ids = random_ids(spec.rows, spec.settings.history, spec.vocab_size)
    run(2, 64, logits[:2, :64].clone())
    return peak_temporary_bytes(lambda: run(spec.rows, spec.vocab_size, logits))


def main() -> int:
    parser = cli.parser("Times pygen.ops.sample against transformers.", ("quick", "table", "full"))
    parser.add_argument("--memory-of", choices=(BASELINE, "pygen philox"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    with cli.threads(args.threads):
        if args.memory_of:
            print(json.dumps(memory_of(args.memory_of, args.backend)))
            return 0
        specs = {"quick": quick_specs, "table": table_specs, "full": full_specs}[args.size]()
        options = cli.options(args, "sample", {"quick": 0.5, "table": 12.0, "full": 3.0}[args.size])
        cases = (make_case(spec, options, args.device, args.backend) for spec in specs)
        rows = cli.run_cases(cases, len(specs), options)
        if args.device.type == "cpu" and args.size != "full":
            rows += call_overhead(options, args.backend)
            if args.size == "table":
                child = ("--backend", args.backend, "--threads", str(args.threads))
                measure = functools.partial(in_child, "benchmarks.bench_sample")
                rows += memory_rows(options, args.backend, lambda name: measure(name, *child))
        return cli.finish(rows, args, save=args.size != "quick")


if __name__ == "__main__":
    sys.exit(main())
