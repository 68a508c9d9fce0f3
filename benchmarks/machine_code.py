"""Counts in the machine code of the CUDA kernels: instructions per logit, loads in flight, registers, size.

python -m benchmarks.machine_code --kernel sample --cubin FILE   # the loops of any cubin, object file or extension
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cubin, sass

# A multiprocessor of sm_90.
REGISTERS = 65_536
SHARED = 233_472
SHARED_RESERVED = 1_024  # per block
THREADS = 2_048
BLOCKS = 32

VECTOR = 16  # bytes of a load
_COPY = r"\bLDGSTS\S*\.128"
_LOAD = r"\bLDG\.\S*128|" + _COPY
_CONVERSION = r"^(I2F|F2I|I2FP|F2F)\b"
_LOGITS_OF_VECTOR = {"E0": 4, "E1": 8, "E2": 8}  # by the DType in a mangled name: float32, float16, bfloat16


def blocks_per_multiprocessor(kernel: cubin.Kernel, shared: int) -> int:
    """Blocks of the largest size that run at once with `shared` bytes of dynamic shared memory each."""
    warps = -(-kernel.max_threads // 32)
    of_warp = -(-kernel.registers * 32 // 256) * 256
    by_registers = 4 * (REGISTERS // 4 // of_warp) // warps
    by_shared = SHARED // (kernel.shared + shared + SHARED_RESERVED)
    return min(by_registers, by_shared, THREADS // (32 * warps), BLOCKS)


@dataclass(frozen=True)
class Scan:
    """A loop that reads logits, and the longest way through it."""

    kernel: cubin.Kernel
    function: sass.Function
    loop: sass.Loop
    way: sass.Way
    around: int  # instructions of the loop around this one, in each of its turns; 0 without

    @property
    def loads(self) -> int:
        return count(self.way.code, _LOAD)

    @property
    def per_8_logits(self) -> float:
        match = re.search(r"DTypeE?L?(E\d)", self.kernel.name)
        logits = _LOGITS_OF_VECTOR.get(match[1] if match else "", 8)
        return self.way.count / self.loads * 8 / logits

    @property
    def slots(self) -> int:
        """Loads of a thread that are in flight when the loop waits for one, at most."""
        return max(_copies_in_flight(self.way.code), _loads_in_flight(self.way.code))

    def bytes_in_flight(self, shared: int) -> int:
        return self.slots * VECTOR * self.kernel.max_threads * blocks_per_multiprocessor(self.kernel, shared)

    @property
    def conversions(self) -> list[str]:
        return [one.opcode for one in self.way.code if re.match(_CONVERSION, one.opcode)]

    @property
    def divisions(self) -> list[str]:
        return [one.text for one in self.way.code if one.opcode.startswith(("MUFU.RCP", "FCHK"))]

    @property
    def calls(self) -> list[str]:
        return [one.text for one in self.way.code if one.opcode.startswith("CALL")]

    @property
    def shuffle_loops(self) -> list[int]:
        """Headers of inner loops with shuffles that the way enters."""
        on_way = {one.address for one in self.way.code}
        return [
            inner.header
            for inner in self.loop.inner
            if inner.header in on_way and count(self.function.code_of(inner), r"\bSHFL") > 0
        ]


def count(code: Sequence[sass.Instruction], pattern: str) -> int:
    return sum(re.search(pattern, one.text) is not None for one in code)


def _copies_in_flight(code: Sequence[sass.Instruction]) -> int:
    """Asynchronous copies in flight before the wait: it lets the newest groups run on."""
    groups, copies = count(code, r"^LDGDEPBAR"), count(code, _COPY)
    waits = [int(match[1], 16) for one in code if (match := re.match(r"DEPBAR\.LE SB0, (0x\w+)", one.text))]
    return (max(waits) + 1) * copies // groups if waits and groups else copies


def _loads_in_flight(code: Sequence[sass.Instruction]) -> int:
    """Loads into registers in flight at the first use of one, in a steady state."""
    most = 0
    flying: list[set[str]] = []
    for one in [*code, *code]:
        used = set(re.findall(r"\bR\d+", one.text))
        waited = [index for index, registers in enumerate(flying) if registers & used]
        if waited:
            most = max(most, len(flying))
            flying = flying[waited[-1] + 1 :]
        if match := re.match(r"LDG\.\S*128\S* R(\d+)", one.text):
            first = int(match[1])
            flying.append({f"R{first + offset}" for offset in range(4)})
    return most


def scans(kernel: cubin.Kernel, without: Sequence[str] = ()) -> Iterator[Scan]:
    """The innermost loops with loads of 16 bytes. `without` as in `longest_way`."""
    for function in kernel.functions:
        for loop in function.all_loops():
            inner = [one for one in loop.inner if count(function.code_of(one), _LOAD)]
            if inner or not count(function.code_of(loop), _LOAD):
                continue
            way = function.longest_way(loop, _LOAD, without)
            if way is None or not count(way.code, _LOAD):
                continue
            outer = next((one for one in function.all_loops() if loop in one.inner), None)
            around = None if outer is None else function.longest_way(outer, _LOAD, without)
            yield Scan(kernel, function, loop, way, 0 if around is None else around.count - way.count)


def describe_kernel(kernel: cubin.Kernel, shared: int) -> str:
    blocks = blocks_per_multiprocessor(kernel, shared)
    return (
        f"{short(kernel.name)}: {kernel.registers} registers, {kernel.stack} bytes of stack,"
        f" {kernel.size:,} bytes of code, {kernel.max_threads} threads, {blocks} blocks per multiprocessor"
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
    around = f" and {scan.around} in each turn of the loop around it" if scan.around else ""
    where = "" if scan.function.entry == 0 else f" in {short(scan.function.name)}"
    text = (
        f"  loop {min(addresses):#x} to {max(addresses):#x}{where}: {scan.way.count} instructions,"
        f" {scan.loads} loads, {scan.per_8_logits:.0f} per 8 logits{around}, {scan.slots} loads in flight,"
        f" {scan.bytes_in_flight(shared):,} bytes per multiprocessor"
    )
    return f"{text}\n    {notes}" if notes else text


def short(name: str) -> str:
    """A mangled name without the namespaces and parameters."""
    name = name.rsplit("$", 1)[-1]
    last = re.split(r"\d+(?=[a-z])", re.sub(r".*(_cu_[0-9a-f]{8}|5pygen4cuda)", "", name))
    return max(last, key=len)[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cubin", type=Path, required=True, help="a cubin, an object file or an extension")
    parser.add_argument("--kernel", default="", help="regular expression: which mangled names")
    parser.add_argument("--without", nargs="*", default=[], help="leave out blocks with an instruction that matches")
    parser.add_argument("--shared", type=int, default=0, help="dynamic shared memory of a block, in bytes")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--listing", action="store_true", help="print the instructions that were counted")
    arguments = parser.parse_args()
    for content in cubin.cubins(arguments.cubin, arguments.arch):
        for kernel in cubin.kernels(content):
            if not re.search(arguments.kernel, kernel.name):
                continue
            print(describe_kernel(kernel, arguments.shared))
            for scan in scans(kernel, arguments.without):
                print(describe(scan, arguments.shared))
                if arguments.listing:
                    print(*scan.way.code, sep="\n")


if __name__ == "__main__":
    main()
