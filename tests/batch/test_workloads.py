"""A fixed share of `python -m tests.batch.workloads`."""

from __future__ import annotations

import pytest

from tests.batch.models import FAMILIES
from tests.batch.workloads import run_workload


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_generate_for_each_prompt_alone(family: str, number: int) -> None:
    tokens, wrong = run_workload(1000 * number + FAMILIES.index(family), family)
    assert tokens > 0
    assert not wrong, "\n".join(wrong)
