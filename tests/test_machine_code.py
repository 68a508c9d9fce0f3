"""Counts in the machine code of the CUDA kernels."""

from __future__ import annotations

import pytest

from benchmarks import code_table, cubin, machine_code, sass, scans
from pygen import _C

# A loop as nvdisasm prints it: a rare branch of two instructions that joins again, an inner loop, a slow form of a
# shuffle that a converged warp never takes, and a copy that the loop waits for seven turns later.
LISTING = """
        .type           kernel,@function
kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R2], desc[UR4][R4.64] ;
        /*0020*/                   LDGDEPBAR ;
        /*0030*/                   DEPBAR.LE SB0, 0x7 ;
        /*0040*/                   BSSY B0, `(.L_x_1) ;
        /*0050*/               @P0 BRA `(.L_x_2) ;
        /*0060*/                   LDG.E R3, desc[UR4][R6.64] ;
        /*0070*/                   FADD R8, R8, R3 ;
.L_x_2:
        /*0080*/                   BSYNC B0 ;
.L_x_1:
        /*0090*/                   BRA.DIV UR4, `(.L_x_4) ;
.L_x_3:
        /*00a0*/                   SHFL.BFLY PT, R9, R8, R10, 0x1f ;
        /*00b0*/              @!P1 BRA `(.L_x_3) ;
        /*00c0*/                   I2F.RP R11, R9 ;
        /*00d0*/               @P2 BRA `(.L_x_0) ;
        /*00e0*/                   EXIT ;
.L_x_4:
        /*00f0*/                   WARPSYNC.COLLECTIVE R4, `(.L_x_3) ;
        /*0100*/                   BRA `(.L_x_3) ;
"""


def scan_of(listing: str, without: tuple[str, ...] = ()) -> scans.Scan:
    kernel = cubin.Kernel("kernel", registers=64, stack=0, shared=1024, max_threads=512, size=0, symbol=0, cubin=b"")
    kernel.__dict__["functions"] = sass.parse(listing)
    (scan,) = scans.scans(kernel, without)
    return scan


def test_the_longest_way_through_a_loop() -> None:
    scan = scan_of(LISTING)
    assert (scan.loop.header, scan.loop.latches) == (0x10, {0xC0})
    assert [one.address for one in scan.way.code] == list(range(0x10, 0xE0, 0x10))
    assert scan.per_8_logits == scan.way.count == 13
    assert scan.way.turns_unknown == (0xA0,)
    assert scan.shuffle_loops == [0xA0]
    assert (scan.conversions, scan.divisions, scan.calls) == (["I2F.RP"], [], [])
    assert scan_of(LISTING, without=("LDG.E R",)).way.count == 11


def test_loads_in_flight() -> None:
    scan = scan_of(LISTING)
    assert scan.slots == 8, "the wait leaves seven groups of one copy each"
    # 64 registers: two blocks of 512 threads.
    assert scan.bytes_in_flight(shared=65_536) == 8 * 16 * 512 * 2
    assert scan.bytes_in_flight(shared=131_072) == 8 * 16 * 512


@pytest.mark.parametrize(
    "turn, slots",
    [
        # Waits for the load of the turn before it starts the next.
        (["MOV R8, R4", "LDG.E.128 R4, desc[UR4][R2.64]"], 1),
        (["LDG.E.128 R4, desc[UR4][R2.64]", "FADD R8, R8, R5"], 1),
        # Two registers, each used two loads later.
        (
            [
                "FADD R0, R0, R4",
                "LDG.E.128 R4, desc[UR4][R2.64]",
                "FADD R0, R0, R8",
                "LDG.E.128 R8, desc[UR4][R2.64]",
            ],
            2,
        ),
        (
            [
                "LDG.E.128 R4, desc[UR4][R2.64]",
                "LDG.E.128 R8, desc[UR4][R2.64]",
                "LDG.E.128 R12, desc[UR4][R2.64]",
                "FADD R0, R4, R15",
            ],
            3,
        ),
    ],
)
def test_loads_into_registers_in_flight(turn: list[str], slots: int) -> None:
    lines = [*turn, "@P0 BRA `(.L_x_0)", "EXIT"]
    text = ".L_x_0:\n" + "\n".join(f"        /*{16 * index:04x}*/    {line} ;" for index, line in enumerate(lines))
    assert scan_of(text).slots == slots


def test_a_cycle_with_two_entries_is_an_error() -> None:
    lines = [
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "@P0 BRA `(.L_x_2)",
        "FADD R0, R0, R0",
        "@P1 BRA `(.L_x_1)",
        "@P2 BRA `(.L_x_0)",
        "EXIT",
    ]
    labels = {0: ".L_x_0:\n", 2: ".L_x_1:\n", 3: ".L_x_2:\n"}
    text = "\n".join(f"{labels.get(i, '')}        /*{16 * i:04x}*/    {line} ;" for i, line in enumerate(lines))
    with pytest.raises(ValueError, match="a cycle without a header"):
        scan_of(text)


# Two barriers in an if and an else, one of them before the load, and one in the loop behind it.
BARRIERS = """
        .type           kernel,@function
kernel:
        /*0000*/                   VIADD R1, R1, 0xffffffe0 ;
        /*0010*/               @P0 BRA `(.L_x_1) ;
        /*0020*/                   UCGABAR_WAIT ;
        /*0030*/                   UCGABAR_WAIT ;
        /*0040*/                   EXIT ;
.L_x_1:
        /*0050*/                   UCGABAR_WAIT ;
.L_x_2:
        /*0060*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0070*/                   UCGABAR_WAIT ;
        /*0080*/               @P1 BRA `(.L_x_2) ;
        /*0090*/                   STL [R1+0x4], R4 ;
        /*00a0*/                   EXIT ;
"""


def test_ways_through_a_whole_function() -> None:
    (function,) = sass.parse(BARRIERS)
    barrier = "^UCGABAR_WAIT"
    way = function.longest_way(function.whole(), barrier)
    assert way is not None
    assert way.through == 2
    fewer = function.longest_way(function.whole(), barrier, without=[r"LDG\.E\.128"])
    assert fewer is not None
    assert [one.address for one in fewer.code] == [0x0, 0x10, 0x20, 0x30, 0x40]
    assert [one.address for one in function.before(barrier, scans.LOAD)] == [0x50]
    assert function.frame() == 32


@pytest.fixture(scope="module")
def code() -> code_table.Code:
    build = _C.build_info()
    if not build["cuda"]:
        pytest.skip(f"built without CUDA: {build['cuda_reason']}")
    if "sm_90" not in build["cuda_archs"]:
        pytest.skip(f"built for {', '.join(build['cuda_archs'])}, not for sm_90")
    return code_table.Code(cubin.extension())


@pytest.mark.parametrize("row", code_table.COUNTS, ids=lambda row: row.what)
def test_limits(row: code_table.Count, code: code_table.Code, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype in code_table.DTYPES:
        subject = row.subject(code, dtype)
        value = row.value(subject)
        with capsys.disabled():
            print(f"\n{row.what}, {dtype}: {value:,.0f}, must be {row.rule}")
            if isinstance(subject, scans.Scan):
                print(machine_code.describe(subject, shared=0))
        if isinstance(subject, scans.Scan):
            print(*subject.way.code, sep="\n")
        if dtype in row.binding:
            assert row.holds(value), f"{row.what}, {dtype}: {value:,.1f}, must be {row.rule}"


def test_the_table_in_the_readme(code: code_table.Code) -> None:
    """Within a tenth: another compiler or a small change may move a count a little."""
    written = code_table.README.read_text().split(code_table.BEGIN)[1].split(code_table.END)[0].splitlines()
    built = code_table.table(code).splitlines()
    assert written[:2] == built[:2]
    for was, now in zip(written[2:], built[2:], strict=True):
        (*words, was_counts), (*built_words, now_counts) = split(was), split(now)
        hint = f"run `{code_table.COMMAND}`"
        assert words == built_words, hint
        assert was_counts == pytest.approx(now_counts, rel=0.1), f"{was}, now {now}: {hint}"


def split(line: str) -> tuple[str, str, list[float]]:
    """The words of a row of the table, its rule and its counts."""
    _, what, rule, *counts, _ = line.split("|")
    return what, rule, [float(one.replace(",", "")) for one in counts]
