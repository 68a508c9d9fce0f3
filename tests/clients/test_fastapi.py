"""The example server: FastAPI around `pygen.Engine`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

import pygen
from examples.serve import app_for
from tests.clients import models

WORDS = ("the", "river", "is", "long")


@pytest.fixture(scope="module")
def model() -> Any:
    return models.model()


@pytest.fixture(scope="module")
def client(model: Any) -> Iterator[TestClient]:
    with pygen.Engine(model, tokenizer=models.tokenizer(*WORDS), rows=2, max_new_tokens=8) as engine:
        yield TestClient(app_for(engine))


def test_every_request_gets_the_text_of_a_separate_call(client: TestClient, model: Any) -> None:
    tokenizer = models.tokenizer(*WORDS)
    requests = [{"prompt": " ".join(WORDS[:n]), "do_sample": True, "seed": n} for n in range(1, 5)]
    with ThreadPoolExecutor(4) as threads:
        answers = [*threads.map(lambda request: client.post("/generate", json=request), requests)]
    for request, answer in zip(requests, answers, strict=True):
        prompt = tokenizer(request["prompt"], return_tensors="pt").input_ids
        tokens: Any = pygen.generate(model, prompt, do_sample=True, seed=request["seed"], max_new_tokens=8)
        assert answer.text == tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": "the", "top_p": 1.2}, "`top_p` must be"),
        ({"prompt": "the", "num_beams": 4}, "beam search"),
        ({"seed": 1}, "`prompt`"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(client: TestClient, request_: dict[str, Any], message: str) -> None:
    answer = client.post("/generate", json=request_)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
