"""Writes the tables of GPU results in README.md and docs/benchmarks.md, from the files in benchmarks/results.

python -m benchmarks.gpu_tables                    after copying the CSV of gpu_suite.sh into benchmarks/results
python -m benchmarks.gpu_tables --results OUT --print

A table is between `<!-- gpu: NAME -->` and `<!-- /gpu -->`. What was not measured says "not run".
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import bench_beam_step, bench_gpu, gpu_jobs, gpu_models
from benchmarks.baseline import Settings
from benchmarks.harness import BASELINE, Row
from benchmarks.machine import REPOSITORY
from benchmarks.report import RESULTS, load_csv, load_machine

NOT_RUN = "not run"
PAGES = {"README.md": ("summary",), "docs/benchmarks.md": ("steps", "calls")}
NAMES = {"cuda": "CUDA", "triton": "Triton"}
WORDS = {
    bench_gpu.FIRST: "penalty over 1,024 ids, temperature, top-k 50, top-p .9",
    bench_gpu.NUCLEUS: "top-p .9 alone",
    bench_gpu.GREEDY: "greedy",
    bench_gpu.FREE: "no filter",
}
CALLS = (
    gpu_jobs.Job("gpt2", "greedy", 1, 32),
    gpu_jobs.Job("gpt2", "sampling", 1, 32),
    gpu_jobs.Job("llama", "greedy", 1, 32),
    gpu_jobs.Job("llama", "sampling", 1, 32),
    gpu_jobs.Job("gpt2", "beams", 8, 32),
)
# Columns of the table of calls: heading, engine, field of its row and of its target, digits, unit.
FIGURES = (
    ("speedup", "pygen", "speedup", 1, "x"),
    ("compiled over compiled", "compiled", "static_speedup", 1, "x"),
    ("% of a copy's bandwidth", "pygen", "percent_of_copy", 0, ""),
    ("launches beyond the forward", "pygen", "launches_beyond_forward", 1, ""),
    ("waits", "pygen", "syncs_beyond_forward", 1, ""),
    ("capture", "pygen", "capture_s", 2, " s"),
)


class Results(NamedTuple):
    """The rows of one GPU, and its machine block; both are empty without results."""

    rows: Sequence[Row] = ()
    machine: dict[str, str] = {}  # noqa: RUF012

    @property
    def title(self) -> str:
        if not self.rows:
            return "No results yet: these rows wait for a GPU."
        found = self.machine
        versions = (f"{name} {found.get(name, '?')}" for name in ("driver", "cuda", "torch", "triton", "transformers"))
        return (
            ", ".join([found.get("gpu", "?"), *versions, f"commit {found.get('commit')}", found.get("date", "?")]) + "."
        )

    def find(self, suite: str, variant: str, op: str, settings: str, rows: int, dtype: str) -> Row | None:
        wanted = (variant, op, settings, rows, dtype)
        for row in self.rows:
            if row.suite.startswith(suite) and (row.variant, row.op, row.settings, row.rows, row.dtype) == wanted:
                return row
        return None


def load(folder: Path) -> list[Results]:
    """Returns the results of every GPU in `folder`, or one without rows."""
    found = []
    for path in sorted(folder.glob("*.csv")):
        rows = [
            row for row in load_csv(path) if re.match(r"gpu\S*-table\b", row.suite) and row.device.startswith("cuda")
        ]
        if rows:
            found.append(Results(rows, load_machine(path)))
    return found or [Results()]


def cell(row: Row | None, field: str, digits: int, target: float | None = None, unit: str = "") -> str:
    """Returns a figure of `row`, with its target in brackets."""
    value = None if row is None else getattr(row, field)
    limit = "" if target is None else f"{target:g}{unit}"
    if row is not None and row.red:
        return "wrong"
    if value is None:
        return NOT_RUN + (f" ({limit})" if limit else "")
    least = field in ("speedup", "static_speedup", "percent_of_copy")
    missed = target is not None and (value < target if least else value > target)
    return f"{value:,.{digits}f}{unit}" + (f" ({limit}{', missed' if missed else ''})" if limit else "")


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def step_lines(results: Results, targets: bench_gpu.Targets) -> Iterator[str]:
    """Yields a line per setting of `sample`: CUDA graph replay at each number of rows."""
    for (backend, settings, dtype), limits in targets.items():
        name = str(dtype).removeprefix("torch.")
        cells = []
        for rows, limit in zip(bench_gpu.BATCHES, limits, strict=True):
            row = results.find("gpu-table", f"pygen {backend} graph", "sample", settings.label, rows, name)
            cells.append(cell(row, "median_us", 1, limit))
        yield line(f"{NAMES[backend]} `sample`, {WORDS[settings]}{'' if name == 'bfloat16' else f', {name}'}", *cells)


def flushed_lines(results: Results) -> Iterator[str]:
    for settings in (bench_gpu.FIRST, bench_gpu.NUCLEUS, bench_gpu.GREEDY):
        cells = []
        for rows in bench_gpu.BATCHES:
            row = results.find("gpu-flushed", "pygen cuda flushed", "sample", settings.label, rows, "bfloat16")
            cells.append(cell(row, "median_us", 1))
        yield line(f"one CUDA call after a flush of the cache, {WORDS[settings]}", *cells)


def beam_lines(results: Results) -> Iterator[str]:
    spec = bench_beam_step.Spec(Settings(do_sample=False), 1, 64, bench_gpu.BEAM_VOCAB)
    for backend, limit in bench_gpu.BEAMS_US.items():
        row = results.find("gpu-table", f"pygen {backend} graph", "beam_step", spec.label, 64, "bfloat16")
        found = cell(row, "median_us", 1, limit)
        yield line(f"{NAMES[backend]} `beam_step`, 64 beams, vocabulary 128,256", "", "", found, "")


def many(rows: int) -> str:
    return f"{rows} row{'s' * (rows > 1)}"


def head(text: str) -> list[str]:
    return [line(text, *map(many, bench_gpu.BATCHES)), "|" + " --- |" * (1 + len(bench_gpu.BATCHES))]


def steps(results: Results) -> list[str]:
    return [
        results.title,
        "",
        *head("us (target); replay of a CUDA graph, vocabulary 151,936, bfloat16"),
        *step_lines(results, bench_gpu.US),
        *beam_lines(results),
        *step_lines(results, bench_gpu.LATER_US),
        *flushed_lines(results),
        *reasons(results),
    ]


def reasons(results: Results) -> Iterator[str]:
    """Yields why rows are missing or wrong."""
    notes = {row.check if row.red else row.note for row in results.rows if row.red or row.note.startswith(NOT_RUN)}
    if notes:
        yield ""
        yield from (f"- {note}" for note in sorted(notes))


def calls(results: Results) -> list[str]:
    heads = ("tokens/s; captured steps, bfloat16", BASELINE, "pygen", *(figure[0] for figure in FIGURES))
    lines = [results.title, "", line(*heads), "|" + " --- |" * len(heads)]
    for job in CALLS:

        def row_of(engine: str, job: gpu_jobs.Job = job) -> Row | None:
            variant, _ = gpu_jobs.ENGINES[engine]
            return results.find("gpu-generate-table", variant, "generate", str(job), job.batch, "bfloat16")

        cells = [cell(row_of(engine), "tokens_per_s", 0) for engine in ("transformers", "pygen")]
        for _, engine, field, digits, unit in FIGURES:
            limit = getattr(gpu_jobs.target_of(job, engine), "copy_percent" if field == "percent_of_copy" else field)
            cells.append(cell(row_of(engine), field, digits, limit, unit))
        name = f"{gpu_models.MODELS[job.model][0]}, {'4 beams' if job.mode == 'beams' else job.mode}"
        lines.append(line(f"{name}, {many(job.batch)}", *cells))
    return lines


def summary(results: Results) -> list[str]:
    """Returns the README's lines: a table, or a sentence while nothing was measured."""
    if not results.rows:
        return [
            "On a GPU the same kernels exist in CUDA and in Triton. We have not had GPU access yet, so they are tested",
            "on the CPU only; the [benchmarks page](docs/benchmarks.md#on-a-gpu) lists what was not run.",
        ]
    text = "us per step on a GPU, vocabulary 151,936, bfloat16"
    return [*head(text), *step_lines(results, bench_gpu.US), *beam_lines(results), "", results.title]


TABLES = {"summary": summary, "steps": steps, "calls": calls}


def table(name: str, every: Iterable[Results]) -> str:
    return "\n\n".join("\n".join(TABLES[name](results)) for results in every)


def replaced(text: str, name: str, content: str) -> str:
    """Returns `text` with `content` between the markers of `name`. Raises ValueError unless they are there once."""
    pattern = re.compile(rf"(<!-- gpu: {name} -->\n).*?(\n<!-- /gpu -->)", re.DOTALL)
    made, count = pattern.subn(lambda match: match[1] + content + match[2], text)
    if count != 1:
        raise ValueError(f"the page must have one `<!-- gpu: {name} -->`, found {count}")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Writes the tables of GPU results.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--print", action="store_true", help="print the tables, and write no page")
    args = parser.parse_args(arguments)
    found = load(args.results)
    for page, names in PAGES.items():
        path = REPOSITORY / page
        text = path.read_text("utf-8")
        for name in names:
            if args.print:
                print(table(name, found), end="\n\n")
            else:
                text = replaced(text, name, table(name, found))
        if not args.print:
            path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
