"""pygen's classes and functions take the parameters of transformers.generation's, by `inspect.signature`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import transformers.generation
from transformers.generation import logits_process

from tests.helpers.compatibility import Name, names

# Parameters that only pygen has, because all subclasses of a base take them.
MORE = {
    "BaseWatermarkingConfig.construct_processor": ["device"],
}
# Parameters that transformers added after 5.6.1. pygen takes them with every release.
LATER = ["user_set_attributes", "new_token_length", "kwargs"]
# The newer name of a parameter, and its name in those classes of pygen that do not depend on transformers.
RENAMED = {"cache": "past_key_values"}
# Methods that pygen lacks, and why.
NO_METHOD = {
    "GenerationMixin.adjust_generation_fn": "from_pretrained of transformers calls it",
    "StopStringCriteria.clean_tokenizer_vocab": "a part of transformers' algorithm",
    "StopStringCriteria.clean_and_embed_tokens_with_cache": "a part of transformers' algorithm",
}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(RENAMED.get(p.name, p.name), p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def methods(cls: type) -> Iterator[str]:
    """Yields the public methods that transformers.generation itself defines, and `__call__`."""
    for base in cls.__mro__:
        if base.__module__.startswith("transformers.generation") and "continuous_batching" not in base.__module__:
            for name, value in vars(base).items():
                if (not name.startswith("_") or name == "__call__") and inspect.isroutine(value):
                    yield name


def check(name: str, ours: Any, theirs: Any) -> None:
    mine, expected = parameters(ours), parameters(theirs)
    theirs_have = [parameter for parameter, _, _ in expected]
    mine = [(p, *rest) for p, *rest in mine if p in theirs_have or p not in LATER]
    assert mine[: len(expected)] == expected
    assert [parameter for parameter, _, _ in mine[len(expected) :]] == MORE.get(name, [])


@pytest.mark.parametrize("row", [row for row in names() if row.state != "not offered"], ids=lambda row: row.name)
def test_signatures(row: Name) -> None:
    theirs = getattr(transformers.generation, row.name, None) or getattr(logits_process, row.name)
    ours = row.ours()
    assert inspect.isclass(ours) == inspect.isclass(theirs)
    check(row.name, ours, theirs)
    for method in methods(theirs) if inspect.isclass(theirs) else ():
        name = f"{row.name}.{method}"
        assert hasattr(ours, method) != (name in NO_METHOD), name
        if name not in NO_METHOD:
            check(name, getattr(ours, method), getattr(theirs, method))
