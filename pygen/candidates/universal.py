"""Drafts of an assistant with another vocabulary: by way of the text, or of the tokens that both have."""

from __future__ import annotations

import sys
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor

from pygen import ops
from pygen.candidates.assistant import AssistedCandidateGenerator
from pygen.candidates.drafter import Follower, assistant_settings
from pygen.candidates.inputs import prompt_of_text
from pygen.candidates.translator import AssistantToTargetTranslator, AssistantVocabTranslatorCache
from pygen.knobs import WARPERS
from pygen.models.devices import execution_device
from pygen.request.settings import resolve_special_tokens

# Assistants may need more tokens than the target for the same text; beyond this they begin anew.
_ROOM = 256


class AssistedCandidateGeneratorDifferentTokenizers(AssistedCandidateGenerator):
    """The text so far is tokenized for the assistant, and the text that it adds for the target::

        assistant ids = tokenized text; later, those so far with the end tokenized anew
        drafts = up to num_assistant_tokens most probable tokens, see `AssistedCandidateGenerator`
        candidates = the end of the text with the drafts, tokenized for the target, behind what it shares with input_ids

    One row. The ends are `target_lookbehind` tokens and what is new, and `assistant_lookbehind` tokens and the drafts.
    The target's processors name tokens that the assistant has not, so they do not act on the drafts; nothing is drawn.
    Drafting stops at the assistant's own end-of-sequence tokens.
    """

    def __init__(
        self,
        input_ids: Tensor,
        assistant_model: Any,
        target_tokenizer: Any,
        assistant_tokenizer: Any,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        inputs_tensor: Tensor | None = None,
        logits_processor: Any = None,
    ):
        for name, tokenizer in (("target_tokenizer", target_tokenizer), ("assistant_tokenizer", assistant_tokenizer)):
            if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
                raise TypeError(f"`{name}` must be a tokenizer of transformers, got {type(tokenizer).__name__}")
        if input_ids.shape[0] != 1:
            raise ValueError(f"`input_ids` must have one row, got {input_ids.shape[0]}; `pygen.generate` takes batches")
        self.assistant_model = assistant_model
        self.target_tokenizer = target_tokenizer
        self.assistant_tokenizer = assistant_tokenizer
        self._max_length = sys.maxsize if generation_config.max_length is None else generation_config.max_length
        own = getattr(assistant_model, "generation_config", None)
        self._assistant_eos = resolve_special_tokens(own).eos or [] if own is not None else []
        self._known: tuple[list[int], int] | None = None
        self._follower: Follower | None = None
        self._capacity = 0
        self.use_settings(assistant_settings(assistant_model))

    def use_settings(self, settings: dict[str, Any]) -> None:
        super().use_settings(settings)
        self._threshold: float = settings["assistant_confidence_threshold"]
        self.target_lookbehind: int = settings["target_lookbehind"]
        self.assistant_lookbehind: int = settings["assistant_lookbehind"]

    def convert_source_tokens_to_target_tokens(
        self, input_ids: Tensor, source_tokenizer: Any, destination_tokenizer: Any
    ) -> Tensor:
        """(1, length) -> (1, other length): the text of the ids, without special tokens, tokenized anew."""
        ids = _tokenized(destination_tokenizer, _text(source_tokenizer, input_ids[0].tolist()), special=True)
        return torch.tensor([ids], dtype=torch.int64, device=input_ids.device)

    def draft_for(self, vocab_size: int) -> None:
        """The width of the model's logits changes nothing: drafts are tokens of the target's tokenizer."""

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        ids = input_ids[0].tolist()
        assistant_ids = self._assistant_ids(ids)
        if not assistant_ids:
            return input_ids, None
        drafted = self._draft(assistant_ids)
        window = assistant_ids[-self.assistant_lookbehind :] + drafted
        spelt = _tokenized(self.target_tokenizer, _text(self.assistant_tokenizer, window), special=False)
        tail = ids[-len(spelt) :] if spelt else []
        kept, new = continued(tail, spelt)
        # The text's own tokens stay, also where another tokenizer cuts their letters differently.
        new = new[len(tail) - kept :]
        new = new[: max(self._max_length - len(ids), 0)]
        if not new:
            return input_ids, None
        return torch.cat([input_ids, input_ids.new_tensor([new])], dim=1), None

    def _assistant_ids(self, ids: list[int]) -> list[int]:
        """The text of the target's ids in the assistant's tokens."""
        before, length = self._known or ([], 0)
        start = length - self.target_lookbehind
        if start <= 0:
            result = _tokenized(self.assistant_tokenizer, _text(self.target_tokenizer, ids), special=True)
        else:
            window = _tokenized(self.assistant_tokenizer, _text(self.target_tokenizer, ids[start:]), special=False)
            offset = max(len(before) - len(window), 0)
            kept, new = continued(before[offset:], window)
            result = before[: offset + kept] + new
        self._known = result, len(ids)
        return result

    def _draft(self, assistant_ids: list[int]) -> list[int]:
        drafted: list[int] = []
        for _ in range(self.num_assistant_tokens):
            probabilities = self._logits(assistant_ids + drafted)[0].softmax(-1)
            probability, token_id = probabilities.max(0)
            drafted.append(int(token_id))
            if float(probability) < self._threshold or drafted[-1] in self._assistant_eos:
                break
        return drafted

    def _logits(self, assistant_ids: list[int]) -> Tensor:
        """(1, vocab_size) float32, after these ids of the assistant."""
        tokens = torch.tensor([assistant_ids], dtype=torch.int64, device=execution_device(self.assistant_model))
        if self._follower is None or tokens.shape[1] > self._capacity or not self._follower.rewind(tokens):
            self._capacity = tokens.shape[1] + _ROOM
            adapter, prompt = prompt_of_text(self.assistant_model, tokens)
            self._follower = Follower(adapter, prompt, _ROOM, model=self.assistant_model)
        return self._follower.advance(tokens).float()


class UniversalSpeculativeDecodingGenerator(AssistedCandidateGeneratorDifferentTokenizers):
    """Draws drafts among the tokens that both vocabularies have, and tells their scores in the target's.

    The settings' temperature and filters act on the drafts. One row. The noise is that of torch's default generator.

    atm_translator: which tokens these are. None where `draft_for` comes before the first drafts.
    """

    def __init__(
        self,
        input_ids: Tensor,
        assistant_model: Any,
        target_tokenizer: Any,
        assistant_tokenizer: Any,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        atm_translator: AssistantToTargetTranslator | None,
        inputs_tensor: Tensor | None = None,
        logits_processor: Any = None,
    ):
        super().__init__(
            input_ids,
            assistant_model,
            target_tokenizer,
            assistant_tokenizer,
            generation_config,
            model_kwargs,
            inputs_tensor,
            logits_processor,
        )
        if atm_translator is not None:
            self._translator = atm_translator
        knobs = {name: getattr(generation_config, name, None) for name in [knob.name for knob in WARPERS]}
        self._knobs = {name: value for name, value in knobs.items() if value is not None}
        self._eos = resolve_special_tokens(generation_config).eos or []
        self._pieces: list[tuple[int, list[int]]] = []
        self._prompt: list[int] | None = None

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        assistant_ids = self._assistant_ids(input_ids[0].tolist())
        room = min(self.num_assistant_tokens, self._max_length - input_ids.shape[1] - 1)
        overlap = self._translator.assistant_overlap_token_ids
        if room <= 0 or not assistant_ids or len(overlap) == 0:
            return input_ids, None
        drafted: list[int] = []
        scores: list[Tensor] = []
        for _ in range(room):
            logits = self._translator.get_target_logits(self._columns(self._logits(assistant_ids)))
            scores.append(ops.process_logits(logits, **self._knobs))
            draw = ops.sample(scores[-1], rng="torch", logprobs=1)
            assert draw.logprobs is not None
            drafted.append(int(draw.token_ids))
            if float(draw.logprobs.exp()) < self._threshold or drafted[-1] in self._eos:
                break
            assistant_ids = [*assistant_ids, self._translator.target_to_assistant_input_ids[drafted[-1]]]
        drafts = input_ids.new_tensor([drafted])
        return torch.cat([input_ids, drafts], dim=1), torch.stack(scores, dim=1)

    def draft_for(self, vocab_size: int) -> None:
        """vocab_size: columns of the target's logits."""
        self._translator = AssistantVocabTranslatorCache.get_translator(
            self.target_tokenizer, self.assistant_tokenizer, vocab_size, self.assistant_model, True
        )

    def _columns(self, logits: Tensor) -> Tensor:
        overlap = self._translator.assistant_overlap_token_ids
        # A tokenizer may know more tokens than the assistant's head.
        missing = int(overlap[-1]) + 1 - logits.shape[1]
        if missing > 0:
            logits = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
        return logits[:, overlap] if self._translator.assistant_prune_lm_head else logits

    def _assistant_ids(self, ids: list[int]) -> list[int]:
        """The prompt is tokenized once; each later token is translated, or tokenized by itself."""
        if self._prompt is None:
            self._prompt = _tokenized(self.assistant_tokenizer, _text(self.target_tokenizer, ids), special=False)
            self._prompt_length = len(ids)
        new = ids[self._prompt_length :]
        same = 0
        while same < min(len(new), len(self._pieces)) and self._pieces[same][0] == new[same]:
            same += 1
        del self._pieces[same:]
        for token_id in new[same:]:
            translated = self._translator.target_to_assistant_input_ids.get(token_id)
            if translated is not None:
                self._pieces.append((token_id, [translated]))
            else:
                text = _text(self.target_tokenizer, [token_id])
                self._pieces.append((token_id, _tokenized(self.assistant_tokenizer, text, special=False)))
        return [*self._prompt, *(piece for _, pieces in self._pieces for piece in pieces)]


def continued(known: list[int], window: list[int]) -> tuple[int, list[int]]:
    """Where `window` goes on from `known`: (how many ids of `known` come before it, what comes then).

    They are laid over each other at the longest run that both have, the first one of `window`, then of `known`; without
    any, `window` comes behind `known`.
    """
    run = SequenceMatcher(None, window, known, autojunk=False).find_longest_match()
    return (run.b + run.size, window[run.a + run.size :]) if run.size else (len(known), window)


def _text(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _tokenized(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return [int(token_id) for token_id in tokenizer(text, add_special_tokens=special)["input_ids"]]
