"""docs/compatibility.md is complete and correct."""

from __future__ import annotations

import re

import pytest
from transformers.generation import logits_process

import pygen
from pygen.models.versions import NEWEST_TESTED, OLDEST_TESTED
from tests.helpers.compatibility import LATER_NAMES, NOT_OFFERED, PUBLIC_NAMES, ROOT, Name, names, tables

STATES = ("same", "extended", "different", "not offered")


def test_every_public_name_has_a_row() -> None:
    assert [row[0] for row in tables()["transformers.generation"]] == sorted({*PUBLIC_NAMES, *LATER_NAMES})
    listed = {row[0] for row in tables()["logits_process"]}
    assert listed.isdisjoint(PUBLIC_NAMES)
    own = {
        name
        for name, value in vars(logits_process).items()
        if getattr(value, "__module__", None) == logits_process.__name__ and not name.startswith("_")
    }
    assert own - {*PUBLIC_NAMES} <= listed


def test_every_offered_name_can_be_imported_from_pygen() -> None:
    offered = {*PUBLIC_NAMES} - NOT_OFFERED.keys()
    assert len(offered) > 50
    assert offered <= {*pygen.__all__} and offered <= {*dir(pygen)}
    for name in pygen.__all__:
        assert getattr(pygen, name) is not None
    with pytest.raises(ImportError, match="NoSuchName"):
        exec("from pygen import NoSuchName")


@pytest.mark.parametrize("row", names(), ids=lambda row: row.name)
def test_a_row_is_so(row: Name) -> None:
    assert row.state in STATES
    assert (row.note != "–") == (row.state != "same")
    if row.state == "not offered":
        assert (row.place, row.note) == ("–", NOT_OFFERED[row.name])
    else:
        assert row.name not in NOT_OFFERED
        assert row.place.endswith(f".{row.name}")
        assert row.ours().__name__ == row.name


def test_no_cell_is_empty() -> None:
    for head, rows in tables().items():
        assert rows, head
        assert all(len(row) == len(rows[0]) and all(row) for row in rows), head


@pytest.mark.parametrize("row", tables()["transformers 5.6.1"], ids=lambda row: row[0][:40])
def test_every_deviation_has_its_test(row: list[str]) -> None:
    for test in row[2].replace("`", "").split(", "):
        path, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), test


def test_the_releases_that_are_tested_are_the_same_everywhere() -> None:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "constraints.txt", ".ci/run")}
    assert f"TRANSFORMERS ?= {NEWEST_TESTED}\n" in texts["Makefile"]
    assert f"transformers=={OLDEST_TESTED}\n" in texts["constraints.txt"]
    assert "make test\n" in texts[".ci/run"] and "make test-compat\n" in texts[".ci/run"]
    document = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert f"tested with {OLDEST_TESTED} to {NEWEST_TESTED}" in document
    listed = re.findall(r"^\| (5[.\d]+) \|", (ROOT / "docs" / "versions.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed[0] == OLDEST_TESTED and listed[-1] == NEWEST_TESTED
