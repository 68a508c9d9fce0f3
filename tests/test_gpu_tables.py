"""The tables of GPU results are written from the files in benchmarks/results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bench_gpu, gpu_jobs, gpu_tables, report
from benchmarks.harness import Row
from benchmarks.machine import REPOSITORY

MACHINE = {"gpu": "NVIDIA H200", "driver": "580.1", "torch": "2.11.0", "commit": "abc", "date": "2026-12-01"}


def row(**changes: object) -> Row:
    values: dict[str, object] = {
        "suite": "gpu-table sample", "op": "sample", "settings": bench_gpu.FIRST.label, "distribution": "normal1",
        "rows": 1, "vocab_size": bench_gpu.VOCAB, "dtype": "bfloat16", "variant": "pygen cuda graph", "backend": "cuda",
        "check": "ok", "device": "cuda",
    }  # fmt: skip
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def call(job: gpu_jobs.Job, variant: str, **changes: object) -> Row:
    suite = f"gpu-generate-table {job}, {job.batch}"
    return row(suite=suite, op="generate", settings=str(job), rows=job.batch, variant=variant, **changes)


@pytest.mark.parametrize("page", gpu_tables.PAGES)
def test_pages_have_the_tables_of_the_results(page: str) -> None:
    text = (REPOSITORY / page).read_text("utf-8")
    found = gpu_tables.load(report.RESULTS)
    for name in gpu_tables.PAGES[page]:
        assert gpu_tables.replaced(text, name, gpu_tables.table(name, found)) == text


def test_without_results_nothing_is_claimed(tmp_path: Path) -> None:
    report.save_csv(tmp_path / "cpu.csv", [row(suite="gpu-quick sample", device="cpu", median_us=3.0)], {})
    (found,) = gpu_tables.load(tmp_path)
    for name in ("steps", "calls"):
        for line in gpu_tables.table(name, [found]).splitlines()[4:]:
            assert {cell.split(" (")[0] for cell in line.strip("| ").split(" | ")[1:]} <= {"not run", "", " "}


def test_figures_stand_beside_their_targets(tmp_path: Path) -> None:
    llama = gpu_jobs.Job("llama", "greedy", 1, 32)
    rows = [
        row(median_us=7.44),
        row(rows=64, median_us=13.0),
        row(rows=256, median_us=30.0, check="row 3: token 5, the reference gives 7"),
        row(suite="gpu-flushed-table sample", variant="pygen cuda flushed", rows=8, median_us=9.94),
        row(variant="pygen triton graph", backend="triton", check="", note="not run: no module named triton"),
        call(llama, "transformers", tokens_per_s=100.0),
        call(llama, "pygen", tokens_per_s=1234.5, speedup=4.5, percent_of_copy=50.0, launches_beyond_forward=1.0),
    ]
    report.save_csv(tmp_path / "nvidia-h200.csv", rows, MACHINE)
    found = gpu_tables.load(tmp_path)
    steps, calls = (gpu_tables.table(name, found).splitlines() for name in ("steps", "calls"))
    assert steps[0].startswith("NVIDIA H200, driver 580.1, cuda ?, torch 2.11.0") and "2026-12-01" in steps[0]
    assert steps[4].endswith("| 7.4 (8) | not run (8) | 13.0 (12, missed) | wrong |")
    assert any("flush" in line and "| not run | 9.9 | not run |" in line for line in steps)
    assert steps[-2:] == ["- not run: no module named triton", "- row 3: token 5, the reference gives 7"]
    (line,) = [line for line in calls if line.startswith("| Llama 1B, greedy")]
    assert "| 100 | 1,234 | 4.5x (5x, missed) | not run (1.3x) | 50 (45) | 1.0 (1) | not run (0) |" in line
    assert "7.4 (8)" in gpu_tables.table("summary", found)


def test_a_page_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="one `<!-- gpu: steps -->`, found 0"):
        gpu_tables.replaced("# Page\n", "steps", "x")
