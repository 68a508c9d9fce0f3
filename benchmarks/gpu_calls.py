"""One job of `bench_gpu_generate`: each engine's first call, the times of all in turn, then their counts.

Each engine first runs alone, which gives tokens, peak memory, seconds of the capture and memory after `pygen.release`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch

import pygen
from benchmarks import gpu_counters, gpu_jobs, gpu_models, gpu_tokens
from benchmarks.gpu_jobs import CAPTURED, ENGINES, MODES, NO_TIME, STATIC, Job
from benchmarks.harness import BASELINE, Options, Row, Target, compare
from benchmarks.inputs import random_ids

FEWER_TOKENS = 16
MOST_ROUNDS = 15
SEED = 20


class Stop(Exception):
    """Ends a call at its first token."""


class FirstToken(pygen.BaseStreamer):
    """Ends a call at its first new token. The prompt, or the decoder's start token, arrives before it."""

    def __init__(self) -> None:
        self._seen = 0

    def put(self, value: torch.Tensor) -> None:
        self._seen += 1
        if self._seen == 2:
            raise Stop

    def end(self) -> None:
        pass


@dataclasses.dataclass
class Run:
    """An engine in a job: its call, its row, and the tokens of its first call."""

    engine: str
    row: Row
    call: Callable[..., torch.Tensor]
    tokens: torch.Tensor | None = None
    captured: gpu_counters.Watched | None = None
    total_s: list[float] = dataclasses.field(default_factory=list)
    first_s: list[float] = dataclasses.field(default_factory=list)

    @property
    def usable(self) -> bool:
        return self.tokens is not None and not self.row.red


class Bench:
    """Runs one job, from its prompt to its rows."""

    def __init__(
        self, job: Job, engines: Sequence[str], model: Any, new_tokens: int, roof: float, options: Options
    ) -> None:
        self.job, self.model, self.new_tokens, self.roof, self.options = job, model, new_tokens, roof, options
        self.device = model.device
        self.prompt = random_ids(job.batch, job.prompt, model.config.vocab_size).to(self.device)
        self.settings = {**MODES[job.mode], "max_new_tokens": new_tokens}
        self.runs = [self._run(engine) for engine in engines]

    def _run(self, engine: str) -> Run:
        row = gpu_jobs.blank_row(self.job, engine, self.model.config, self.options, self.device)
        return Run(engine, row, self._call_of(engine, self.model))

    def _call_of(self, engine: str, model: Any) -> Callable[..., torch.Tensor]:
        variant, extra = ENGINES[engine]
        theirs = variant in (BASELINE, STATIC)
        generate: Any = model.generate if theirs else functools.partial(pygen.generate, model)
        given = {"input_ids": self.prompt, "attention_mask": torch.ones_like(self.prompt), **self.settings, **extra}

        def call(**changes: Any) -> torch.Tensor:
            torch.manual_seed(SEED)
            made: torch.Tensor = generate(**{**given, **changes})
            return made

        return call

    def rows(self, deadline: float, save: Callable[[list[Row]], object]) -> list[Row]:
        """Measures all engines. It calls `save` as soon as there are times, and again after each engine's counts."""
        self._settle()
        for run in self.runs:
            if time.monotonic() > deadline:
                run.row.note = NO_TIME
            else:
                self._guarded(run, functools.partial(self._use_first, run))
        self._time()
        rows = [run.row for run in self.runs]
        self._check_tokens()
        self._compare()
        save(rows)
        for run in self.runs:
            if run.usable:
                self._guarded(run, functools.partial(self._count, run))
                self._compare()
                save(rows)
        forget(self.model)
        return rows

    def _settle(self) -> None:
        """Makes libraries allocate workspaces and load kernels first, so that no engine pays for them."""
        for generate in (self.model.generate, functools.partial(pygen.generate, self.model, runtime="eager")):
            # An error here comes again when the engine is measured.
            with suppress(Exception):
                generate(input_ids=self.prompt[:1], **{**self.settings, "max_new_tokens": 2})

    def _reason_against(self, run: Run) -> str:
        """Returns why a captured engine would only repeat the eager one, or ""."""
        if run.engine not in CAPTURED:
            return ""
        found = pygen.explain(self.model, self.prompt, **{**self.settings, **ENGINES[run.engine][1]}).runtime
        return "" if found.startswith("graph") else f"not run: {found.removeprefix('eager: ')}"

    def _guarded(self, run: Run, work: Callable[[], object]) -> None:
        """Runs `work` and notes its error, so that one failing engine does not hide the others."""
        try:
            work()
        except torch.cuda.OutOfMemoryError as error:
            run.tokens = None
            run.row.note = f"not run: {str(error).splitlines()[0]}"
            forget(self.model)
        except Exception as error:
            run.row.check = f"{type(error).__name__}: {error}".splitlines()[0]

    def _use_first(self, run: Run) -> None:
        row, device = run.row, self.device
        row.note = self._reason_against(run)
        if row.note:
            return
        before = gpu_counters.allocated_bytes(device)

        def first() -> None:
            run.tokens = run.call()

        with gpu_counters.watched_captures(device) as watched:
            row.memory_bytes = gpu_counters.peak_bytes(first, device)
        assert run.tokens is not None
        run.tokens = run.tokens.cpu()
        if run.engine not in CAPTURED:
            return
        if not watched.count:
            raise RuntimeError("nothing was captured")
        run.captured, row.capture_s = watched, watched.seconds
        pygen.release(self.model)
        self._settle()
        if device.type == "cuda":
            row.unreleased_bytes = gpu_counters.allocated_bytes(device) - before

    def _time(self) -> None:
        """Times every engine once per round, in random order: a whole call, and one up to its first token."""
        for run in self.runs:
            if run.captured is not None:
                # Capture again, because the first capture was released.
                self._guarded(run, run.call)
        runs = [run for run in self.runs if run.usable]
        start, rounds = time.monotonic(), 0
        shuffler = random.Random(self.options.seed)
        while runs and rounds < MOST_ROUNDS:
            if rounds >= self.options.min_rounds and time.monotonic() - start > self.options.budget_s:
                break
            shuffler.shuffle(runs)
            for run in runs:
                self._guarded(run, functools.partial(self._time_once, run))
            runs = [run for run in runs if run.usable]
            rounds += 1
        for run in runs:
            row, total, first = run.row, statistics.median(run.total_s), statistics.median(run.first_s)
            low, _, high = statistics.quantiles(run.total_s, n=4)
            row.calls, row.spread_percent = rounds, 100 * (high - low) / total
            row.tokens_per_s = self.job.batch * self.new_tokens / total
            row.first_token_us, row.median_us = 1e6 * first, 1e6 * (total - first) / (self.new_tokens - 1)

    def _time_once(self, run: Run) -> None:
        run.total_s.append(self._seconds(run.call))
        run.first_s.append(self._seconds(functools.partial(self._first_token, run)))

    def _first_token(self, run: Run) -> None:
        if self.job.mode == "beams":
            run.call(max_new_tokens=1)
            return
        try:
            run.call(streamer=FirstToken())
        except Stop:
            return
        raise RuntimeError("the streamer saw no token")

    def _seconds(self, call: Callable[[], object]) -> float:
        gpu_counters.synchronize(self.device)
        start = time.perf_counter()
        call()
        gpu_counters.synchronize(self.device)
        return time.perf_counter() - start

    def _count(self, run: Run) -> None:
        """Counts launches and waits of the host per token, and those outside the model's forward."""
        row, model = run.row, self.model
        # A captured engine keeps its cache, which is sized for calls of this length.
        max_tokens = self.new_tokens if run.engine in CAPTURED else min(self.new_tokens, 3 * FEWER_TOKENS // 2)
        min_tokens = max(2, max_tokens - FEWER_TOKENS)
        marked = run.engine in ("transformers", "eager")
        with gpu_counters.marked_forwards(model) if marked else nullcontext():
            found = gpu_counters.per_token(
                lambda count: run.call(max_new_tokens=count), max_tokens, min_tokens, self.device
            )
        if self.device.type != "cuda":
            return
        row.launches_per_token, row.syncs_per_token = found.launches + found.graphs, found.waits
        if marked:
            row.launches_beyond_forward = found.launches - found.launches_in_forward
            row.syncs_beyond_forward = found.waits - found.waits_in_forward
        elif run.captured is not None:
            # The captured step's kernels outside the forward, plus the host's launches beside the replay.
            row.launches_beyond_forward = run.captured.rest.kernels + found.launches
            row.syncs_beyond_forward = found.waits

    def _check_tokens(self) -> None:
        baseline = next((run for run in self.runs if run.engine == "transformers" and run.usable), None)
        for run in self.runs:
            if baseline is not None and run.usable and run is not baseline:
                self._guarded(run, functools.partial(self._check, run, baseline))

    def _compare(self) -> None:
        """Fills in ratios, the copy roof and the targets, as far as figures are there."""
        found = {run.engine: run for run in self.runs}
        baseline, static = found.get("transformers"), found.get("static")
        job, beams = self.job, self.settings.get("num_beams", 1)
        read = gpu_models.weight_bytes(self.model)
        read += gpu_models.cache_bytes(self.model, job.batch * beams, job.prompt, self.new_tokens)
        for run in self.runs:
            row = run.row
            if not run.usable:
                continue
            row.bytes_moved, row.gb_per_s = read, read / (row.median_us or math.inf) / 1e3
            compare(row, Target(), self.roof * 1e3, None, None)
            if not row.red and row.tokens_per_s and run is not baseline:
                row.speedup = _ratio(row, baseline)
                row.static_speedup = _ratio(row, static) if run is not static else None
        for run in self.runs:
            if not run.row.note.startswith("not run"):
                compare(run.row, gpu_jobs.target_of(job, run.engine), None, None, None)

    def _check(self, run: Run, baseline: Run) -> None:
        assert run.tokens is not None and baseline.tokens is not None
        row, ours, theirs = run.row, run.tokens, baseline.tokens
        row.agreeing_percent = gpu_tokens.agreeing_percent(ours, theirs, self.new_tokens)
        wrong = ""
        if row.agreeing_percent < 100:
            wrong = gpu_tokens.fault(
                self.model, self.prompt, ours.to(self.device), theirs.to(self.device), self.settings
            )
            if not wrong and self.job.mode == "beams":
                precise = copy.deepcopy(self.model).float()
                found = [self._call_of(engine, precise)() for engine in (run.engine, baseline.engine)]
                wrong = gpu_tokens.fault_of_search(*found)
                forget(precise)
            row.note = wrong or "tokens differ where bfloat16 rounds the scores otherwise"
        if run.engine in ("pygen", "eager", "compiled"):
            row.check = wrong or "ok"


def _ratio(row: Row, other: Run | None) -> float | None:
    if other is None or not other.usable or not other.row.tokens_per_s or not row.tokens_per_s:
        return None
    return row.tokens_per_s / other.row.tokens_per_s


def forget(model: Any) -> None:
    """Drops what calls keep for `model`: captures, transformers' static cache."""
    pygen.release(model)
    vars(model).pop("_cache", None)
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
