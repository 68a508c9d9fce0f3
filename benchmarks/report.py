"""Prints rows to the terminal, and writes and reads their CSV files."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness import Row, geometric_mean

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = [field.name for field in dataclasses.fields(Row)]
_TYPES = typing.get_type_hints(Row)
_SHORT = (
    ("temperature", "temp"), ("repetition_penalty", "rep"), ("no_repeat_ngram_size", "no n-gram"), ("top_", "top-"),
    ("min_p", "min-p"), ("typical_p", "typical"), ("epsilon_cutoff", "epsilon"), ("eta_cutoff", "eta"),
)  # fmt: skip
_CASE = ("op", "settings", "logits")
_SENTENCES = ("target", "met", "check", "note")
RESTLESS_PERCENT = 20.0
RED, GREEN, DIM = "red", "green", "bright_black"


def short_label(settings: str) -> str:
    """Shortens the label of settings to fit a table or a plot."""
    for long, short in _SHORT:
        settings = settings.replace(long, short)
    return settings


def _number(value: float | int | None, digits: int = 1, unit: str = "") -> str:
    if value is None:
        return ""
    return f"{value:,.{digits}f}{unit}" if abs(value) < 1000 else f"{value:,.0f}{unit}"


def _cells(row: Row) -> dict[str, str]:
    spread = "" if row.spread_percent is None else f" ±{row.spread_percent / 2:.0f}%"
    return {
        "op": row.op,
        "settings": short_label(row.settings),
        "logits": f"{row.rows} x {row.vocab_size} {row.dtype} {row.distribution}",
        "variant": row.variant,
        "backend": row.backend,
        "median us": _number(row.median_us) + spread,
        "MB": _number(None if row.bytes_moved is None else row.bytes_moved / 1e6),
        "GB/s": _number(row.gb_per_s),
        "% copy": _number(row.percent_of_copy),
        "x read": _number(row.times_read, 2),
        "vs transformers": _number(row.speedup, 1, "x"),
        "vs flashinfer": _number(row.flashinfer_speedup, 1, "x"),
        "vs static": _number(row.static_speedup, 1, "x"),
        "tokens/s": _number(row.tokens_per_s),
        "first token us": _number(row.first_token_us),
        "forward us": _number(row.forward_us),
        "outside us": _number(row.outside_us),
        "% outside": _number(row.outside_percent, 2),
        "outside vs transformers": _number(row.outside_speedup, 1, "x"),
        "cache moves": _number(row.cache_share, 3),
        "memory KiB": _number(None if row.memory_bytes is None else row.memory_bytes / 1024, 0),
        "launches/token": _number(row.launches_per_token),
        "syncs/token": _number(row.syncs_per_token),
        "launches beyond": _number(row.launches_beyond_forward),
        "syncs beyond": _number(row.syncs_beyond_forward),
        "capture s": _number(row.capture_s, 2),
        "unreleased": _number(row.unreleased_bytes, 0),
        "% equal": _number(row.agreeing_percent, 2),
        "target": row.target,
        "met": row.met,
        "check": row.check,
        "note": row.note,
    }


def print_rows(rows: Sequence[Row]) -> None:
    """Prints the table without empty columns, in colour if rich is installed."""
    cells = [_cells(row) for row in rows]
    for line, before in reversed(list(zip(cells[1:], cells, strict=False))):
        if all(line[head] == before[head] for head in _CASE):
            line.update(dict.fromkeys(_CASE, ""))
    heads = [head for head in _cells(rows[0]) if any(line[head] for line in cells)] if rows else []
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _print_plain(heads, cells)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    text = {*_CASE, "variant", "backend", *_SENTENCES}
    for head in heads:
        table.add_column(head, justify="left" if head in text else "right", no_wrap=head not in _SENTENCES)
    for row, line in zip(rows, cells, strict=True):
        style = RED if row.red else DIM if row.is_floor else GREEN if row.met == "yes" else None
        table.add_row(*(line[head] for head in heads), style=style)
    Console(width=None if sys.stdout.isatty() else 260).print(table)


def _print_plain(heads: Sequence[str], cells: Sequence[Mapping[str, str]]) -> None:
    widths = {head: max([len(head), *(len(line[head]) for line in cells)]) for head in heads}
    print("  ".join(head.ljust(widths[head]) for head in heads))
    for line in cells:
        print("  ".join(line[head].ljust(widths[head]) for head in heads))


def line_of(row: Row) -> str:
    """Describes a row in one line, for a log that may end at any time."""
    shape = f"{row.rows} x {row.vocab_size} {row.dtype}"
    time = f"{_number(row.median_us)} us" if row.median_us is not None else ""
    found = ", ".join(filter(None, (time, row.note)))
    speedup = f", {row.speedup:.1f}x transformers" if row.speedup else ""
    wanted = f"; {row.target}: {row.met}" if row.target else ""
    red = f"; RED {row.check}" if row.red else ""
    return f"{row.op} [{short_label(row.settings)}] {shape}, {row.variant}: {found}{speedup}{wanted}{red}"


def print_summary(rows: Sequence[Row]) -> None:
    mean = geometric_mean(row.speedup for row in rows if row.speedup is not None)
    if mean is not None:
        count = sum(row.speedup is not None for row in rows)
        print(f"geometric mean over {count} rows: {mean:.1f}x transformers")
    wanted = [row for row in rows if row.target]
    if wanted:
        print(f"targets met: {sum(row.met == 'yes' for row in wanted)} of {len(wanted)}")
    restless = [row for row in rows if row.spread_percent is not None and row.spread_percent > RESTLESS_PERCENT]
    if len(restless) * 4 > len(rows):
        print(f"the times of {len(restless)} of {len(rows)} rows spread widely: a busy machine, measure again")
    for row in rows:
        if row.red:
            print(f"RED {row.op} [{row.settings}] {row.rows} x {row.vocab_size} {row.variant}: {row.check}")


def save_csv(path: Path, rows: Iterable[Row], machine: Mapping[str, str]) -> list[Row]:
    """Writes `path`: the machine as `# key: value` lines, then the rows.

    It replaces rows of the suites in `rows` and keeps those of other suites. Returns the rows now in the file.
    """
    fresh = list(rows)
    suites = {row.suite for row in fresh}
    kept = [row for row in load_csv(path) if row.suite not in suites] if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".csv.part")
    with partial.open("w", newline="") as file:
        for key, value in machine.items():
            file.write(f"# {key}: {value}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in kept + fresh:
            writer.writerow([_text(getattr(row, name)) for name in COLUMNS])
    partial.replace(path)
    return kept + fresh


def save_new(path: Path, rows: Sequence[Row], machine: Mapping[str, str]) -> None:
    """Saves the rows of one case, unless they hold no figure and the file already has figures of this case."""
    suites = {row.suite for row in rows}
    measured = any(row.median_us is not None for row in rows)
    if not measured and path.exists() and any(row.suite in suites and row.median_us for row in load_csv(path)):
        return
    save_csv(path, rows, machine)


def _text(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def load_csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        lines = [line for line in file if not line.startswith("#")]
    return [Row(**{name: _parse(name, line.get(name, "")) for name in COLUMNS}) for line in csv.DictReader(lines)]


def _parse(name: str, text: str) -> typing.Any:
    kind = _TYPES[name]
    if kind is str:
        return text
    if kind is int:
        return int(text or 0)
    if not text:
        return None
    return int(text) if kind == int | None else float(text)


def load_machine(path: Path) -> dict[str, str]:
    with path.open() as file:
        pairs = [line[1:].partition(":") for line in file if line.startswith("#")]
    return {key.strip(): value.strip() for key, _, value in pairs}


def main() -> None:
    """Prints a file of results as JSON: the machine and the rows."""
    path = Path(sys.argv[1])
    rows = [dataclasses.asdict(row) for row in load_csv(path)]
    print(json.dumps({"machine": load_machine(path), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
