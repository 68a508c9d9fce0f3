"""One resolved call of `generate`, from which every decoding loop starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pygen.call.arguments import Arguments
from pygen.config.config import GenerationConfig, GenerationMode
from pygen.models.adapter import ModelAdapter
from pygen.request.prompt import Prompt
from pygen.request.protocols import Tokenizer
from pygen.request.settings import Lengths, Settings, SpecialTokens
from pygen.stopping.criteria import Criterion, Stopping


@dataclass(frozen=True, kw_only=True)
class Call(Arguments):
    """The checked settings, inputs and lengths of a call. The model has not run yet; `adapter.start` runs it first.

    The arguments are as the caller passed them, with three exceptions. `model` is the part whose forward runs,
    `prefix_allowed_tokens_fn` also ends a row that it allows nothing, and `synced_gpus` is resolved.

    num_copies: rows per prompt; the copies of a prompt are adjacent.
    """

    adapter: ModelAdapter
    settings: Settings
    mode: GenerationMode
    tokens: SpecialTokens
    prompt: Prompt
    lengths: Lengths
    num_copies: int
    stopping: Stopping
    tokenizer: Tokenizer | None = None
    assistant_tokenizer: Tokenizer | None = None
    grammar: object = None

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
    def criteria(self) -> tuple[Criterion, ...]:
        """The monitor calls these after every step."""
        return self.stopping.criteria

    @property
    def pads(self) -> bool:
        """Whether rows that finish before others emit the pad token, by transformers' rule."""
        return self.stopping.pads

    def start(self, **arguments: Any) -> None:
        """Calls `adapter.start`, which prepares cache and buffers and runs the encoder.

        arguments: more arguments of the adapter's method, or replacements of the call's.
        """
        sizes = {"num_copies": self.num_copies, "max_new_tokens": self.lengths.max_new_tokens}
        self.adapter.start(self.prompt, mode=self.mode, **{**sizes, **arguments})
