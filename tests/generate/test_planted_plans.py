"""Wrong plans, which the comparison with single processors must detect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pygen.plan import order as plan_order
from pygen.plan import pipeline, stages
from pygen.processors.recognize import knobs_of
from tests.generate import test_plan_steps as steps


def forgetting(*names: str) -> Callable[..., dict[str, Any]]:
    """Returns a mutant that prepares ops without these knobs."""
    complete = pipeline.op_knobs

    def op_knobs(*arguments: Any) -> dict[str, Any]:
        return {name: value for name, value in complete(*arguments).items() if name not in names}

    return op_knobs


def joined_in_any_order(stage: stages.Fused, item: stages.Item) -> stages.Fused:
    return stages.Fused({**stage.knobs, **item.knobs})


def processors_first(items: Any) -> list[stages.Item]:
    return sorted(items, key=lambda item: bool(item.knobs))


KNOBS_OF = knobs_of
FAULTS: list[tuple[str, Any, str, Any]] = [
    ("ops in any order", stages.Fused, "joined", joined_in_any_order),
    ("all processors before the op", stages, "_bans_first", processors_first),
    ("entries act on every step", stages.Item, "acts_on", lambda item, step: True),
    ("entries act on the first step only", stages.Item, "acts_on", lambda item, step: item.first <= 0),
    ("biases forgotten", pipeline, "op_knobs", forgetting("bias")),
    ("tokens to keep forgotten", pipeline, "op_knobs", forgetting("min_tokens_to_keep")),
    ("filter values ignored", plan_order, "knobs_of", lambda p, samples: {"top_p": 0.9} if hasattr(p, "top_p") else {}),
    ("warpers fused where rows are greedy", plan_order, "knobs_of", lambda p, samples: KNOBS_OF(p, samples=True)),
]


@pytest.mark.parametrize(("label", "owner", "name", "wrong"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_wrong_plans_are_caught(label: str, owner: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        for first in range(0, steps.CASES, steps.CASES_PER_TEST):
            steps.test_the_plan_does_what_its_processors_do(first)
