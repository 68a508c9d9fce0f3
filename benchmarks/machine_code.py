"""Counts in the machine code of the CUDA kernels: instructions per logit, loads in flight, registers, size.

python -m benchmarks.machine_code --table             # the counts with limits, in the built extension
python -m benchmarks.machine_code --kernel sample     # its loops that read logits
python -m benchmarks.machine_code --cubin FILE        # those of another cubin, object file or extension
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sized
from pathlib import Path

from benchmarks import code_table, cubin
from benchmarks.scans import Scan, blocks_per_multiprocessor, scans


def describe_kernel(kernel: cubin.Kernel, shared: int) -> str:
    blocks = blocks_per_multiprocessor(kernel, shared)
    itself, *callees = kernel.functions
    parts = ", ".join(f"{short(function.name)} {function.size:,}" for function in callees if function.size > 4096)
    return (
        f"{short(kernel.name)}: {kernel.registers} registers, {kernel.stack} bytes of stack,"
        f" {kernel.max_threads} threads, {blocks} blocks per multiprocessor\n"
        f"  {kernel.size:,} bytes of code: itself {itself.size:,}{', ' * bool(parts)}{parts}"
    )


def describe(scan: Scan, shared: int) -> str:
    """One paragraph on a loop."""
    addresses = [one.address for one in scan.way.code]
    found: dict[str, Sized] = {
        "conversions": scan.conversions,
        "divisions": scan.divisions,
        "calls": scan.calls,
        "loops of shuffles": scan.shuffle_loops,
        "inner loops, counted as one turn": scan.way.turns_unknown,
    }
    notes = ", ".join(f"{len(what)} {name}" for name, what in found.items() if what)
    where = "" if scan.function.entry == 0 else f" in {short(scan.function.name)}"
    text = (
        f"  loop {min(addresses):#x} to {max(addresses):#x}{where}: {scan.way.count} instructions,"
        f" {scan.loads} loads; {scan.innermost_per_8_logits:.0f} per 8 logits, {scan.per_8_logits:.0f} with the loop"
        f" around it; {scan.slots} loads in flight,"
        f" {scan.bytes_in_flight(shared):,} bytes per multiprocessor"
    )
    return f"{text}\n    {notes}" if notes else text


def short(name: str) -> str:
    """The name of a function in a mangled name, with the values of its template arguments."""
    mangled = name.rsplit("$", 1)[-1]
    at = 0
    while match := re.compile(r"\d+").search(mangled, at):
        at = match.end() + int(match[0])
        identifier = mangled[match.end() : at]
        if identifier[:1].islower() and identifier not in ("pygen", "cuda"):
            argument = r"L(?:[a-z]|[A-Z]\w*?E)(\d+)E"
            arguments = re.match(f"I(?:{argument})+", mangled[at:])
            values = re.findall(argument, arguments[0]) if arguments else []
            return identifier + (f"<{', '.join(values)}>" if values else "")
    return mangled[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of benchmarks/README.md")
    parser.add_argument("--write", action="store_true", help="write that table")
    parser.add_argument("--kernel", default="", help="regular expression: which mangled names")
    files = "cubins, object files or extensions; default: the built extension"
    parser.add_argument("--cubin", type=Path, nargs="+", help=files)
    parser.add_argument("--without", nargs="*", default=[], help="leave out blocks with an instruction that matches")
    parser.add_argument("--shared", type=int, default=0, help="dynamic shared memory of a block, in bytes")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--listing", action="store_true", help="print the instructions that were counted")
    arguments = parser.parse_args()
    paths = arguments.cubin or [cubin.extension()]
    if arguments.write:
        code_table.write(code_table.Code(*paths))
    elif arguments.table:
        print(code_table.table(code_table.Code(*paths)), end="")
    else:
        for path in paths:
            report(path, arguments)


def report(path: Path, arguments: argparse.Namespace) -> None:
    for content in cubin.cubins(path, arguments.arch):
        for kernel in cubin.kernels(content):
            if not re.search(arguments.kernel, kernel.name):
                continue
            print(describe_kernel(kernel, arguments.shared))
            for scan in sorted(scans(kernel, arguments.without), key=lambda scan: scan.loop.header):
                print(describe(scan, arguments.shared))
                if arguments.listing:
                    print(*scan.way.code, sep="\n")


if __name__ == "__main__":
    main()
