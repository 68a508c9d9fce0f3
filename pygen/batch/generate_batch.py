"""`generate_batch`: many prompts through a few rows of one model."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pygen.batch.progress import batch_progress
from pygen.batch.request import NoSink, check_shared, failed, make_request
from pygen.batch.results import BatchResult
from pygen.graph.eligibility import check_runtime
from pygen.models.devices import input_device
from pygen.models.wrappers import inner
from pygen.notices import one_call
from pygen.ops import _checks as checks
from pygen.request.protocols import GenerationSettings, Tokenizer

if TYPE_CHECKING:
    from pygen.batch.batch import Batch

DEFAULT_PREFIX_POSITIONS = 2048
_ROWS_ON_CPU, _ROWS_ON_GPU = 8, 64
_INSTEAD = {
    "continuous_batching_config": "`rows`, `max_length`, `prefill_chunk_size` and `prefix_positions` size the batch",
    "persistent_manager": "`pygen.Engine` takes prompts for as long as it is open",
}


def generate_batch(
    model: nn.Module,
    prompts: Iterable[object] | None = None,
    generation_config: GenerationSettings | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    rows: int | None = None,
    max_length: int | None = None,
    prefill_chunk_size: int | None = None,
    prefix_positions: int = DEFAULT_PREFIX_POSITIONS,
    runtime: str = "auto",
    as_completed: bool = False,
    progress: bool = False,
    cancel: threading.Event | None = None,
    **settings: Any,
) -> Iterator[BatchResult]:
    """Generates for many prompts with at most `rows` of them at a time: a row that ends makes room for the next prompt.

        for result in pygen.generate_batch(model, texts, tokenizer=tokenizer, do_sample=True, max_new_tokens=256):
            print(result.index, result.finish_reason, result.text)

    Every prompt gets the tokens of `pygen.generate` for it alone under the same `seed`, whatever runs beside it; only
    the rounding of the model's matrix products depends on the number of rows, which can decide between two tokens whose
    scores are closer than it.

    Arguments:
        model: a decoder-only model of transformers whose layers have full or sliding-window attention.
        prompts: token ids (a list of ints or a tensor), texts, or dicts with `prompt` or `input_ids` and settings of
            their own, which override those of all prompts; also `tokenizer`, `generation_config`, `logits_processor`,
            `stopping_criteria`, `prefix_allowed_tokens_fn` and `generator`. Every id is read, `pad_token_id` too. An
            iterator is read only as far ahead as rows get free.
        generation_config, settings: as in `generate`, for all prompts: greedy search or sampling with any knob, `seed`,
            `max_new_tokens`, `eos_token_id`, `stop_strings`, `num_return_sequences`, `output_logprobs`, ... Without
            `seed` every prompt draws one from `generator`, or torch's default, in the order of the prompts.
        rows: texts at a time; None: 8 on a CPU, 64 on a GPU.
        max_length: the most positions of a prompt with its tokens. It bounds texts without `max_new_tokens`, as in
            `generate`; prompts that need more are refused. None: those of the model, with memory for as many as the
            rows need; on a GPU, a longer row then makes another capture.
        prefill_chunk_size: reads prompts in pieces of at most so many ids, one piece a step, so that running rows never
            wait for a long prompt; None reads a prompt at once.
        prefix_positions: positions of earlier prompts to keep, so that a prompt which begins like one of them (16 ids
            or more) reads only the rest; 0 keeps none.
        runtime: "graph" captures the forward of all rows in a CUDA graph, which is replayed for every token while rows
            come and go; the choice of the tokens is launched each time. "eager" launches everything, over no more
            columns and rows than are in use. "auto" captures on CUDA where the model allows it.
        as_completed: yields results as rows end, not in the order of the prompts.
        progress: shows prompts and tokens per second.
        cancel: once set, the rest ends with what it has (`finish_reason` "cancelled"), and `prompts` is read no more.

    Of transformers' `generate_batch` it accepts `inputs` for `prompts`, `progress_bar` for `progress`, and
    `record_timestamps` and `warmup`, which change nothing: results have times, and a capture is made at its first use.

    A stopping criterion for all prompts is called with the ids of one row at a time, and must look at nothing else.

    Yields a `BatchResult` for every returned sequence. A prompt that is refused, or whose callables fail, yields one
    with `error`, and the others go on. An error of the model's forward ends all prompts that run, and no more are read;
    it is raised after their results. The same goes for an error of the iterator, but prompts that run go on.

    Raises ValueError, TypeError and NotImplementedError at once for `model` and for settings of all prompts.
    """
    prompts, progress = _theirs(prompts, progress, settings)
    if isinstance(prompts, (str, bytes, dict)) or not isinstance(prompts, Iterable):
        raise TypeError(f"`prompts` must be an iterable of prompts, got {type(prompts).__name__}")
    batch = make_batch(
        model,
        rows=rows,
        max_length=max_length,
        prefill_chunk_size=prefill_chunk_size,
        prefix_positions=prefix_positions,
        runtime=runtime,
    )
    shared: dict[str, Any] = {"generation_config": generation_config, "tokenizer": tokenizer, "settings": settings}
    check_shared(model, **shared)
    run = _Run(model, batch, iter(prompts), shared, max_length, in_order=not as_completed)
    return run.results(cancel, progress)


def _theirs(prompts: object, progress: bool, settings: dict[str, Any]) -> tuple[Any, bool]:
    """Takes the parameters of transformers' `generate_batch` out of `settings`; returns the prompts and `progress`."""
    inputs = settings.pop("inputs", None)
    if inputs is not None and prompts is not None:
        raise ValueError("`inputs` and `prompts` are two names of one argument, got both")
    # Times are always recorded, and a capture is made when it is first used.
    for name in ("record_timestamps", "warmup"):
        settings.pop(name, None)
    for name, instead in _INSTEAD.items():
        if settings.pop(name, None):
            raise NotImplementedError(f"`{name}` is not available: {instead}")
    return inputs if prompts is None else prompts, bool(settings.pop("progress_bar", progress))


def make_batch(
    model: nn.Module,
    *,
    rows: int | None,
    max_length: int | None,
    prefill_chunk_size: int | None,
    prefix_positions: int,
    runtime: str,
) -> Batch:
    """The batch of a call or an engine, after checks of these arguments of both."""
    from pygen.batch.batch import Batch

    if rows is None:
        device = input_device(inner(model))
        rows = _ROWS_ON_GPU if device is not None and device.type != "cpu" else _ROWS_ON_CPU
    for name, value in (("rows", rows), ("max_length", max_length), ("prefill_chunk_size", prefill_chunk_size)):
        if value is not None:
            checks.count(name, value, least=1)
    return Batch(
        model,
        rows=rows,
        prefill_chunk_size=prefill_chunk_size,
        prefix_positions=checks.count("prefix_positions", prefix_positions),
        max_length=max_length,
        runtime=check_runtime(runtime),
    )


class _Run(NoSink):
    """One call of `generate_batch`; the sink of all its rows."""

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        prompts: Iterator[object],
        shared: dict[str, Any],
        max_length: int | None,
        *,
        in_order: bool,
    ) -> None:
        self._model, self._batch, self._prompts = model, batch, prompts
        self._shared, self._max_length = shared, max_length
        self._in_order = in_order
        self._ended: deque[BatchResult] = deque()
        # Results that wait for those of earlier prompts, and the number of sequences of every prompt not yet yielded.
        self._later: dict[int, list[BatchResult]] = {}
        self._copies: dict[int, int] = {}
        self._next = self._read = 0
        self._is_over = False
        # Raised once the results of all prompts that were read are out.
        self._error: Exception | None = None
        self._said: set[str] = set()

    def results(self, cancel: threading.Event | None, progress: bool) -> Iterator[BatchResult]:
        with batch_progress(progress) as bar:
            while True:
                if cancel is not None and cancel.is_set():
                    self._stop()
                    self._batch.cancel()
                with torch.no_grad(), one_call(self._said):
                    self._fill()
                    if self._batch.is_busy:
                        bar.add_tokens(self._step())
                for result in self._due():
                    if result.copy == 0:
                        bar.add_prompt()
                    yield result
                if self._is_over and not self._batch.is_busy:
                    break
        if self._error is not None:
            raise self._error

    def _step(self) -> int:
        """Runs a step, and returns the number of its tokens. An error of the model ends all prompts."""
        before = self._batch.stats.tokens
        try:
            self._batch.step()
        except Exception as error:
            self._stop(error)
            self._batch.fail(error)
        return self._batch.stats.tokens - before

    def _stop(self, error: Exception | None = None) -> None:
        """Reads no more prompts."""
        self._is_over, self._error = True, self._error or error

    def _fill(self) -> None:
        """Reads prompts for the rows that are free."""
        # Refused prompts take no row, so their results limit how far ahead it reads.
        while not self._is_over and self._batch.wants_more and len(self._ended) < self._batch.num_rows:
            try:
                prompt = next(self._prompts)
            except StopIteration:
                return self._stop()
            except Exception as error:
                return self._stop(error)
            index, self._read = self._read, self._read + 1
            queued = time.monotonic()
            self._copies[index] = 1
            try:
                request = make_request(self._model, prompt, index=index, max_length=self._max_length, **self._shared)
                request.check_below(self._batch.longest)
                self._batch.add(dataclasses.replace(request, sink=self))
                self._copies[index] = request.num_copies
            except Exception as error:
                self._ended.append(failed(index, error, queued))

    def _due(self) -> Iterator[BatchResult]:
        """The results that can be yielded now."""
        while self._ended:
            result = self._ended.popleft()
            if not self._in_order:
                # Nothing looks at the number of sequences.
                self._copies.pop(result.index, None)
                yield result
                continue
            self._later.setdefault(result.index, []).append(result)
        while len(ready := self._later.get(self._next, ())) == self._copies.get(self._next, -1):
            yield from sorted(ready, key=lambda result: result.copy)
            del self._later[self._next], self._copies[self._next]
            self._next += 1

    def put_end(self, result: BatchResult) -> None:
        self._ended.append(result)
