"""Drafts of an assistant with another vocabulary, through the text or through the shared tokens."""

from __future__ import annotations

import sys
from difflib import SequenceMatcher

import torch
from torch import Tensor, nn

from pygen import ops
from pygen.candidates.assistant import AssistedCandidateGenerator
from pygen.candidates.drafter import DraftSettings, Follower, assistant_settings
from pygen.candidates.inputs import prompt_of_text
from pygen.candidates.translator import AssistantToTargetTranslator, AssistantVocabTranslatorCache
from pygen.candidates.vocabulary import of_width
from pygen.knobs import WARPERS
from pygen.models.devices import execution_device
from pygen.request.protocols import GenerationSettings, Tokenizer
from pygen.request.settings import resolve_special_tokens

# The assistant's cache has this capacity beyond the text. A text that outgrows it gets a new cache.
_SPARE = 256


class AssistedCandidateGeneratorDifferentTokenizers(AssistedCandidateGenerator):
    """Tokenizes the text for the assistant, and the assistant's continuation for the target::

        assistant ids = the tokenized text; later, the previous ids with their end tokenized again
        drafts = up to num_assistant_tokens most probable tokens, see `AssistedCandidateGenerator`
        candidates = input_ids, followed by the new part of the text's end with the drafts, tokenized for the target

    The generator takes one row. The two ends are the last `target_lookbehind` tokens with all new ones, and the last
    `assistant_lookbehind` tokens with the drafts. It drafts greedily, and the target's processors do not act on the
    drafts, because they name tokens that the assistant does not have. Drafting stops at the assistant's own
    end-of-sequence tokens.

    Errors: TypeError for tokenizers without `decode`, ValueError for several rows.
    """

    def __init__(
        self,
        input_ids: Tensor,
        assistant_model: nn.Module,
        target_tokenizer: Tokenizer,
        assistant_tokenizer: Tokenizer,
        generation_config: GenerationSettings,
        model_kwargs: dict[str, object],
        inputs_tensor: Tensor | None = None,
        logits_processor: object = None,
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

    def use_settings(self, settings: DraftSettings) -> None:
        super().use_settings(settings)
        self._threshold = settings.assistant_confidence_threshold
        self.target_lookbehind = settings.target_lookbehind
        self.assistant_lookbehind = settings.assistant_lookbehind

    def convert_source_tokens_to_target_tokens(
        self, input_ids: Tensor, source_tokenizer: Tokenizer, destination_tokenizer: Tokenizer
    ) -> Tensor:
        """(1, length) -> (1, other length): tokenizes the text of the ids, without special tokens, again."""
        ids = _tokenized(destination_tokenizer, _text(source_tokenizer, input_ids[0].tolist()), special=True)
        return torch.tensor([ids], dtype=torch.int64, device=input_ids.device)

    def draft_for(self, vocab_size: int) -> None:
        """Does nothing: drafts are tokens of the target's tokenizer, whatever the width of its logits."""

    def get_candidates(self, input_ids: Tensor, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        ids = input_ids[0].tolist()
        assistant_ids = self._assistant_ids(ids)
        if not assistant_ids:
            return input_ids, None
        drafted = self._draft(assistant_ids)
        window = assistant_ids[-self.assistant_lookbehind :] + drafted
        spelt = _tokenized(self.target_tokenizer, _text(self.assistant_tokenizer, window), special=False)
        tail = ids[-len(spelt) :] if spelt else []
        kept, new = continued(tail, spelt)
        # The text's tokens stay, even where the tokenizer splits their letters differently now.
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
        """(1, vocab_size) float32, the assistant's logits after `assistant_ids`."""
        tokens = torch.tensor([assistant_ids], dtype=torch.int64, device=execution_device(self.assistant_model))
        if self._follower is None or tokens.shape[1] > self._capacity or not self._follower.rewind(tokens):
            self._capacity = tokens.shape[1] + _SPARE
            adapter, prompt = prompt_of_text(self.assistant_model, tokens)
            self._follower = Follower(adapter, prompt, _SPARE, model=self.assistant_model)
        return self._follower.advance(tokens).float()


class UniversalSpeculativeDecodingGenerator(AssistedCandidateGeneratorDifferentTokenizers):
    """Draws drafts from the tokens that both vocabularies have, and returns their scores in the target's vocabulary.

    The settings' temperature and filters act on the drafts. The generator takes one row. torch's default generator
    gives the noise.

    atm_translator: translates the shared tokens. None requires a call of `draft_for` before the first drafts.
    """

    def __init__(
        self,
        input_ids: Tensor,
        assistant_model: nn.Module,
        target_tokenizer: Tokenizer,
        assistant_tokenizer: Tokenizer,
        generation_config: GenerationSettings,
        model_kwargs: dict[str, object],
        atm_translator: AssistantToTargetTranslator | None,
        inputs_tensor: Tensor | None = None,
        logits_processor: object = None,
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

    def get_candidates(self, input_ids: Tensor, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        assistant_ids = self._assistant_ids(input_ids[0].tolist())
        limit = min(self.num_assistant_tokens, self._max_length - input_ids.shape[1] - 1)
        overlap = self._translator.assistant_overlap_token_ids
        if limit <= 0 or not assistant_ids or len(overlap) == 0:
            return input_ids, None
        drafted: list[int] = []
        scores: list[Tensor] = []
        for _ in range(limit):
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
        """vocab_size: the number of columns of the target's logits."""
        self._translator = AssistantVocabTranslatorCache.get_translator(
            self.target_tokenizer, self.assistant_tokenizer, vocab_size, self.assistant_model, True
        )

    def _columns(self, logits: Tensor) -> Tensor:
        overlap = self._translator.assistant_overlap_token_ids
        # A tokenizer may have more tokens than the assistant's head.
        logits = of_width(logits, max(logits.shape[1], int(overlap[-1]) + 1))
        return logits[:, overlap] if self._translator.assistant_prune_lm_head else logits

    def _assistant_ids(self, ids: list[int]) -> list[int]:
        """Tokenizes the prompt once, and translates each later token, or tokenizes that alone."""
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
    """Where `window` continues `known`: (the number of ids of `known` that stay, the ids that follow them).

    The longest run of ids that both have aligns the two; ties go to the first one in `window`, then in `known`. Without
    a common id, `window` follows all of `known`.
    """
    run = SequenceMatcher(None, window, known, autojunk=False).find_longest_match()
    return (run.b + run.size, window[run.a + run.size :]) if run.size else (len(known), window)


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _tokenized(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    return [int(token_id) for token_id in tokenizer(text, add_special_tokens=special)["input_ids"]]
