"""The loops of a kernel that read logits, and what the longest way through one of them costs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks import cubin, sass

# A multiprocessor of sm_90.
REGISTERS = 65_536
SHARED = 233_472
THREADS = 2_048
BLOCKS = 32

VECTOR = 16  # bytes of a load
COPY = r"\bLDGSTS\S*\.128"
LOAD = r"\bLDG\.\S*128|" + COPY
_CONVERSION = r"^(I2F|F2I|I2FP|F2F)\b"


def blocks_per_multiprocessor(kernel: cubin.Kernel, shared: int) -> int:
    """Blocks of the largest size that run at once with `shared` bytes of dynamic shared memory each."""
    warps = -(-kernel.max_threads // 32)
    of_warp = -(-kernel.registers * 32 // 256) * 256
    by_registers = 4 * (REGISTERS // 4 // of_warp) // warps
    by_shared = SHARED // (kernel.shared + shared)
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
        return count(self.way.code, LOAD)

    @property
    def per_8_logits(self) -> float:
        """Counts instructions; where the outer loop runs this loop once per turn, with those of the outer loop."""
        return (self.way.count + self.around) / self._logits * 8

    @property
    def innermost_per_8_logits(self) -> float:
        return self.way.count / self._logits * 8

    @property
    def _logits(self) -> int:
        match = re.search(r"DTypeE(\d)E", self.kernel.name)
        return self.loads * (4 if match and match[1] == "0" else 8)  # float32, else a half

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
    groups, copies = count(code, r"^LDGDEPBAR"), count(code, COPY)
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
            inner = [one for one in loop.inner if count(function.code_of(one), LOAD)]
            if inner or not count(function.code_of(loop), LOAD):
                continue
            way = function.longest_way(loop, LOAD, without)
            if way is None or not count(way.code, LOAD):
                continue
            outer = next((one for one in function.all_loops() if loop in one.inner), None)
            around = None if outer is None else function.longest_way(outer, LOAD, without)
            yield Scan(kernel, function, loop, way, 0 if around is None else around.count - way.count)
