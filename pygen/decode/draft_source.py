"""Where the drafts of a call come from: an assistant, the prompt, or the model's first layers."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from torch import Tensor, nn

from pygen.call.call import Call
from pygen.candidates.assistant import AssistedCandidateGenerator, EarlyExitCandidateGenerator
from pygen.candidates.base import CandidateGenerator
from pygen.candidates.draft_plan import for_drafts
from pygen.candidates.drafter import SETTINGS, DraftSettings, PlanScores, assistant_settings, state_for
from pygen.candidates.inputs import add_encoder_outputs, assistant_call
from pygen.candidates.one_by_one import OneByOne
from pygen.candidates.prompt_lookup import PromptLookupCandidateGenerator
from pygen.candidates.universal import (
    AssistedCandidateGeneratorDifferentTokenizers,
    UniversalSpeculativeDecodingGenerator,
)
from pygen.config.config import GenerationConfig
from pygen.ops import DecodeState
from pygen.plan.plan import Plan, make_plan
from pygen.request.protocols import Tokenizer


class DraftSource:
    """Where a call's drafts come from: the first layers, else the prompt, else the assistant."""

    def __init__(self, call: Call, plan: Plan) -> None:
        config = call.config
        self._call = call
        self._generator: AssistedCandidateGenerator | OneByOne | None = None
        self._draft_call: Call | None = None
        self._assistant = call.model if config.assistant_early_exit is not None else call.assistant_model
        self.has_scores = self._uses_torch_noise = plan.noise.get("rng") == "torch"
        if config.assistant_early_exit is None and config.prompt_lookup_num_tokens is not None:
            self._assistant = None
            self.has_scores = False
            return
        given = _given_settings(call)
        self._remembers = "num_assistant_tokens" not in given and "num_assistant_tokens_schedule" not in given
        settings = assistant_settings(self._assistant, given)
        if config.assistant_early_exit is None and None not in (call.tokenizer, call.assistant_tokenizer):
            # The scores of shared tokens are of use only where torch's default generator draws.
            self.has_scores &= call.generator is None
            self._generator = _with_other_tokens(call, settings, draws=self.has_scores)
            return
        assert self._assistant is not None
        self._draft_call = assistant_call(call, self._assistant)
        kind = AssistedCandidateGenerator if config.assistant_early_exit is None else EarlyExitCandidateGenerator
        self._generator = kind.of_call(self._draft_call, settings, keep_scores=self.has_scores)

    def generator(self, state: DecodeState, vocab_size: int) -> CandidateGenerator:
        """Called when the model has read the prompt. vocab_size: columns of its logits."""
        call, config = self._call, self._call.config
        if self._draft_call is not None:
            encoded = getattr(call.adapter, "encoder_outputs", None)
            add_encoder_outputs(self._draft_call.adapter, self._draft_call.prompt, encoded)
        if self._generator is not None:
            self._generator.draft_for(vocab_size)
            # Rows that ended have no text to go on with.
            return _Running(state, self._generator) if isinstance(self._generator, OneByOne) else self._generator
        number = config.prompt_lookup_num_tokens or 10
        lookup = PromptLookupCandidateGenerator(
            eos_token_id=state.eos_token_ids,
            num_output_tokens=number,
            max_matching_ngram_size=config.max_matching_ngram_size or 2,
            max_length=state.prompt_length + call.lengths.max_new_tokens,
            vocab_size=vocab_size,
        )
        if self._uses_torch_noise and state.rows == 1:
            # The number of drafts decides which noise a token gets, so what transformers forbids is left out here too.
            plan = _lookup_plan(call)
            lookup.logits_processor = PlanScores(plan, state_for(call, plan, call.lengths.max_new_tokens + number))
        return _Running(state, lookup)

    def remember(self) -> None:
        """The one thing that outlives a call: the number of drafts, where the assistant's own schedule says so."""
        own = getattr(self._assistant, "generation_config", None)
        if own is None or not self._remembers:
            return
        if own.num_assistant_tokens_schedule == "heuristic":
            assert self._generator is not None
            own.num_assistant_tokens = self._generator.num_assistant_tokens


def _with_other_tokens(call: Call, settings: DraftSettings, *, draws: bool) -> OneByOne:
    """Drafts of an assistant with another tokenizer."""
    width = call.prompt.input_ids.shape[1]

    def make(prompt_ids: Tensor, padding: int) -> AssistedCandidateGenerator:
        config = copy.copy(call.config)
        config.max_length = width - padding + call.lengths.max_new_tokens
        assert call.assistant_model is not None
        assert call.tokenizer is not None and call.assistant_tokenizer is not None
        arguments: tuple[Tensor, nn.Module, Tokenizer, Tokenizer, GenerationConfig, dict[str, object]]
        arguments = (prompt_ids, call.assistant_model, call.tokenizer, call.assistant_tokenizer, config, {})
        if draws:
            return UniversalSpeculativeDecodingGenerator(*arguments, None)
        return AssistedCandidateGeneratorDifferentTokenizers(*arguments)

    mask = None if call.prompt.mask is None else call.prompt.mask[:, -width:].repeat_interleave(call.num_copies, dim=0)
    return OneByOne(call.prompt.input_ids.repeat_interleave(call.num_copies, dim=0), mask, make, settings)


def _lookup_plan(call: Call) -> Plan:
    """A new plan that shows which drafts are forbidden, since processors may keep states. Guidance forbids nothing."""
    plan = for_drafts(make_plan(call))
    return dataclasses.replace(plan, items=tuple(item for item in plan.items if item.name != "guidance_scale"))


class _Running(CandidateGenerator):
    """Drafts of another generator for the rows that go on; the others get their last token again."""

    def __init__(self, state: DecodeState, generator: CandidateGenerator) -> None:
        self._state = state
        self._generator = generator

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        rows = (~self._state.finished).nonzero()[:, 0]
        found, of_rows = self._generator.get_candidates(input_ids[rows], rows=rows.tolist())
        count = found.shape[1] - input_ids.shape[1]
        tokens = input_ids.new_empty((len(input_ids), found.shape[1]))
        tokens[:, : input_ids.shape[1]] = input_ids
        tokens[:, input_ids.shape[1] :] = input_ids[:, -1:].expand(-1, count)
        tokens[rows] = found
        if of_rows is None:
            return tokens, None
        scores = of_rows.new_zeros((len(input_ids), *of_rows.shape[1:]))
        scores[rows] = of_rows
        return tokens, scores

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        self._generator.update_candidate_strategy(input_ids, scores, num_matches)


def _given_settings(call: Call) -> dict[str, Any]:
    """What the call itself says about drafts."""
    sources = call.settings.sources
    return {
        name: getattr(call.config, name) for name in SETTINGS if sources.get(name) in ("argument", "generation_config")
    }
