"""What a prompt of a batch came to."""

from __future__ import annotations

from dataclasses import dataclass, field

from pygen.ops import KeptTokens, TopLogprobs


@dataclass(frozen=True)
class BatchTimes:
    """Seconds of `time.monotonic()`; None for what did not happen.

    queued: the prompt was taken over. first_token, done: of the row.
    """

    queued: float
    first_token: float | None = None
    done: float | None = None


@dataclass(frozen=True)
class BatchResult:
    """One returned sequence of one prompt.

    index: the number of the prompt, from 0 in the order of the prompts. copy: the number of the sequence, below its
        `num_return_sequences`.
    prompt_ids, token_ids: the ids read and generated, the end-of-sequence token included.
    text: `token_ids` decoded without special tokens; None without a tokenizer.
    finish_reason: "eos", "stop" (a stop string, another criterion or `max_time`), "length", "cancelled", or "error".
    logprobs: one for each token, with `output_logprobs`. top_logprobs: with `top_logprobs=n`, of shape
        (tokens, n), on the CPU.
    kept: with `output_kept`, the tokens that survived all filters: row t of it is token t's.
    seed: of the prompt: `pygen.generate(model, prompt, seed=seed)` gives the same tokens. None for greedy search.
    error: why the prompt was refused or failed; tokens so far are kept.
    """

    index: int
    copy: int
    prompt_ids: list[int]
    token_ids: list[int]
    finish_reason: str
    times: BatchTimes
    text: str | None = None
    logprobs: list[float] | None = None
    top_logprobs: TopLogprobs | None = None
    kept: KeptTokens | None = None
    seed: int | list[int] | None = None
    error: Exception | None = field(default=None, compare=False)
