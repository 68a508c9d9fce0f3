"""The rehearsal of the GPU suite: its table, its exit status, and the forms of Triton's kernels that travel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu_rehearsal, triton_forms
from benchmarks.gpu_rehearsal import Failed, Rehearsal


def good(rehearsal: Rehearsal) -> str:
    """Runs."""
    return rehearsal.run("good", "bash", "-c", "echo first; echo three rows; echo")


def bad(rehearsal: Rehearsal) -> str:
    """Fails."""
    return rehearsal.run("bad", "bash", "-c", "echo so far; echo the reason >&2; exit 3")


@pytest.mark.parametrize(("only", "status"), [("", 1), ("good", 0), ("bad", 1)])
def test_a_table_of_parts_and_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], only: str, status: int
) -> None:
    monkeypatch.setattr(gpu_rehearsal, "PARTS", (bad, good))
    assert gpu_rehearsal.main([str(tmp_path), "--only", only]) == status
    lines = (tmp_path / "summary.txt").read_text().splitlines()[1:]
    named = {line.split()[0]: line for line in lines}
    assert {*named} == ({only} if only else {"bad", "good"})
    assert named.get("good", " ok three rows").split()[-2:] == ["three", "rows"]
    assert "FAILED" in named.get("bad", "FAILED") and named.get("bad", "status 3: the reason").endswith("the reason")
    assert "\n".join(lines) in capsys.readouterr().out


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        gpu_rehearsal.main([str(tmp_path), "--only", "no_part"])


def test_every_part_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_rehearsal.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(gpu_rehearsal.PARTS) and all(len(line.split()) > 3 for line in lines)


REACHED = """
import socket
here = socket.create_server(("127.0.0.1", 0))
socket.create_connection(here.getsockname())
try:
    # This address is for examples: nobody answers.
    socket.socket(type=socket.SOCK_DGRAM).connect(("192.0.2.1", 9))
except OSError:
    print("itself only")
"""


@pytest.mark.skipif(not gpu_rehearsal.without_network(), reason="this system lets nobody take the network away")
def test_without_a_network_a_process_reaches_its_own_machine(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path, gpu_rehearsal.without_network())
    assert rehearsal.python("reached", "-c", REACHED) == "itself only"


def test_results_must_have_rows_and_logs(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    with pytest.raises(Failed, match="saved no row"):
        gpu_rehearsal.results(Rehearsal(tmp_path, ()))
    (tmp_path / "suite/h200.csv").write_text("op,us\n")
    (tmp_path / "suite/h200.json").write_text("[]")
    with pytest.raises(Failed, match="has 0 rows"):
        gpu_rehearsal.results(Rehearsal(tmp_path, ()))


def test_forms_travel_to_a_cache_in_another_folder(tmp_path: Path) -> None:
    form = tmp_path / "old" / "KEY"
    form.mkdir(parents=True)
    contents = {"scan.json": b"{}", "scan.cubin": b"\x7fELF", "scan.ptx": b"text", "__grp__scan.json": b"old paths"}
    for name, content in contents.items():
        (form / name).write_bytes(content)
    triton_forms.pack([form], tmp_path / "forms.tar.gz")
    new = tmp_path / "new"
    assert triton_forms.unpack(new, tmp_path / "forms.tar.gz") == 1
    assert {path.name for path in (new / "KEY").iterdir()} == {"scan.json", "scan.cubin", "__grp__scan.json"}
    assert (new / "KEY/scan.cubin").read_bytes() == contents["scan.cubin"]
    paths = json.loads((new / "KEY/__grp__scan.json").read_text())["child_paths"]
    assert paths == {name: str(new / "KEY" / name) for name in ("scan.json", "scan.cubin")}
