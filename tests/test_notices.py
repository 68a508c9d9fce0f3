"""Warnings and log messages of calls: how often, at which line, and at which level."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import pytest
import torch
from transformers.utils import logging as theirs

import pygen
from tests.generate.models import encoder_decoder, hf_model

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])
# The call logs two messages, one of them about every step, and warns once.
TALKATIVE: dict[str, Any] = {
    "eos_token_id": -1,
    "watermarking_config": pygen.WatermarkingConfig(seeding_scheme="selfhash", context_width=40),
}
MESSAGES = ["a negative id never ends a row", "context_width=40 needs as many tokens", "Neither `max_new_tokens` nor"]


@pytest.fixture
def quiet() -> None:
    theirs.set_verbosity_error()


def said(caplog: pytest.LogCaptureFixture, **settings: Any) -> tuple[list[str], list[warnings.WarningMessage]]:
    """Returns a call's log messages and warnings."""
    caplog.clear()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pygen.generate(hf_model("llama"), IDS, **settings)
    ours = [warning for warning in caught if warning.category is UserWarning]
    return [record.getMessage() for record in caplog.records if record.name.startswith("pygen")], ours


def test_each_notice_comes_once_per_call_at_the_callers_line(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        logged, warned = said(caplog, **TALKATIVE)
        assert [text in message for text, message in zip(MESSAGES, logged, strict=False)] == [True, True]
        assert len(logged) == 2
        assert [str(warning.message)[:28] for warning in warned] == [MESSAGES[2]]
        assert warned[0].filename == __file__


def test_no_notices_if_transformers_is_quiet(quiet: None, caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, **TALKATIVE) == ([], [])
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:  # as if it were not loaded
        patch.delitem(sys.modules, "transformers.utils.logging")
        assert len(said(caplog, **TALKATIVE)[0]) == 2


def test_explain_tells_all_without_saying_it(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes = pygen.explain(hf_model("llama"), IDS, **TALKATIVE).notes
    assert [any(text in note for note in notes) for text in MESSAGES] == [True, False, True]
    assert not caplog.records


def test_penalties_that_see_no_prompt(caplog: pytest.LogCaptureFixture) -> None:
    model = hf_model("llama")
    embeds = model.get_input_embeddings()(IDS)
    settings: dict[str, Any] = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "max_new_tokens": 3}
    text = "`repetition_penalty` and `no_repeat_ngram_size` look at generated tokens only"
    searches: tuple[dict[str, Any], ...] = ({}, {"num_beams": 2})
    for beams in searches:
        with pytest.warns(UserWarning, match=text) as caught:
            pygen.generate(model, inputs_embeds=embeds, pad_token_id=0, **settings, **beams)
        assert len([warning for warning in caught if "generated tokens only" in str(warning.message)]) == 1
    with pytest.warns(UserWarning, match="^`no_repeat_ngram_size` looks at generated tokens only"):
        pygen.generate(model, inputs_embeds=embeds, no_repeat_ngram_size=2, max_new_tokens=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*generated tokens only")
        pygen.generate(model, IDS, inputs_embeds=embeds, **settings)
        pygen.generate(model, inputs_embeds=embeds, presence_penalty=0.5, max_new_tokens=3)


@pytest.mark.parametrize("embeds", [torch.ones(2, 3, 32, dtype=torch.int64), torch.ones(2), [1.0]], ids=str)
def test_ids_and_embeddings_of_an_encoder_exclude_each_other(embeds: Any) -> None:
    """The error comes first, whatever the embeddings are."""
    with pytest.raises(ValueError, match="`input_ids` and `inputs_embeds` exclude each other"):
        pygen.generate(encoder_decoder("bart"), input_ids=IDS, inputs_embeds=embeds, max_new_tokens=2)
