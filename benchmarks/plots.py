"""Plots the results of a device: the speedup over transformers, and the ratio to the time of one read.

python -m benchmarks.plots benchmarks/results/<device>.csv     writes the .png beside it
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import BASELINE, Row
from benchmarks.report import load_csv, load_machine, short_label

BLUE, ORANGE, GREY, DARK = "#2a6fbb", "#e08a1e", "#b8bec6", "#3c4248"


def plot_results(rows: Sequence[Row], machine: Mapping[str, str], path: Path) -> Path | None:
    """Plots the rows of `sample`, `beam_step` and `generate` into `path`; it prefers the rows of a table.

    Returns None without matplotlib, or if no row can be plotted.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    bars = _step_rows(rows)
    loops = [row for row in rows if row.op == "generate" and row.forward_us]
    if not bars and not loops:
        return None
    heights = [max(0.42 * len(bars) + 0.9, 1.6) if bars else 0.01, 0.36 * len(loops) + 0.9 if loops else 0.01]
    figure = Figure(figsize=(12.5, sum(heights) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=heights, width_ratios=(1, 1))
    if bars:
        left = figure.add_subplot(grid[0, 0])
        _draw_ratios(left, bars)
        _draw_times(figure.add_subplot(grid[0, 1], sharey=left), bars, rows)
    if loops:
        _draw_loops(figure.add_subplot(grid[1, :]), loops)
    figure.suptitle(
        f"pygen {machine.get('pygen', '')} against transformers {machine.get('transformers', '')}", fontsize=14
    )
    figure.supxlabel(_footer(bars, machine), fontsize=8, color=DARK)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    figure.savefig(partial, dpi=110, format="png", metadata={"Software": None})
    partial.replace(path)
    return path


def _step_rows(rows: Sequence[Row]) -> list[Row]:
    found: list[Row] = []
    for op in ("sample", "beam_step"):
        suites = (f"{op}-{size}" for size in ("table", "table-warm", "full", "quick"))
        of_suites = ([row for row in rows if row.suite == suite and row.speedup is not None] for suite in suites)
        found += next(filter(None, of_suites), [])
    return found


def _footer(bars: Sequence[Row], machine: Mapping[str, str]) -> str:
    cache = f", {bars[0].cache} cache, float32" if bars else ""
    command = "make bench"
    device, threads, isa, torch, commit, date = (
        machine.get(key, "?") for key in ("device", "threads", "isa", "torch", "commit", "date")
    )
    return f"{device}, {threads} threads, isa {isa}{cache}, torch {torch}, commit {commit}, {date}\n{command}"


def _label(row: Row) -> str:
    settings = short_label(row.settings)
    noise = row.variant.removeprefix("pygen").strip()
    shape = f"{row.rows} x {row.vocab_size:,}"
    where = "" if row.distribution == "normal1" else f", {row.distribution} logits"
    return f"{settings}\n{shape}{where}{', ' + noise if noise else ''}"


def _figure_text(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _draw_ratios(axes: Any, bars: Sequence[Row]) -> None:
    positions = range(len(bars))
    values = [row.speedup or 0.0 for row in bars]
    axes.barh(positions, values, color=BLUE, height=0.62)
    for y, row, value in zip(positions, bars, values, strict=True):
        goal = next((word for word in row.target.split() if word.endswith("x")), "")
        at = float(goal.strip(">=x")) if goal else 0.0
        end = max(value, at) if at < 1.5 * value else value
        axes.text(end * 1.06, y, f"{_figure_text(value)}x", va="center", fontsize=9, color=DARK)
        if goal:
            axes.plot([at, at], [y - 0.4, y + 0.4], color=ORANGE, linewidth=2.5)
    axes.plot([], [], color=ORANGE, linewidth=2.5, label="target")
    axes.axvline(1, color=DARK, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(0.8, max([*values, 10]) * 2.2)
    axes.set_yticks(list(positions), [_label(row) for row in bars], fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than transformers (log scale)")
    axes.set_title("Logits to tokens, one step", fontsize=11, loc="left")
    _legend(axes, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    _tidy(axes)


def _draw_times(axes: Any, bars: Sequence[Row], rows: Sequence[Row]) -> None:
    positions = list(range(len(bars)))
    read = [_matching(row, rows, "read") for row in bars]
    theirs = [_matching(row, rows, BASELINE) for row in bars]
    ours = [row.median_us for row in bars]
    for y, low, high in zip(positions, read, theirs, strict=True):
        if low and high:
            axes.plot([low, high], [y, y], color=GREY, linewidth=1, zorder=1)
    marks = (
        (read, "|", GREY, "one read of the logits"),
        (ours, "o", BLUE, "pygen"),
        (theirs, "s", DARK, "transformers"),
    )
    for values, marker, colour, label in marks:
        known = [(value, y) for value, y in zip(values, positions, strict=True) if value]
        size, width = (220, 3) if marker == "|" else (48, 1)
        axes.scatter(
            *zip(*known, strict=True), marker=marker, s=size, linewidths=width, color=colour, label=label, zorder=2
        )
    for y, row in zip(positions, bars, strict=True):
        if row.times_read is not None and row.median_us is not None:
            axes.annotate(
                f"{_figure_text(row.times_read)} reads", (row.median_us, y), xytext=(0, 7),
                textcoords="offset points", ha="center", fontsize=8, color=BLUE,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.tick_params(labelleft=False)
    axes.set_xlabel("time of a step, median (log scale)")
    axes.set_title("Time", fontsize=11, loc="left")
    _legend(axes, 3)
    axes.xaxis.set_major_formatter(lambda value, _: _time_text(value))
    _tidy(axes)


def _matching(row: Row, rows: Sequence[Row], variant: str) -> float | None:
    """Returns the time of another variant of the same case."""

    def case(of: Row) -> tuple[object, ...]:
        return of.suite, of.op, of.settings, of.distribution, of.rows, of.vocab_size, of.dtype

    return next((other.median_us for other in rows if other.variant == variant and case(other) == case(row)), None)


def _draw_loops(axes: Any, loops: Sequence[Row]) -> None:
    positions = list(range(len(loops)))
    forward = [(row.forward_us or 0.0) / 1e3 for row in loops]
    outside = [(row.outside_us or 0.0) / 1e3 for row in loops]
    colours = [DARK if row.variant == BASELINE else BLUE for row in loops]
    axes.barh(positions, forward, color=GREY, height=0.6, label="in the model's forward")
    axes.barh(positions, outside, left=forward, color=colours, height=0.6)
    for y, row, inside, rest in zip(positions, loops, forward, outside, strict=True):
        share = f"outside the forward {rest:.2f} ms = {row.outside_percent or 0:.1f}% of it"
        text = f"{row.tokens_per_s or 0:,.0f} tokens/s, {share}"
        axes.text((inside + rest) * 1.01, y, text, va="center", fontsize=8.5, color=DARK)
    axes.set_yticks(
        positions, [f"{row.variant}, {row.rows} prompt{'s' * (row.rows > 1)}" for row in loops], fontsize=8.5
    )
    axes.invert_yaxis()
    axes.set_xlim(0, max(a + b for a, b in zip(forward, outside, strict=True)) * 1.6)
    axes.set_xlabel("milliseconds a token step, median")
    axes.set_title("generate() with SmolLM2-135M-Instruct: the forward in grey, then the rest", fontsize=11, loc="left")
    _tidy(axes)


def _legend(axes: Any, columns: int) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.995), ncols=columns, fontsize=8, frameon=False, borderpad=0)


def _time_text(us: float) -> str:
    return f"{us:g} us" if us < 1e3 else f"{us / 1e3:g} ms" if us < 1e6 else f"{us / 1e6:g} s"


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color=GREY, alpha=0.35, linewidth=0.6)
    axes.set_axisbelow(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    args = parser.parse_args()
    print(plot_results(load_csv(args.csv), load_machine(args.csv), args.csv.with_suffix(".png")))


if __name__ == "__main__":
    main()
