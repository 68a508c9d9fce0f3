"""The unconditional text of guidance: another prompt, followed by the tokens that a call generates."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pygen.config.config import GenerationConfig, GenerationMode
from pygen.models.adapter import ModelAdapter, adapt, takes
from pygen.processors._checks import rows_of_batch
from pygen.request.prompt import Prompt, check_ids, check_mask
from pygen.request.settings import SpecialTokens, resolve_settings, resolve_special_tokens

if TYPE_CHECKING:
    from pygen.call.call import Call

# Settings that concern the conditional text only.
_UNSET = {
    "return_dict_in_generate": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "cache_implementation": None,
    "cache_config": None,
    "prefill_chunk_size": None,
}
# Capacity in tokens where the length of a generation is unknown; beyond it the text is read again.
_CAPACITY = 2048


class UnconditionalText:
    """Reads `prompt` and then the generated tokens, through a separate adapter and cache.

    num_copies: rows per prompt. moves: whether `reorder` will be called.
    """

    def __init__(
        self, adapter: ModelAdapter, prompt: Prompt, *, num_copies: int, max_new_tokens: int, moves: bool
    ) -> None:
        self._adapter = adapter
        self._prompt = prompt
        self._mode = GenerationMode.BEAM_SEARCH if moves else GenerationMode.GREEDY_SEARCH
        self._num_copies = num_copies
        self._capacity = max_new_tokens
        self._prompt_ids = prompt.input_ids.repeat_interleave(num_copies, dim=0)
        self._seen = -1
        self._logits: Tensor | None = None

    @property
    def cache(self) -> Any:
        return self._adapter.cache

    def advance(self, generated: Tensor) -> Tensor:
        """Logits (rows, vocab_size) after the generated tokens (rows, n), which extend those of the last call."""
        length = generated.shape[1]
        if self._seen < 0 or length > self._capacity:
            self._begin(length)
        text = torch.cat([self._prompt_ids, generated], dim=1)
        while self._seen < length:
            self._seen += 1
            self._logits = self._adapter.decode(text[:, : self._prompt_ids.shape[1] + self._seen])
        assert self._logits is not None
        return self._logits.float()

    def reorder(self, source_rows: Tensor) -> None:
        """Makes row r continue row source_rows[r] of the same prompt."""
        if self._seen > 0:
            self._adapter.reorder(source_rows, torch.zeros_like(source_rows), self._seen)

    def _begin(self, length: int) -> None:
        while self._capacity < length:
            self._capacity *= 2
        self._adapter.start(
            self._prompt, mode=self._mode, num_copies=self._num_copies, max_new_tokens=max(self._capacity, 1)
        )
        self._logits = self._adapter.prefill(self._prompt_ids)
        self._seen = 0


def unconditional_of_call(call: Call) -> UnconditionalText:
    """What `negative_prompt_ids` ask for, and without them the last token, or embedding, of every prompt.

    For an encoder-decoder model they are what the encoder reads; the decoder reads the call's own text.
    """
    config, adapter, prompt = copy.copy(call.config), adapt(call.model), call.prompt
    for name, value in _UNSET.items():
        setattr(config, name, value)
    if prompt.main_input_name not in ("input_ids", "inputs_embeds"):
        raise NotImplementedError(
            f"`guidance_scale` needs a model that reads `input_ids`, not {prompt.main_input_name}"
        )
    ids, mask, num_copies, embeds = call.negative_prompt_ids, call.negative_prompt_attention_mask, call.num_copies, None
    if ids is not None:
        ids = check_ids("negative_prompt_ids", ids, prompt.input_ids.device)
        if mask is not None:
            check_mask("negative_prompt_attention_mask", mask, ids, read_name="negative_prompt_ids", continues=False)
        # One for every row that is returned, or one for some prompts side by side.
        batch_size = call.batch_size
        if len(ids) == call.rows and (call.config.num_beams or 1) == 1:
            batch_size, num_copies = call.rows, 1
        ids = rows_of_batch("negative_prompt_ids", ids, batch_size)
        mask = None if mask is None else rows_of_batch("negative_prompt_attention_mask", mask, batch_size)
    elif adapter.is_encoder_decoder or prompt.input_ids.shape[1]:
        read = prompt.main_input if adapter.is_encoder_decoder else prompt.input_ids
        if read.is_floating_point() or read.ndim != 2 or bool((read < 0).any()):
            raise ValueError("`negative_prompt_ids` must be given with `guidance_scale` where no `input_ids` are")
        hidden_by = prompt.model_kwargs.get("attention_mask") if adapter.is_encoder_decoder else prompt.mask
        ids = _last_visible(read, hidden_by)
        mask = torch.ones_like(ids)
    else:
        embeds = _last_visible(prompt.main_input, prompt.mask)
    decoder: dict[str, Tensor] = {}
    if adapter.is_encoder_decoder:
        names = {"decoder_input_ids": prompt.input_ids, "decoder_attention_mask": prompt.mask}
        copies = call.num_copies // num_copies
        decoder = {name: _copied(value, copies) for name, value in names.items() if value is not None}
    read_prompt = _prompt(adapter, ids, mask, embeds, decoder, config, call.tokens)
    room = adapter.fit_positions(read_prompt, call.lengths.max_new_tokens)
    if room < call.lengths.max_new_tokens:
        raise ValueError(
            f"`negative_prompt_ids` must leave positions for {call.lengths.max_new_tokens} tokens, got {room}"
        )
    return UnconditionalText(
        adapter,
        read_prompt,
        num_copies=num_copies,
        max_new_tokens=call.lengths.max_new_tokens,
        moves=(call.config.num_beams or 1) > 1,
    )


def unconditional_of_arguments(
    model: nn.Module, ids: Tensor | None, mask: Tensor | None, use_cache: bool, input_ids: Tensor
) -> UnconditionalText:
    """The same for a loop of the caller's, which begins with the texts `input_ids` (rows, length)."""
    adapter, rows = adapt(model), len(input_ids)
    if ids is None and adapter.is_encoder_decoder:
        raise ValueError("`unconditional_ids` must be given for an encoder-decoder model: what its encoder reads")
    ids = input_ids[:, -1:] if ids is None else rows_of_batch("unconditional_input_ids", ids, rows)
    mask = torch.ones_like(ids) if mask is None else rows_of_batch("unconditional_attention_mask", mask, rows)
    unset = {**_UNSET, "use_cache": use_cache}
    config = resolve_settings(adapter.generation_config, None, unset).config
    decoder = {"decoder_input_ids": input_ids} if adapter.is_encoder_decoder else {}
    prompt = _prompt(adapter, ids, mask, None, decoder, config, resolve_special_tokens(config))
    return UnconditionalText(adapter, prompt, num_copies=1, max_new_tokens=_CAPACITY, moves=False)


def _prompt(
    adapter: ModelAdapter,
    ids: Tensor | None,
    mask: Tensor | None,
    embeds: Tensor | None,
    decoder: dict[str, Tensor],
    config: GenerationConfig,
    tokens: SpecialTokens,
) -> Prompt:
    kwargs = dict(decoder)
    if embeds is not None:
        kwargs["inputs_embeds"] = embeds
    # A mask that hides nothing is no loss where the model takes none.
    if mask is not None and (bool((mask == 0).any()) or takes(adapter, "attention_mask", mask)):
        kwargs["attention_mask"] = mask
    adapter.check(kwargs, config)
    return adapter.prompt(ids, kwargs, config, tokens)


def _copied(value: Tensor, copies: int) -> Tensor:
    return value.repeat_interleave(copies, dim=0)


def _last_visible(read: Tensor, mask: Tensor | None) -> Tensor:
    """The last position of `read` (batch_size, length, ...) that the mask shows, (batch_size, 1, ...)."""
    length = read.shape[1]
    if mask is None:
        return read[:, -1:]
    places = torch.arange(length, device=mask.device)
    last = torch.where(mask[:, -length:] != 0, places, 0).amax(dim=1)
    return read[torch.arange(len(read), device=read.device), last.to(read.device)][:, None]
