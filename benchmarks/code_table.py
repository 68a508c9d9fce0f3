"""What the machine code of the CUDA kernels has to keep to on sm_90, and the table of it in benchmarks/README.md."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import cubin
from benchmarks.scans import COPY, LOAD, Scan, count, scans

DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # as in csrc/common/sample_params.h
COMMAND = "python -m benchmarks.machine_code --write"
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- machine code -->\n", "<!-- end of machine code -->\n"
_MOST_SHARED = 232_448  # that a block can have; with so much, one block runs on a multiprocessor

_BARRIER = r"^UCGABAR_WAIT"
_SUM = r"^MUFU\.EX2"
# Reads the bits that hide penalised ids. Rows without such ids skip the block.
_HIDDEN = r"^LDS R\d"


class Code:
    """The kernels of a built extension, or of some of its object files."""

    def __init__(self, *paths: Path) -> None:
        self.kernels = [kernel for path in paths for content in cubin.cubins(path) for kernel in cubin.kernels(content)]

    def kernel(self, pattern: str, dtype: str) -> cubin.Kernel:
        """The only kernel whose mangled name matches, `{dtype}` standing for the number of the dtype."""
        wanted = pattern.replace("{dtype}", str(DTYPES[dtype]))
        found = [kernel for kernel in self.kernels if re.search(wanted, kernel.name)]
        if len(found) != 1:
            raise LookupError(f"{len(found)} kernels match {wanted}")
        return found[0]


@dataclass(frozen=True)
class Count:
    """A row of the table: a number of a kernel, or of the loop `scan` in it, and its limit, at most or at least."""

    what: str
    kernel: str
    value: Callable[[Any], float]
    limit: float
    at_least: bool = False
    scan: Callable[[cubin.Kernel], Scan] | None = None
    binding: Sequence[str] = tuple(DTYPES)  # the dtypes that the limit is for

    def subject(self, code: Code, dtype: str) -> cubin.Kernel | Scan:
        kernel = code.kernel(self.kernel, dtype)
        return kernel if self.scan is None else self.scan(kernel)

    @property
    def rule(self) -> str:
        where = "" if len(self.binding) == len(DTYPES) else f" ({', '.join(self.binding)})"
        return ("none" if self.limit == 0 else f"{'≥' if self.at_least else '≤'} {self.limit:,}") + where

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def scan_of(kernel: cubin.Kernel, sums: bool = False, hides: bool = True) -> Scan:
    """The scan that sums masses, or the one that does not; on the way that hides penalised ids, or without."""
    found = [
        scan
        for scan in scans(kernel, [] if hides else [_HIDDEN])
        if count(scan.way.code, COPY) > 0 and sums == (count(scan.way.code, _SUM) > 0)
    ]
    if len(found) != 1:
        raise LookupError(f"{len(found)} loops of {kernel.name} could be the scan")
    return found[0]


def most_on_a_way(kernel: cubin.Kernel, pattern: str) -> int:
    """Instructions that match, on the way through the kernel itself with most of them."""
    itself = kernel.functions[0]
    way = itself.longest_way(itself.whole(), pattern)
    assert way is not None, kernel.name
    return way.through


def forbidden(scan: Scan) -> int:
    return len(scan.divisions) + len(scan.conversions) + len(scan.calls) + len(scan.shuffle_loops)


def per_8_logits(what: str, kernel: str, limit: float, sums: bool = False, hides: bool = True) -> Count:
    scan = functools.partial(scan_of, sums=sums, hides=hides)
    what = f"{what}: instructions per 8 logits"
    return Count(what, kernel, lambda scan: scan.per_8_logits, limit, scan=scan, binding=["bfloat16"])


def in_flight(what: str, kernel: str, scan: Callable[[cubin.Kernel], Scan]) -> Count:
    return Count(what, kernel, lambda scan: scan.bytes_in_flight(_MOST_SHARED), 49_152, at_least=True, scan=scan)


_FEW = "sample_rowsILNS_5DTypeE{dtype}ELNS0_4RowsE0E"
_MANY = "sample_scanILNS_5DTypeE{dtype}ELb0E"
_MANY_SUMS = "sample_scanILNS_5DTypeE{dtype}ELb1E"
_SUMS = functools.partial(scan_of, sums=True)
_FORBIDDEN = "divisions, conversions, calls, loops of shuffles in the scan"
COUNTS = (
    per_8_logits("first row, spread ids or not", _FEW, 64),
    per_8_logits("the same, many rows", _MANY, 64),
    per_8_logits("greedy", _FEW, 40, hides=False),
    per_8_logits("greedy, many rows", _MANY, 40, hides=False),
    per_8_logits("top-p alone", _FEW, 90, sums=True, hides=False),
    per_8_logits("top-p alone, many rows", _MANY_SUMS, 90, sums=True, hides=False),
    Count(_FORBIDDEN, _FEW, forbidden, 0, scan=scan_of),
    Count(f"{_FORBIDDEN} with sums", _FEW, forbidden, 0, scan=_SUMS),
    Count(f"{_FORBIDDEN}, many rows", _MANY, forbidden, 0, scan=scan_of),
    Count(f"{_FORBIDDEN} with sums, many rows", _MANY_SUMS, forbidden, 0, scan=_SUMS),
    in_flight("bytes of loads in flight per multiprocessor", _FEW, scan_of),
    in_flight("the same, many rows", _MANY, scan_of),
    in_flight("the same with sums, many rows", _MANY_SUMS, _SUMS),
    Count("many rows: registers of the scan", _MANY, lambda kernel: kernel.registers, 64),
    Count("many rows: registers of the scan with sums", _MANY_SUMS, lambda kernel: kernel.registers, 64),
    Count("first row: bytes of code, with all functions", _FEW, lambda kernel: kernel.size, 131_072),
    Count("`sample`: bytes of stack, with all functions", _FEW, lambda kernel: kernel.stack, 0),
    Count("`sample`: barriers of a cluster", _FEW, lambda kernel: most_on_a_way(kernel, _BARRIER), 2),
    Count("those before the first load", _FEW, lambda kernel: len(kernel.functions[0].before(_BARRIER, LOAD)), 0),
)


def table(code: Code) -> str:
    rows = [f"| | must | {' | '.join(DTYPES)} |", f"| --- | --- |{' --- |' * len(DTYPES)}"]
    for row in COUNTS:
        values = " | ".join(f"{row.value(row.subject(code, dtype)):,.0f}" for dtype in DTYPES)
        rows.append(f"| {row.what} | {row.rule} | {values} |")
    return "\n".join(rows) + "\n"


def write(code: Code) -> None:
    """Puts the table into benchmarks/README.md."""
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + table(code) + END + rest.split(END)[1])
