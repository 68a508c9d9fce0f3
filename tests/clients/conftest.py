"""Fixtures that the tests of clients share."""

from __future__ import annotations

from typing import Any

import pytest

import pygen
from pygen import mixin


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Records the models of patched `generate` calls, so that no test compares transformers with itself."""
    models: list[Any] = []

    def counted(model: Any, *args: Any, **kwargs: Any) -> Any:
        models.append(model)
        return pygen.generate(model, *args, **kwargs)

    monkeypatch.setattr(mixin, "generate", counted)
    return models
