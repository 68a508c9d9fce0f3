"""The harness of the benchmarks: what it times in which order, and what a row may claim."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    bench_beam_finalize,
    bench_beam_step,
    bench_gpu_generate,
    bench_reorder_cache,
    bench_sample,
    bench_token_logprobs,
    bench_verify_draft,
    cli,
    gpu_counters,
    gpu_jobs,
    gpu_models,
    gpu_tokens,
    harness,
    inputs,
    plots,
    report,
)
from benchmarks.baseline import Settings, TransformersStep
from benchmarks.harness import BASELINE, Call, Case, Options, Row, Target, Variant
from pygen import ops
from pygen.graph.cuda_graph import CAPTURES
from tests.runtime.captures import PlainCalls

OPTIONS = Options("test", cache="warm", budget_s=0.02, min_rounds=3, max_rounds=4, progress=False)
MACHINE = {"device": "abacus", "threads": "2", "pygen": "0", "transformers": "5.6.1"}


class FakeTimer:
    """A timer on which a variant takes the microseconds that its call returns. It records the calls."""

    def __init__(self) -> None:
        self.visits: list[tuple[float, int]] = []

    def __call__(self, call: Call, first: int, calls: int) -> float:
        us = float(str(call(first)))
        self.visits.append((us, first))
        return us


def make_case(faults: Mapping[str, str], floors: bool = True) -> Case:
    logits = torch.randn(2, 64)
    variants = [
        Variant(BASELINE, "torch", lambda i: logits.sort()),
        Variant("pygen", "cpu", lambda i: None, Target(speedup=1e-6)),
    ]
    return Case("sample", "no filter", "normal1", [logits], 512, variants, lambda: faults, floors)


def make_row(**changes: object) -> Row:
    row = Row("sample-table", "sample", "no filter", "normal1", 4, 100, "float32", "pygen philox", "cpu")
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


def test_every_round_visits_every_variant_in_changing_order() -> None:
    timer = FakeTimer()
    slow = {name: (lambda i, us=us: us) for name, us in (("a", 2e6), ("b", 3e6), ("c", 4e6))}
    timings = harness.measure(slow, timer, dataclasses.replace(OPTIONS, min_rounds=8))
    rounds = [us for us, _ in timer.visits[3:]]
    orders = [tuple(rounds[i : i + 3]) for i in range(0, len(rounds), 3)]
    assert len(orders) == 8
    assert all(sorted(order) == [2e6, 3e6, 4e6] for order in orders)
    assert len(set(orders)) > 1
    assert {name: timing.median_us for name, timing in timings.items()} == {"a": 2e6, "b": 3e6, "c": 4e6}


def test_no_call_index_is_used_twice() -> None:
    timer = FakeTimer()
    harness.measure({"a": lambda i: 1.0, "b": lambda i: 500.0}, timer, OPTIONS)
    firsts = [first for _, first in timer.visits]
    assert firsts == sorted(set(firsts))


def test_median_ignores_one_slow_sample() -> None:
    timing = harness._timing([5.0, 5.0, 900.0, 5.0, 5.0], 2)
    assert timing.median_us == 5.0
    assert timing.calls == 10


def test_rows_of_a_correct_case_have_ratios() -> None:
    rows = {row.variant: row for row in harness.run_case(make_case({}), OPTIONS)}
    assert list(rows) == ["read", "copy", BASELINE, "pygen"]
    pygen = rows["pygen"]
    assert pygen.check == "ok"
    assert pygen.met == "yes"
    assert pygen.speedup is not None
    assert pygen.times_read is not None
    assert pygen.percent_of_copy is not None
    assert rows[BASELINE].speedup is None
    assert rows["copy"].bytes_moved == 2 * rows["read"].bytes_moved == 1024  # type: ignore[operator]


def test_red_check_gives_no_ratio() -> None:
    row = harness.run_case(make_case({"pygen": "row 0: wrong"}), OPTIONS)[-1]
    assert row.red
    assert row.median_us is not None
    assert (row.speedup, row.times_read, row.percent_of_copy) == (None, None, None)
    assert row.met == "no"


@pytest.mark.parametrize(("check", "status"), [("ok", 0), ("row 0: wrong", 1)])
def test_red_ends_with_status_one(check: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(device=torch.device("cpu"), no_save=True)
    assert cli.finish([make_row(check=check, median_us=3.0)], args, save=True) == status
    assert ("RED" in capsys.readouterr().out) == bool(status)


def test_table_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    report.print_rows([make_row(median_us=3.0, check="ok"), make_row(median_us=4.0, variant="pygen torch")])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert "pygen philox" in out[1]
    assert "no filter" not in out[2]


def test_targets() -> None:
    row = make_row(check="ok", speedup=100.0, times_read=2.0, median_us=4.0)
    for target, met in (
        (Target(speedup=100, reads=2), "yes"),
        (Target(speedup=100, reads=1.9), "no: 2 for <=1.9 reads"),
        (Target(time_us=5), "yes"),
        (Target(memory_bytes=10), "no: not measured for <=10 bytes"),
        (Target(), ""),
    ):
        row.met = ""
        harness.judge(row, target)
        assert row.met == met


def test_geometric_mean() -> None:
    assert harness.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert harness.geometric_mean([]) is None


def test_csv_round_trip_replaces_only_its_own_suite(tmp_path: Path) -> None:
    path = tmp_path / "results" / "abacus.csv"
    old = make_row(suite="sample-table", median_us=9.0, check="ok")
    other = make_row(suite="generate-table", op="generate", forward_us=2.5, memory_bytes=7)
    report.save_csv(path, [old, other], {})
    new = make_row(suite="sample-table", median_us=3.0, check="ok")
    report.save_csv(path, [new], MACHINE)
    assert report.load_csv(path) == [other, new]
    assert report.load_machine(path) == MACHINE
    with path.open() as file:
        head = next(csv.reader(line for line in file if not line.startswith("#")))
    assert head == [field.name for field in dataclasses.fields(Row)]
    for name in ("op", "backend", "rows", "vocab_size", "dtype", "median_us", "bytes_moved", "gb_per_s",
                 "percent_of_copy", "times_read", "speedup", "commit", "date"):  # fmt: skip
        assert name in head


def test_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        make_row(variant="read", backend="floor", median_us=10.0),
        make_row(variant=BASELINE, backend="torch", median_us=900.0),
        make_row(median_us=20.0, times_read=2.0, speedup=45.0, target=">=40x <=3 reads", check="ok"),
        make_row(suite="generate-table", op="generate", forward_us=5e3, outside_us=100.0, outside_percent=2.0),
    ]
    path = plots.plot_results(rows, MACHINE, tmp_path / "abacus.png")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plots.plot_results([], MACHINE, tmp_path / "none.png") is None


@pytest.mark.parametrize("distribution", ["normal1", "normal5", "gumbel", "ties"])
def test_logits_are_reproducible_and_finite(distribution: str) -> None:
    first = inputs.make_logits(distribution, 3, 1000, torch.float32)
    assert torch.equal(first, inputs.make_logits(distribution, 3, 1000, torch.float32))
    assert bool(first.isfinite().all())
    if distribution == "ties":
        assert first.unique().numel() < 60


def test_unknown_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="`distribution` must be one of normal1, "):
        inputs.make_logits("uniform", 1, 8)


def test_recorded_logits() -> None:
    traces = inputs.load_traces()
    assert traces.dtype == torch.bfloat16
    assert traces.numel() * 2 <= 4 << 20
    assert {"model", "text", "positions"} <= inputs.trace_metadata().keys()
    logits = inputs.make_logits("smollm2", len(traces) + 3, traces.shape[1])
    assert torch.equal(logits[0], logits[len(traces)])
    with pytest.raises(ValueError, match="`vocab_size` must be"):
        inputs.make_logits("smollm2", 1, 8)


def test_cold_buffers_hold_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "ARENA_BYTES", 1 << 16)
    logits = torch.randn(4, 512)
    buffers = inputs.rotation(logits, "cold")
    assert len(buffers) == 8
    for buffer in buffers:
        assert torch.equal(buffer.sort(0).values, logits.sort(0).values)
    assert inputs.rotation(logits, "warm") == [logits]
    assert len(inputs.rotation(logits, "cold", most=5)) == 5


def test_baseline_is_the_chain_of_generate() -> None:
    settings = Settings(temperature=0.5, repetition_penalty=2.0, top_k=2)
    logits = torch.tensor([[1.0, -1.0, 4.0, 2.0]])
    scores = TransformersStep(settings, torch.tensor([[1, 2]])).scores(logits)
    assert scores.tolist() == [[float("-inf"), float("-inf"), 4.0, 4.0]]
    assert settings.label == "temperature 0.5, top_k 2, repetition_penalty 2, 256 ids"
    assert logits.tolist() == [[1.0, -1.0, 4.0, 2.0]]


def test_check_finds_a_token_that_transformers_removes() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 3.0]])
    ids = torch.zeros(1, 1, dtype=torch.int64)
    for settings in (Settings(top_k=1), Settings(do_sample=False)):
        found = [bench_sample.check_support(settings, logits, ids, torch.tensor([token])) for token in (1, 2, 3, 4)]
        assert [bool(fault) for fault in found] == [True, False, False, True]


def test_sample_case_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    noises = ("philox", "torch", bench_sample.KEPT)
    spec = bench_sample.Spec(bench_sample.FIRST, 3, 500, targets=dict.fromkeys(noises, harness.Target()))
    case = bench_sample.make_case(spec, OPTIONS, torch.device("cpu"), "torch")
    assert case.check() == {}
    rows = harness.run_case(case, OPTIONS)
    assert [row.variant for row in rows] == ["read", "copy", BASELINE, *(f"pygen {noise}" for noise in noises)]
    assert all(not row.red for row in rows)
    assert {row.backend for row in rows[2:]} == {"torch"}


def test_check_is_red_for_a_wrong_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = bench_sample.Spec(Settings(top_k=1), 3, 500)
    honest = ops.prepare_sample

    def wrong(logits: torch.Tensor, **knobs: object) -> object:
        knobs["top_k"] = 0
        return honest(logits, **knobs)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_sample, "prepare_sample", wrong)
    case = bench_sample.make_case(spec, OPTIONS, torch.device("cpu"), "torch")
    assert set(case.check()) == {"pygen philox", "pygen torch"}


def test_cases_of_the_beam_ops() -> None:
    cpu = torch.device("cpu")
    moving = bench_reorder_cache.Spec(1, 4, prompt=3, generated=4, layers=1, heads=2, head_dim=5)
    case = bench_reorder_cache.make_case(moving, OPTIONS, cpu, "auto")
    # Rows 1 and 3, two positions of two tensors, half floats read and written.
    assert case.bytes_moved == 2 * 2 * 2 * (2 * 5) * 2 * 2
    assert case.check() == {}
    case = bench_beam_finalize.make_case(bench_beam_finalize.Spec(3, 2, prompt=4, generated=5), cpu, "auto")
    assert case.check() == {}


def test_cases_of_the_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = bench_token_logprobs.Spec(3, 500, 4)
    case = bench_token_logprobs.make_case(spec, OPTIONS, torch.device("cpu"), "auto")
    assert case.bytes_moved == 3 * 500 * 4 + 3 * (8 + 4 + 4 + 4 * 12)
    assert case.check() == {}
    monkeypatch.setattr(
        bench_token_logprobs, "token_logprobs", lambda x, ids, **knobs: ops.token_logprobs(x + x, ids, **knobs)
    )
    assert "are not torch's" in case.check()["pygen"]


def test_cases_of_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = bench_verify_draft.make_case(bench_verify_draft.Spec(3, 500, 2), OPTIONS, torch.device("cpu"), "cpu")
    rows = harness.run_case(case, OPTIONS)
    assert [(row.variant, row.red) for row in rows[2:]] == [(BASELINE, False), ("pygen", False)]
    monkeypatch.setattr(
        bench_verify_draft,
        "verify_draft",
        lambda p, x, q, seed, backend: (
            ops.verify_draft(p, x, seed=seed, backend=backend)
            if backend == "cpu"
            else ops.verify_draft(p, x, q, seed=seed, backend=backend)
        ),
    )
    assert "are not those of the reference" in case.check()["pygen"]


def test_check_is_red_for_a_wrong_reordering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_reorder_cache, "reorder_cache", lambda *arguments, **keywords: None)
    spec = bench_reorder_cache.SPECS["quick"][0]
    assert set(bench_reorder_cache.make_case(spec, OPTIONS, torch.device("cpu"), "auto").check()) == {"pygen"}


@pytest.mark.parametrize("settings", [bench_beam_step.SEARCH, bench_beam_step.DRAWS, bench_beam_step.PENALTIES])
def test_beam_step_case_end_to_end(settings: Settings) -> None:
    """The timing runs a search past its end, and the search is correct afterwards."""
    spec = bench_beam_step.Spec(settings, 2, 3, 500)
    case = bench_beam_step.make_case(spec, OPTIONS, torch.device("cpu"), "cpu")
    rows = harness.run_case(case, OPTIONS)
    assert [(row.variant, row.red) for row in rows[2:]] == [(BASELINE, False), ("pygen", False)]
    for call in range(2 * bench_beam_step.MAX_NEW_TOKENS):
        case.variants[1].call(call)
    assert case.check() == {}


def test_check_is_red_for_a_wrong_beam_step(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = bench_beam_step.Spec(bench_beam_step.SEARCH, 2, 3, 500)
    wrong = functools.partial(ops.prepare_beam_step, normalized=True)
    monkeypatch.setattr(bench_beam_step, "prepare_beam_step", wrong)
    case = bench_beam_step.make_case(spec, OPTIONS, torch.device("cpu"), "cpu")
    assert "are not those of transformers" in case.check()["pygen"]


def rehearse(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, str]]:
    """Returns the exit status and the printed line of every engine."""
    given = ("--quick", "--device", "cpu", "--threads", "1", "--quiet", "--no-save", *arguments)
    status = bench_gpu_generate.main(given)
    lines = capsys.readouterr().out.splitlines()
    variants = [variant for variant, _ in gpu_jobs.ENGINES.values()]
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    found = {name: line for line, row in zip(lines, cells, strict=True) for name in variants if name in row}
    return status, found


def test_gpu_calls_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--models", "t5", "--modes", "sampling", "--prompts", "4")
    status, lines = rehearse(capsys, *asked, "--batches", "2")
    assert status == 0 and list(lines) == [variant for variant, _ in gpu_jobs.ENGINES.values()]
    for name, line in lines.items():
        captured = name in ("pygen", "pygen compiled")
        assert ("not run: it needs a CUDA model, got one on cpu" in line) == captured
        assert (" 100.00" in line) == (name in ("transformers static", "pygen eager"))
    status, lines = rehearse(capsys, *asked, "--seconds", "0")
    assert status == 0 and all("not run: no time left" in line for line in lines.values())


@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_captured_gpu_calls(mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain calls replace the captures of the graph engine. The bench skips a prompt that is too long."""
    monkeypatch.setitem(CAPTURES, "cpu", PlainCalls)
    monkeypatch.setattr("pygen.graph.eligibility.LEAST_STEPS", 2)
    asked = ("--models", "gpt2", "--modes", mode, "--engines", "transformers", "pygen")
    status, lines = rehearse(capsys, *asked, "--batches", "1", "--prompts", "5")
    assert status == 0 and " ok" in lines["pygen"] and "not run" not in lines["pygen"]
    _, lines = rehearse(capsys, *asked, "--prompts", "90")
    assert "not run: 90 + 8 tokens, the model has 96 positions" in lines["pygen"]


def test_pieces_of_gpu_calls_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command replaces only the jobs that it measured; jobs that it had no time for keep their rows."""
    name, make = gpu_models.MODELS["llama"]
    small = functools.partial(make, **gpu_models._SMALL["llama"])
    monkeypatch.setitem(gpu_models.MODELS, "llama", (name, small))
    monkeypatch.setattr(gpu_models, "load", gpu_models.load.__wrapped__)
    machine = ("--device", "cpu", "--threads", "1", "--quiet", "--budget", "0.01", "--results", str(tmp_path))
    common = (*machine, "--models", "llama", "--batches", "1", "--prompts", "4", "--engines")
    for piece in (
        ("transformers", "eager", "--modes", "greedy"),
        ("eager", "--modes", "sampling", "greedy"),
        ("eager", "--modes", "beams", "sampling", "--seconds", "0"),
    ):
        assert bench_gpu_generate.main((*common, *piece)) == 0
    (path,) = tmp_path.glob("*.csv")
    rows = report.load_csv(path)
    assert [(row.op, row.settings, row.variant) for row in rows] == [
        ("generate", "Llama 1B, greedy, 4 tokens", "pygen eager"),
        ("copy", "", "copy"),
        ("generate", "Llama 1B, sampling, 4 tokens", "pygen eager"),
    ]
    assert all(row.median_us for row in rows) and plots.plot_results(rows, MACHINE, tmp_path / "none.png") is None


def test_order_and_targets_of_gpu_calls() -> None:
    asked = argparse.Namespace(models=["t5", "gpt2"], modes=["beams", "greedy"], batches=None, prompts=None)
    jobs = [(job.model, job.mode, job.batch, job.prompt) for job in gpu_jobs.jobs_of(asked, quick=False)]
    assert len({*jobs}) == len(jobs) == 24
    assert jobs[:2] == [("gpt2", "greedy", 1, 32), ("t5", "greedy", 1, 32)]
    assert jobs[4:7] == [("gpt2", "beams", 8, 32), ("gpt2", "beams", 8, 1024), ("gpt2", "beams", 1, 32)]
    both: dict[str, Any] = {"unreleased_bytes": 0, "syncs_beyond_forward": 0, "launches_beyond_forward": 1}
    wanted: dict[tuple[str, str, int, str], dict[str, Any]] = {
        ("gpt2", "beams", 8, "pygen"): {**both, "launches_beyond_forward": 3, "capture_s": 2, "speedup": 10},
        ("llama", "sampling", 1, "compiled"): {**both, "static_speedup": 1.3, "copy_percent": 65},
        ("qwen2", "greedy", 8, "pygen"): {**both, "capture_s": 2},
        ("qwen2", "greedy", 8, "transformers"): {},
    }
    for (model, mode, batch, engine), target in wanted.items():
        assert gpu_jobs.target_of(gpu_jobs.Job(model, mode, batch, 32), engine) == Target(**target)


def test_bytes_of_a_step() -> None:
    """A step reads all weights except tables, the encoder and projections of its output, and the cache in use."""
    cpu = torch.device("cpu")
    sizes = {name: gpu_models.load(name, True, cpu) for name in gpu_models.MODELS}
    every = {name: sum(p.numel() for p in model.parameters()) for name, model in sizes.items()}
    assert gpu_models.weight_bytes(sizes["llama"]) == 2 * every["llama"]
    assert gpu_models.weight_bytes(sizes["gpt2"]) == 2 * (every["gpt2"] - 96 * 32)
    decoder = sum(p.numel() for name, p in sizes["t5"].named_parameters() if name.startswith(("decoder", "shared")))
    # Two layers of two projections, and the biases by distance.
    assert gpu_models.weight_bytes(sizes["t5"]) == 2 * (decoder - 2 * 2 * 32 * 32 - 32 * 4)
    assert gpu_models.cache_bytes(sizes["llama"], 3, 10, 5) == 2 * 2 * (2 * 8) * 3 * 12 * 2
    assert gpu_models.cache_bytes(sizes["t5"], 3, 10, 5) == 2 * 2 * 32 * 3 * (10 + 3) * 2


class Event:
    """An event of Kineto."""

    def __init__(self, name: str, start: int, end: int = 0, on_gpu: bool = False) -> None:
        self.name, self.start_ns, self.end_ns = (lambda: name), (lambda: start), (lambda: end)
        self.is_user_annotation = lambda: False
        kind = torch._C._autograd.DeviceType
        self.device_type = lambda: kind.CUDA if on_gpu else kind.CPU


def test_launches_and_waits_are_counted() -> None:
    events = [
        Event("cudaLaunchKernel", 5),
        Event("pygen: measured", 10, 90),
        Event("cudaLaunchKernel", 20),
        Event("pygen: forward", 30, 50),
        Event("cuLaunchKernelEx", 40),
        Event("cudaStreamSynchronize", 45),
        Event("cudaGraphLaunch", 60),
        Event("cudaEventSynchronize", 70),
        Event("cudaEventQuery", 75),
        Event("cudaDeviceSynchronize", 95),
        *(Event(name, 99, on_gpu=True) for name in ("gemm", "Memcpy DtoH", "pygen: forward", "add")),
    ]
    found = gpu_counters.tally(events)
    assert found == gpu_counters.Activity(2, 1, 2, 2, launches_in_forward=1, waits_in_forward=1)
    assert found.per(gpu_counters.Activity(launches=1), 2).launches == 0.5


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams"])
def test_tokens_may_differ_by_rounding_only(name: str, mode: str) -> None:
    model = gpu_models.load(name, True, torch.device("cpu"))
    prompt = inputs.random_ids(2, 5, 509)
    settings: dict[str, Any] = {**gpu_jobs.MODES[mode], "max_new_tokens": 6}
    theirs = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert gpu_tokens.fault(model, prompt, theirs, theirs, settings) == ""
    wrong = theirs.clone()
    wrong[1, -3:] = gpu_tokens.scores_of(model, prompt, theirs, 6)[1, 3:].argmin(-1)
    assert gpu_tokens.agreeing_percent(wrong, theirs, 6) == 75
    assert "row 1" in gpu_tokens.fault(model, prompt, wrong, theirs, settings)


def test_searches_must_agree_in_float32() -> None:
    theirs = torch.arange(20).view(4, 5)
    ours = theirs.clone()
    ours[3, 4] = 0
    assert gpu_tokens.fault_of_search(ours, theirs) == ""
    ours[1, 2] = 0
    assert gpu_tokens.fault_of_search(ours, theirs) == "in float32, rows [1, 3] differ"
    assert gpu_tokens.fault_of_search(ours[:, 1:], theirs) == "in float32, rows [0, 1, 2, 3] differ"


def test_a_search_that_rounding_leads_elsewhere_is_not_red(capsys: pytest.CaptureFixture[str]) -> None:
    """In bfloat16, a search may end in other texts than in float32, more or less probable ones."""
    asked = ("--models", "gpt2", "--modes", "beams", "--prompts", "4", "--batches", "8")
    status, lines = rehearse(capsys, *asked, "--engines", "transformers", "eager")
    assert status == 0 and " ok" in lines["pygen eager"]
