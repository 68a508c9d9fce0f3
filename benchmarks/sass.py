"""The text of nvdisasm: instructions, control flow, loops, and the longest way through a loop."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

BYTES = 16  # of an instruction
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?U?P[0-9T]+\s+)?(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_\w+):")
_FUNCTION = re.compile(r"^\s*\.type\s+(\S+),@function")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
# A converged warp never takes the branch of BRA.DIV, which leads to a slow form of a shuffle or vote.
_NEVER_TAKEN = "BRA.DIV"
_ENDS = ("EXIT", "RET.REL.NODEC", "RET.ABS.NODEC")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    text: str

    @property
    def opcode(self) -> str:
        return self.text.split(None, 1)[0]

    def __str__(self) -> str:
        return f"{self.address:6x}  {self.predicate:5}{self.text}"


@dataclass
class Block:
    """Instructions that run one after the other, from `address` on."""

    code: list[Instruction]
    after: list[int] = field(default_factory=list)

    @property
    def address(self) -> int:
        return self.code[0].address

    def has(self, pattern: str) -> bool:
        return any(re.search(pattern, one.text) for one in self.code)


@dataclass
class Loop:
    """A natural loop: the blocks from which the header is reached again."""

    header: int
    latches: set[int]
    blocks: set[int]
    inner: list[Loop] = field(default_factory=list)


@dataclass
class Way:
    """A way through a loop. `turns_unknown`: headers of inner loops that count as one turn."""

    code: list[Instruction]
    count: int = 0
    through: int = 0  # instructions that match a pattern
    turns_unknown: tuple[int, ...] = ()

    def then(self, tail: Way) -> Way:
        return Way(
            self.code + tail.code,
            self.count + tail.count,
            self.through + tail.through,
            self.turns_unknown + tail.turns_unknown,
        )


class Function:
    """A kernel or a function that it calls: blocks by address."""

    def __init__(self, name: str, code: Sequence[Instruction], labels: dict[str, int]) -> None:
        self.name = name
        self.entry = code[0].address
        self.size = BYTES * len(code)
        self.blocks = _blocks(code, labels)
        self.loops = _loops(self.entry, self.blocks)

    def all_loops(self) -> Iterator[Loop]:
        """Every loop, outer ones before the inner ones."""
        waiting = list(self.loops)
        while waiting:
            loop = waiting.pop(0)
            yield loop
            waiting.extend(loop.inner)

    def code_of(self, loop: Loop) -> list[Instruction]:
        return [one for at in sorted(loop.blocks) for one in self.blocks[at].code]

    def whole(self) -> Loop:
        """The function as a loop of one turn: from its entry to any end."""
        ends = {at for at, block in self.blocks.items() if block.code[-1].opcode in _ENDS or not block.after}
        return Loop(self.entry, ends, set(self.blocks), self.loops)

    def frame(self) -> int:
        """Bytes of stack that the function takes for itself."""
        moves = [re.match(r"(?:VIADD|IADD3|UIADD3) R1, R1, (0x\w+)", one.text) for one in self.code()]
        return max((2**32 - int(move[1], 16) for move in moves if move and int(move[1], 16) >= 2**31), default=0)

    def code(self) -> Iterator[Instruction]:
        for at in sorted(self.blocks):
            yield from self.blocks[at].code

    def before(self, first: str, second: str) -> list[Instruction]:
        """Instructions that match `first`, lead to one that matches `second`, and never run after such a one."""
        after = {at: set(block.after) for at, block in self.blocks.items()}
        leading: dict[int, set[int]] = {at: set() for at in self.blocks}
        for at, block in self.blocks.items():
            for to in block.after:
                leading[to].add(at)
        seconds = {at for at, block in self.blocks.items() if block.has(second)}
        later = _reached({to for at in seconds for to in after[at]}, after)
        leading_to = _reached(seconds, leading)
        found = []
        for at in leading_to - later:
            code = self.blocks[at].code
            ends = next((index for index, one in enumerate(code) if re.search(second, one.text)), len(code))
            found += [one for one in code[:ends] if re.search(first, one.text)]
        return sorted(found, key=lambda one: one.address)

    def longest_way(self, loop: Loop, through: str, without: Sequence[str] = ()) -> Way | None:
        """Returns the longest way from the header of `loop` back to it, or None if no way leads back.

        It takes as many instructions that match `through` as it can, and enters no block with an instruction that
        matches one of `without`. An inner loop counts as one turn.
        """
        allowed = {at for at in loop.blocks if not any(self.blocks[at].has(pattern) for pattern in without)}
        owner = {at: inner for inner in loop.inner for at in inner.blocks}
        best: dict[int, Way | None] = {}
        cost: dict[int, Way | None] = {}

        def of_node(at: int) -> Way | None:
            inner = owner.get(at)
            if inner is None:
                code = self.blocks[at].code
                return Way(code, len(code), sum(re.search(through, one.text) is not None for one in code))
            if at not in cost:
                turn = self.longest_way(inner, through, without)
                cost[at] = None if turn is None else replace(turn, turns_unknown=(at, *turn.turns_unknown))
            return cost[at]

        def exits(at: int) -> Iterable[int]:
            inner = owner.get(at)
            members = {at} if inner is None else inner.blocks & allowed
            return {to for member in members for to in self.blocks[member].after if inner is None or to not in members}

        def is_latch(at: int) -> bool:
            inner = owner.get(at)
            return at in loop.latches if inner is None else bool(inner.blocks & loop.latches)

        # Depth first without recursion: bodies of loops are long.
        order: list[int] = []
        seen: set[int] = set()
        stack: list[tuple[int, Iterator[int]]] = []

        def enter(at: int) -> None:
            seen.add(at)
            stack.append((at, iter([to for to in exits(at) if to in allowed and to != loop.header])))

        if loop.header not in allowed:
            return None
        enter(loop.header)
        while stack:
            at, rest = stack[-1]
            to = next(rest, None)
            if to is None:
                order.append(at)
                stack.pop()
            elif to not in seen:
                enter(to)
        done: set[int] = set()
        for at in order:
            done.add(at)
            if any(to in seen and to not in done for to in exits(at) if to != loop.header):
                raise ValueError(f"{self.name}: the loop at {loop.header:#x} has a cycle without a header at {at:#x}")
            mine = of_node(at)
            tails = [Way([])] if is_latch(at) else []
            tails += [
                tail for to in exits(at) if to in allowed and to != loop.header and (tail := best.get(to)) is not None
            ]
            if mine is None or not tails:
                best[at] = None
                continue
            best[at] = mine.then(max(tails, key=lambda way: (way.through, way.count)))
        return best[loop.header]


def parse(text: str) -> list[Function]:
    """The functions in nvdisasm's text of one section, the kernel first."""
    labels: dict[str, int] = {}
    starts: list[tuple[int, str]] = []
    code: list[Instruction] = []
    names: list[str] = []
    waiting: list[str] = []
    for line in text.splitlines():
        if match := _LINE.match(line):
            address = int(match[1], 16)
            labels.update((label, address) for label in waiting)
            starts.extend((address, name) for name in names)
            waiting, names = [], []
            code.append(Instruction(address, (match[2] or "").strip(), match[3]))
        elif match := _LABEL.match(line):
            waiting.append(match[1])
        elif match := _FUNCTION.match(line):
            names.append(match[1])
    labels.update((label, code[-1].address + BYTES) for label in waiting if code)
    starts = starts or [(0, "")]
    ends = [address for address, _ in starts[1:]] + [code[-1].address + BYTES]
    return [
        Function(name, [one for one in code if start <= one.address < end], labels)
        for (start, name), end in zip(starts, ends, strict=True)
    ]


def _falls_through(one: Instruction) -> bool:
    if one.opcode.split(".")[0] in ("BRA", "EXIT", "RET", "BRX", "JMX", "BSYNC", "JMP", "KILL"):
        plain = one.opcode.startswith("BRA") and "," not in one.text
        return bool(one.predicate) or (one.opcode.startswith("BRA") and not plain)
    return True


def _blocks(code: Sequence[Instruction], labels: dict[str, int]) -> dict[int, Block]:
    inside = {one.address for one in code}
    targets: dict[int, list[int]] = {}
    starts = {code[0].address}
    for one in code:
        stem = one.opcode.split(".")[0]
        named = [labels[label] for label in re.findall(r"\.L_\w+", one.text) if label in labels]
        if stem in ("BRA", "BRX", "JMP") and one.opcode != _NEVER_TAKEN:
            targets[one.address] = [to for to in named if to in inside]
        if stem in ("BRA", "BRX", "JMP", "BSSY"):
            starts.update(to for to in named if to in inside)
        if stem in ("BRA", "BRX", "JMP", "BSYNC", "EXIT", "RET"):
            starts.add(one.address + BYTES)
    blocks: dict[int, Block] = {}
    for one in code:
        if one.address in starts:
            current = blocks[one.address] = Block([])
        current.code.append(one)
    for block in blocks.values():
        last = block.code[-1]
        block.after = list(targets.get(last.address, []))
        if _falls_through(last) and last.address + BYTES in blocks:
            block.after.append(last.address + BYTES)
    _join(code[0].address, blocks, labels)
    return blocks


def _join(entry: int, blocks: dict[int, Block], labels: dict[str, int]) -> None:
    """Adds the edges of BSYNC: to the label of the BSSY that set its barrier, as a rule the next instruction."""
    joins = {
        (_barrier(one), labels[match[1]])
        for block in blocks.values()
        for one in block.code
        if one.opcode.startswith("BSSY") and (match := _TARGET.search(one.text))
    }
    reaching: dict[int, dict[str, frozenset[int]]] = {entry: {}}
    waiting = [entry]
    while waiting:
        at = waiting.pop()
        barriers = dict(reaching[at])
        block = blocks[at]
        for one in block.code:
            if one.opcode.startswith("BSSY") and (match := _TARGET.search(one.text)):
                barriers[_barrier(one)] = frozenset({labels[match[1]]})
        last = block.code[-1]
        if last.opcode.startswith("BSYNC"):
            after = last.address + BYTES
            targets = barriers.get(_barrier(last), frozenset())
            # Barriers also move through registers and memory, so the BSSY before this may be another one's.
            if (_barrier(last), after) in joins or not targets:
                targets = frozenset({after})
            block.after.extend(to for to in targets if to in blocks and to not in block.after)
        for to in block.after:
            known = reaching.get(to)
            merged = dict(known or {})
            for barrier, targets in barriers.items():
                merged[barrier] = merged.get(barrier, frozenset()) | targets
            if merged != known:
                reaching[to] = merged
                waiting.append(to)


def _barrier(one: Instruction) -> str:
    return one.text.split()[1].rstrip(",")


def _loops(entry: int, blocks: dict[int, Block]) -> list[Loop]:
    """The natural loops, nested."""
    order = _reverse_postorder(entry, blocks)
    number = {at: index for index, at in enumerate(order)}
    before: dict[int, list[int]] = {at: [] for at in order}
    for at in order:
        for to in blocks[at].after:
            before[to].append(at)
    dominator = {entry: entry}

    def common(a: int, b: int) -> int:
        while a != b:
            while number[a] > number[b]:
                a = dominator[a]
            while number[b] > number[a]:
                b = dominator[b]
        return a

    changed = True
    while changed:
        changed = False
        for at in order[1:]:
            new = functools.reduce(common, [one for one in before[at] if one in dominator])
            if dominator.get(at) != new:
                dominator[at], changed = new, True

    def dominates(a: int, b: int) -> bool:
        while number[b] > number[a]:
            b = dominator[b]
        return a == b

    found: dict[int, Loop] = {}
    for at in order:
        for header in blocks[at].after:
            if not dominates(header, at):
                continue
            loop = found.setdefault(header, Loop(header, set(), {header}))
            loop.latches.add(at)
            waiting = [at]
            while waiting:
                member = waiting.pop()
                if member not in loop.blocks:
                    loop.blocks.add(member)
                    waiting.extend(before[member])
    return _nested(sorted(found.values(), key=lambda loop: (len(loop.blocks), loop.header)))


def _nested(loops: list[Loop]) -> list[Loop]:
    """Puts loops, the smallest first, into the smallest one that contains them. Returns the outermost."""
    outermost: list[Loop] = []
    for index, loop in enumerate(loops):
        outer = next((one for one in loops[index + 1 :] if loop.header in one.blocks), None)
        (outermost if outer is None else outer.inner).append(loop)
    return outermost


def _reached(starts: Iterable[int], after: dict[int, set[int]]) -> set[int]:
    found: set[int] = set()
    waiting = list(starts)
    while waiting:
        at = waiting.pop()
        if at not in found:
            found.add(at)
            waiting.extend(after[at])
    return found


def _reverse_postorder(entry: int, blocks: dict[int, Block]) -> list[int]:
    seen = {entry}
    done = []
    stack = [(entry, iter(blocks[entry].after))]
    while stack:
        at, rest = stack[-1]
        to = next(rest, None)
        if to is None:
            done.append(at)
            stack.pop()
        elif to not in seen:
            seen.add(to)
            stack.append((to, iter(blocks[to].after)))
    return done[::-1]
