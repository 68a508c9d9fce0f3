"""Reads a text in pieces with a transformers model, using only its own forwards and caches.

Some models give different logits with and without a cache. Tests compare pygen's results with these readings then.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor

# A difference of logits that rounding cannot explain.
_DIFFERENT = 0.1


@dataclasses.dataclass(frozen=True)
class Piece:
    """The input of a forward: token_ids (rows, length), after the first `start` columns of the text."""

    start: int
    token_ids: Tensor


def one_by_one(token_ids: Tensor, prompt_length: int) -> list[Piece]:
    """Returns the prompt as one piece, and each token after it as another."""
    places = range(prompt_length, token_ids.shape[1])
    return [Piece(0, token_ids[:, :prompt_length]), *(Piece(i, token_ids[:, i : i + 1]) for i in places)]


@dataclasses.dataclass
class Reader:
    """
    model: a decoder, or a decoder with an encoder.
    mask: the prompts' mask, (rows, prompt_length).
    encoder_inputs: the encoder's inputs, by name.
    window: whether layers with a window keep only the window, as transformers' cache does except for drafts.
    """

    model: Any
    mask: Tensor | None = None
    encoder_inputs: dict[str, Tensor] | None = None
    window: bool = True

    def read(self, pieces: list[Piece]) -> Iterator[Any]:
        """Yields the outputs of a forward for each piece. It first crops columns after the piece's start."""
        cache, encoded, name = self._empty_cache(), self._encoded(), _cache_name(self.model)
        text, before = pieces[0].token_ids[:, :0], {0: copy.deepcopy(cache)}
        for piece in pieces:
            if piece.start < text.shape[1]:
                cache = _taken_back(cache, before, text.shape[1], piece.start)
            before[piece.start] = copy.deepcopy(cache)
            text = torch.cat([text[:, : piece.start], piece.token_ids], dim=1)
            inputs = self.model.prepare_inputs_for_generation(
                text,
                next_sequence_length=piece.token_ids.shape[1],
                use_cache=True,
                is_first_iteration=piece.start == 0,
                **{name: cache},
                **(encoded or self._places(text)),
            )
            with torch.no_grad():
                outputs = self.model(**inputs, output_hidden_states=True, return_dict=True)
            cache = outputs.get(name, cache)
            yield outputs

    def reads_alike(self, token_ids: Tensor, prompt_length: int) -> bool:
        """Returns whether logits with a cache, token by token, equal those without."""
        cached = [outputs.logits[:, -1] for outputs in self.read(one_by_one(token_ids, prompt_length))]
        encoded = self._encoded()
        inputs = (
            {"decoder_input_ids": token_ids, **encoded}
            if encoded
            else {"input_ids": token_ids, **self._places(token_ids)}
        )
        with torch.no_grad():
            whole = self.model(**inputs, use_cache=False, return_dict=True).logits
        return bool((torch.stack(cached, dim=1) - whole[:, prompt_length - 1 :]).abs().max() < _DIFFERENT)

    @contextlib.contextmanager
    def by_token(self, prompt_length: int) -> Iterator[None]:
        """Makes cacheless forwards return the logits with a cache: the decoder reads each text token by token."""
        forward = self.model.forward

        @functools.wraps(forward)
        def read_by_token(**kwargs: Any) -> Any:
            if kwargs.get("use_cache"):
                return forward(**kwargs)
            token_ids, mask = kwargs["input_ids"], self.mask
            rows = None if mask is None else mask.repeat_interleave(len(token_ids) // len(mask), dim=0)
            outputs = list(dataclasses.replace(self, mask=rows).read(one_by_one(token_ids, prompt_length)))
            layers = zip(*(piece.hidden_states for piece in outputs), strict=True)
            states: Any = tuple(torch.cat(layer, dim=1) for layer in layers)
            logits: Any = torch.cat([piece.logits for piece in outputs], dim=1)
            return transformers.modeling_outputs.CausalLMOutput(logits=logits, hidden_states=states)

        self.model.forward = read_by_token
        try:
            yield
        finally:
            del self.model.forward

    def _empty_cache(self) -> Any:
        config = {"config": self.model.config.get_text_config(decoder=True)} if self.window else {}
        make: Callable[[], Any] = functools.partial(transformers.DynamicCache, **config)
        return make() if self.encoder_inputs is None else transformers.EncoderDecoderCache(make(), make())

    def _encoded(self) -> dict[str, Any]:
        if self.encoder_inputs is None:
            return {}
        with torch.no_grad():
            outputs = self.model.get_encoder()(**self.encoder_inputs, return_dict=True)
        mask = self.encoder_inputs.get("attention_mask")
        return {"encoder_outputs": outputs} | ({} if mask is None else {"attention_mask": mask})

    def _places(self, text: Tensor) -> dict[str, Tensor]:
        """Returns the mask of a text, and the positions of its tokens if the model takes them."""
        visible = torch.ones_like(text)
        if self.mask is not None:
            visible[:, : self.mask.shape[1]] = self.mask
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return {"attention_mask": visible}
        return {"attention_mask": visible, "position_ids": (visible.cumsum(-1) - 1).clamp(min=0)}


def _taken_back(cache: Any, before: dict[int, Any], length: int, start: int) -> Any:
    if start in before:
        return copy.deepcopy(before[start])
    cache.crop(start - length)
    return cache


def _cache_name(model: Any) -> str:
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@contextlib.contextmanager
def recorded(model: Any) -> Iterator[list[Piece]]:
    """Yields a list that records every forward of `model` as a piece."""
    pieces, name = [], _cache_name(model)

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["decoder_input_ids"] if "decoder_input_ids" in kwargs else kwargs["input_ids"]
        pieces.append(Piece(int(kwargs[name].get_seq_length()), ids.clone()))

    hook = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield pieces
    finally:
        hook.remove()
