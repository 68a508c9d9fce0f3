"""benchmarks/gpu_suite.sh keeps what it has when it is killed; so do the benches that it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    bench_gpu,
    bench_gpu_generate,
    gpu_counters,
    gpu_flushed,
    gpu_profile,
    gpu_small_ops,
    gpu_smoke,
    report,
)
from pygen import ops
from tests.helpers.processes import has_ended

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / "benchmarks" / "gpu_suite.sh"
# In the place of Python, so that the suite's own work takes no time. Without a GPU, bench_gpu_generate never ends.
STUB = """#!/usr/bin/env bash
echo "$*" >>"${0%/*}/commands"
case "$*" in
  *benchmarks.machine) printf "device: an abacus\\n$MACHINE" ;;
  *benchmarks.prebuilt*) echo "no compiler"; exit 3 ;;
  *benchmarks.bench_gpu\\ *) echo "sample: 7 us" ;;
  *benchmarks.bench_gpu_generate*) echo $$ >"${0%/*}/pid"; echo begun; [[ -n $MACHINE ]] || exec sleep 300 ;;
  *benchmarks.gpu_small_ops*verify_draft*) echo "out of bounds"; exit 9 ;;
  *) echo done ;;
esac
"""


@pytest.fixture
def suite(tmp_path: Path) -> Any:
    """Starts the suite with the stub, and returns the process."""
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = ("bash", str(SUITE), str(tmp_path / "out"), *arguments)
        variables = {**os.environ, "PYTHON": str(stub), **environment}
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True)

    return start


def listed() -> dict[str, int]:
    done = subprocess.run(("bash", str(SUITE), "--list"), capture_output=True, text=True, check=True)
    return {name: int(limit) for name, limit, _ in (line.split("\t") for line in done.stdout.splitlines())}


def test_most_important_parts_fit_into_the_limit() -> None:
    limits = listed()
    names = [*limits]
    assert names[:7] == ["build", "smoke", "bench-steps", "bench-generate", "tests", "memcheck", "racecheck"]
    # 480 s, of which the machine's description takes some.
    assert sum(limits[name] for name in names[:4]) <= 480 - 30


def test_sanitizers_cover_every_op() -> None:
    (line,) = [line for line in SUITE.read_text().splitlines() if line.startswith("OPS=(")]
    assert {*line.removeprefix("OPS=(").removesuffix(")").split()} == {*gpu_small_ops.RUNS} == {*ops.DISPATCHERS}


def test_results_survive_a_kill(suite: Any, tmp_path: Path) -> None:
    process = suite("--only", "build,bench-steps,bench-generate")
    out, deadline = tmp_path / "out", time.monotonic() + 60
    while not (out / "running.log").exists() or "begun" not in (out / "running.log").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    summary = (out / "summary.txt").read_text()
    assert "build            FAILED with status 3" in summary and "no compiler" in summary
    assert "bench-steps      ok in " in summary and "bench-generate   running" in summary
    assert "device: an abacus" in summary and "\n== bench-steps\nsample: 7 us\n" in summary
    with tarfile.open(out / "logs.tar.gz") as logs:
        assert "./bench-steps.log" in logs.getnames()


@pytest.mark.parametrize("stop", ["limit", "signal"])
def test_a_stopped_part_is_named(stop: str, suite: Any, tmp_path: Path) -> None:
    process = suite("--only", "bench-generate,memcheck", PYGEN_SUITE_SECONDS="7" if stop == "limit" else "60")
    if stop == "signal":
        while not (tmp_path / "pid").exists():
            time.sleep(0.05)
        process.terminate()
    process.communicate()
    assert has_ended(int((tmp_path / "pid").read_text()))
    assert process.returncode == 1
    summary = (tmp_path / "out" / "summary.txt").read_text()
    if stop == "limit":
        assert "bench-generate   STOPPED at its limit of 7 s: begun" in summary
        assert "memcheck         not run: no time left" in summary
    else:
        assert "bench-generate   STOPPED from outside" in summary


def test_commands_side_by_side(suite: Any, tmp_path: Path) -> None:
    process = suite("--only", "memcheck,racecheck")
    printed, _ = process.communicate()
    assert process.returncode == 1
    assert "memcheck         FAILED" in printed and "memcheck-verify_draft: FAILED with status 9" in printed
    assert "memcheck-sample" not in printed


def test_wrong_requests_are_refused(suite: Any, tmp_path: Path) -> None:
    assert suite("--only", "smok").wait() == 2
    assert suite("--device", "cuda").wait() == 2
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    seen = suite("--only", "smoke", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "an abacus" in seen.communicate()[0] and seen.returncode == 2
    assert suite("--only", "smoke", "--device", "cpu", PATH=f"{tmp_path}:{os.environ['PATH']}").wait() == 0


def test_commands_on_a_gpu(
    suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benches take the arguments that they get on a GPU, and stop where this machine has none."""
    for tool in ("ncu", "compute-sanitizer"):
        (tmp_path / tool).write_text(f'#!/bin/sh\necho {tool} "$@" >>"{tmp_path}/commands"\n')
        (tmp_path / tool).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    parts = "build,smoke,bench-steps,bench-generate,flushed,profile,racecheck,tests,tests-triton"
    suite("--only", parts, MACHINE="gpu: NVIDIA H200\ncapability: 90\n", PATH=path).communicate()
    commands = (tmp_path / "commands").read_text().splitlines()
    (profile,) = [command for command in commands if command.startswith("ncu")]
    assert "--clock-control none --profile-from-start off --section SpeedOfLight" in profile
    assert sum("--tool racecheck" in command for command in commands) == len(ops.DISPATCHERS)
    shares = [command.split("--share ")[1].split()[0] for command in commands if "benchmarks.gpu_smoke" in command]
    assert sorted(shares) == ["0/1", "0/3", "1/3", "2/3"]
    assert sum("-m pytest" in command for command in commands) == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for bench in (bench_gpu, bench_gpu_generate, gpu_flushed):
        (command,) = [command.split() for command in commands if command.startswith(f"-m {bench.__name__} ")]
        assert "--table" in command and bench.main(command[2:]) == 0
        assert capsys.readouterr().out == "not run: torch finds no CUDA device\n"


KILLED = """
import os, time
from benchmarks import bench_gpu
works = bench_gpu.quick_work
def first_then_wait(device, options):
    first, second, *_ = works(device, options)
    yield first
    yield second[0], lambda job: (print("second", flush=True), time.sleep(300))
bench_gpu.quick_work = first_then_wait
bench_gpu.main()
"""


def test_measured_cases_survive_a_kill(tmp_path: Path) -> None:
    command = (sys.executable, "-c", KILLED, "--quick", "--device", "cpu", "--quiet", "--results", str(tmp_path))
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        if line == "second\n":
            break
        lines.append(line)
    process.kill()
    process.wait()
    (path,) = tmp_path.glob("*.csv")
    rows = report.load_csv(path)
    assert [row.variant for row in rows] == ["copy", "transformers", "pygen cpu graph", "pygen cpu eager"]
    assert all(row.median_us for row in rows) and {row.check for row in rows[2:]} == {"ok"}
    assert "commit" in report.load_machine(path) and "pygen cpu graph: " in lines[0]


def test_times_of_calls_survive_a_kill_while_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def count(*arguments: object) -> gpu_counters.Activity:
        counted.append(arguments)
        if len(counted) == 2:
            raise KeyboardInterrupt
        return gpu_counters.Activity()

    monkeypatch.setattr(gpu_counters, "per_token", count)
    job = ("--models", "gpt2", "--modes", "greedy", "--batches", "1", "--prompts", "4")
    engines = ("--engines", "transformers", "eager")
    with pytest.raises(KeyboardInterrupt):
        bench_gpu_generate.main(("--quick", "--device", "cpu", "--quiet", "--results", str(tmp_path), *job, *engines))
    (path,) = tmp_path.glob("*.csv")
    copy, *rows = report.load_csv(path)
    assert copy.op == "copy" and [row.variant for row in rows] == ["transformers", "pygen eager"]
    assert all(row.tokens_per_s for row in rows) and rows[1].speedup and rows[1].check == "ok"


def test_a_backend_that_cannot_run_costs_its_case_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = ops.prepare_sample

    def prepare(logits: torch.Tensor, **knobs: Any) -> Any:
        if "top_k" in knobs:
            raise ImportError("no module named pygen.kernels")
        if "top_p" in knobs:
            raise RuntimeError("an illegal memory access")
        return honest(logits, **knobs)

    monkeypatch.setattr(bench_gpu, "prepare_sample", prepare)
    given = ("--quick", "--device", "cpu", "--quiet", "--threads", "1", "--budget", "0.01", "--results", str(tmp_path))
    assert bench_gpu.main(given) == 1
    (path,) = tmp_path.glob("*.csv")
    missing, red, *others = report.load_csv(path)
    assert missing.note == "not run: no module named pygen.kernels" and not missing.red
    assert red.check == "RuntimeError: an illegal memory access"
    assert {row.op for row in others if row.backend == "cpu" and row.median_us} == {"sample", "beam_step"}
    assert "Traceback" in capsys.readouterr().out
    # A rerun that cannot measure a case keeps its figures.
    monkeypatch.setattr(bench_gpu, "prepare_sample", lambda logits, **knobs: honest(logits[0, 0, 0], **knobs))
    bench_gpu.main(given)
    assert [row.median_us for row in report.load_csv(path) if row.settings == "greedy"] == [
        row.median_us for row in others if row.settings == "greedy"
    ]


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Leaves the named checks of the smoke test, since the whole takes too long here."""
    checks_of = gpu_smoke.checks_of

    def leave(*names: str) -> None:
        monkeypatch.setattr(gpu_smoke, "checks_of", lambda *_: (c for c in checks_of(*_) if c[0] in names))

    return leave


def test_smoke_passes_on_the_cpu(few_checks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("reorder_cache", "1000 replays", "assisted")
    few_checks(*names)
    assert gpu_smoke.main(("--device", "cpu", "--backend", "cpu")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines[:-1]] == list(names) and all("ok" in line for line in lines[:-1])


def test_smoke_prints_the_first_fault(
    few_checks: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = ops.token_logprobs

    def wrong(logits: torch.Tensor, token_ids: torch.Tensor, **knobs: Any) -> Any:
        return honest(logits * (2 if knobs["backend"] == "cpu" else 1), token_ids, **knobs)

    monkeypatch.setattr(gpu_small_ops, "token_logprobs", wrong)
    few_checks("token_logprobs", "reorder_cache")
    assert gpu_smoke.main(("--device", "cpu", "--backend", "cpu")) == 1
    out = capsys.readouterr().out
    assert out.index("FAULT") < out.index("first fault: token_logprobs\nTraceback") < out.index("ok  ")
    assert "token_logprobs at 3 x 20011 torch.bfloat16" in out and "Tensor-likes are not close" in out


def test_replays_must_draw_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(sweep: Any, device: torch.device) -> Any:
        sweep()
        return lambda: None

    monkeypatch.setattr(gpu_smoke, "captured", frozen)
    with pytest.raises(AssertionError, match="replay 1: output 0"):
        gpu_smoke.check_replays(torch.device("cpu"), "cpu", 20)


NCU = """==PROF== Connected to process 7
"ID","Kernel Name","Block Size","gpu__time_duration.sum","gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",\
"smsp__issue_active.avg.per_cycle_active","smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio","launch__registers_per_thread"
"","","","ns","%","inst/cycle","inst","inst","register/thread"
"0","at::cuda::spin_kernel(long)","(1, 1, 1)","900","0","0.1","0","0","16"
"1","void pygen::(anonymous namespace)::scan_rows<(DType)1>(SampleParams)","(256, 1, 1)",\
"11,500","83.25","0.5","1.5","6.25","64"
"2","finish_rows(SampleParams)","(256, 1, 1)","2,000","4","0.2","0","","40"
"3","at::cuda::spin_kernel(long)","(1, 1, 1)","900","0","0.1","0","0","16"
"4","select_continuations","(512, 1, 1)","20,000","50","0.3","2","1","64"
"""


def test_table_of_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "ncu.csv"
    path.write_text(NCU)
    assert gpu_profile.table(path, ["first row", "beams"])[2:] == [
        "| first row | pygen::scan_rows | 11.5 |  | 83.2 |  | 0.5 |  | 64 | long scoreboard 6.2, barrier 1.5 |",
        "| first row | finish_rows | 2 |  | 4 |  | 0.2 |  | 40 |  |",
        "| beams | select_continuations | 20 |  | 50 |  | 0.3 |  | 64 | barrier 2, long scoreboard 1 |",
    ]
    path.write_text("==ERROR== ERR_NVGPUCTRPERM\n")
    assert gpu_profile.main(("table", str(path))) == 1


def test_events_enclose_the_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of a stand-in count what ran before them."""
    ran: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.seen = [*ran]

        def elapsed_time(self, end: Event) -> float:
            assert self.seen[-1] == "before" and end.seen == [*self.seen, "call"]
            return 0.004

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: ran.append("synchronize"))
    times = gpu_flushed.gpu_times_us(lambda: ran.append("before"), lambda: ran.append("call"))
    assert times == [4.0] * gpu_flushed.CALLS and ran[-1] == "synchronize"


def test_flushed_calls_are_saved(tmp_path: Path) -> None:
    given = ("--quick", "--device", "cpu", "--quiet", "--threads", "1", "--results", str(tmp_path))
    assert gpu_flushed.main(given) == 0
    (path,) = tmp_path.glob("*.csv")
    rows = report.load_csv(path)
    assert [(row.op, row.cache) for row in rows] == [
        (op, cache) for op in ("sample", "sample", "beam_step") for cache in ("warm", "flushed")
    ]
    assert all(row.median_us for row in rows)
