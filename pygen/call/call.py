"""One call of `generate`, resolved: what every loop is started from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pygen.call.arguments import Arguments
from pygen.config.config import GenerationConfig, GenerationMode
from pygen.models.adapter import ModelAdapter
from pygen.request.prompt import Prompt
from pygen.request.settings import Lengths, Settings, SpecialTokens
from pygen.stopping.criteria import Stopping


@dataclass(frozen=True, kw_only=True)
class Call(Arguments):
    """Settings, inputs and lengths of a call, all checked; nothing has run yet, and `adapter.start` is the first to.

    The arguments are as they were passed, but for `model`, the part whose forward runs; `prefix_allowed_tokens_fn`,
    which ends a row that it allows nothing; and `synced_gpus`, which is resolved.

    num_copies: rows per prompt, the copies side by side.
    """

    adapter: ModelAdapter
    settings: Settings
    mode: GenerationMode
    tokens: SpecialTokens
    prompt: Prompt
    lengths: Lengths
    num_copies: int
    stopping: Stopping
    tokenizer: Any = None
    assistant_tokenizer: Any = None

    @property
    def config(self) -> GenerationConfig:
        return self.settings.config

    @property
    def batch_size(self) -> int:
        return self.prompt.input_ids.shape[0]

    @property
    def rows(self) -> int:
        return self.batch_size * self.num_copies

    @property
    def wants_dict(self) -> bool:
        return bool(self.config.return_dict_in_generate)

    @property
    def criteria(self) -> tuple[Callable[..., Any], ...]:
        """What is asked after every step."""
        return self.stopping.criteria

    @property
    def pads(self) -> bool:
        """Whether rows may finish before others, and emit the pad token then: transformers' rule."""
        return self.stopping.pads

    def start(self, **arguments: Any) -> None:
        """Makes the model ready: cache, buffers, and the encoder's forward. arguments: more ones of the adapter's, or
        others in the place of the call's."""
        sizes = {"num_copies": self.num_copies, "max_new_tokens": self.lengths.max_new_tokens}
        self.adapter.start(self.prompt, mode=self.mode, **{**sizes, **arguments})
