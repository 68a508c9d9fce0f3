"""`custom_generate`: `pygen.generate` in the form in which transformers' `generate` calls a decoding loop."""

from __future__ import annotations

import copy
import inspect
import sys
from types import FrameType
from typing import Any

from torch import Tensor, nn

from pygen import knobs
from pygen.call.arguments import BEYOND
from pygen.config.rules import EXTENSION_RULES
from pygen.generate import generate
from pygen.outputs import GenerateOutput
from pygen.request.protocols import Streamer

# Arguments of transformers' `generate` that reach pygen as the caller gave them.
_PASSED = (
    "inputs",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)
_MODULE = "transformers.generation.utils"
_LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")
# Arguments that transformers leaves to the loop because the loop's signature has them. Knobs are among them, because
# transformers refuses one value per row.
_OWN = dict.fromkeys([*(knob.name for knob in knobs.SETTINGS), *EXTENSION_RULES, *BEYOND])


def custom_generate(
    model: nn.Module,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    **model_kwargs: Any,
) -> Tensor | GenerateOutput:
    """Runs `pygen.generate` as the decoding loop of transformers' own `generate`, with the same tokens.

    ```
    model.generate(**inputs, custom_generate=pygen.custom_generate, do_sample=True, top_p=0.9, seed=7)
    ```

    transformers checks and resolves the call first. Every argument of `pygen.generate` works, one value per row and
    `seed` included, except `tokenizer` and `assistant_tokenizer`, which transformers gives to no custom loop: stop
    strings then need a `StopStringCriteria` in `stopping_criteria`. transformers also hands such a loop neither the
    streamer nor the assistant, so pygen reads the arguments of the running call itself.

    Errors: those of both, and NotImplementedError outside a call of transformers' `generate`.
    """
    call = _running_call(model)
    if call is None:
        raise NotImplementedError(
            "`custom_generate` is an argument for `generate` of a transformers model; call `pygen.generate` otherwise"
        )
    kwargs = {name: value for name, value in call["kwargs"].items() if name not in _LENGTHS}
    kwargs |= {name: model_kwargs[name] for name in _OWN if name in model_kwargs}
    if "encoder_outputs" not in kwargs and "encoder_outputs" in model_kwargs:
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        kwargs["encoder_outputs"] = _one_row_per_prompt(model_kwargs["encoder_outputs"], copies)
    passed = {name: call[name] for name in _PASSED}
    streamer = None if call["streamer"] is None else _AfterPrompt(call["streamer"])
    settings = _settings(generation_config, input_ids.shape[1])
    return generate(model, generation_config=settings, streamer=streamer, **passed, **kwargs)


# transformers passes the keyword arguments that the signature of a loop names. `__wrapped__` lets `pygen.generate`
# recognise this loop as itself.
_signature = inspect.signature(custom_generate)
_own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _OWN]
*_first, _rest = _signature.parameters.values()
vars(custom_generate)["__signature__"] = _signature.replace(parameters=[*_first, *_own, _rest])
vars(custom_generate)["__wrapped__"] = generate


def _running_call(model: nn.Module) -> dict[str, Any] | None:
    """The local variables of the innermost running `generate` of transformers for `model`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        is_generate = frame.f_code.co_name == "generate" and frame.f_globals["__name__"] == _MODULE
        if is_generate and frame.f_locals["self"] is model:
            return dict(frame.f_locals)
        frame = frame.f_back
    return None


def _settings(prepared: Any, prompt_length: int) -> Any:
    """A copy of the settings that transformers resolved, with the lengths of the new tokens in place of whole texts."""
    settings = copy.copy(prepared)
    settings.max_new_tokens = prepared.max_length - prompt_length
    settings.min_new_tokens = max((prepared.min_length or 0) - prompt_length, 0) or None
    settings.max_length = settings.min_length = None
    return settings


def _one_row_per_prompt(encoded: Any, copies: int) -> Any:
    """The outputs of the encoder, which transformers repeats for every copy of a prompt."""
    rows = {name: value[::copies] if isinstance(value, Tensor) else value for name, value in encoded.items()}
    return type(encoded)(**rows)


class _AfterPrompt:
    """A streamer that has received the prompts already."""

    def __init__(self, streamer: Streamer) -> None:
        self._streamer = streamer
        self._awaits_prompt = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._streamer, name)

    def put(self, value: Tensor) -> None:
        if not self._awaits_prompt:
            self._streamer.put(value)
        self._awaits_prompt = False

    def end(self) -> None:
        self._streamer.end()
