"""`Engine`: a model that many threads give prompts to, and that runs them in the rows of one batch."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import threading
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pygen.batch.generate_batch import DEFAULT_PREFIX_POSITIONS, make_batch
from pygen.batch.handle import BatchHandle
from pygen.batch.request import Request, check_shared, make_request
from pygen.call.threads import contexts_of_this_thread
from pygen.notices import one_call
from pygen.ops import _checks as checks
from pygen.request.protocols import GenerationSettings, Tokenizer

if TYPE_CHECKING:
    from pygen.batch.batch import BatchStats


class Engine:
    """Runs prompts from any thread through the rows of one batch, in a separate thread.

        with pygen.Engine(model, tokenizer=tokenizer, rows=32, max_new_tokens=256) as engine:
            handle = engine.submit("The three longest rivers are", do_sample=True, seed=7)
            for event in handle:
                print(event.text, end="")

    The tokens are those of `pygen.generate` for each prompt alone; see `pygen.generate_batch`, whose arguments these
    are.

    Arguments:
        max_queued: prompts that wait for a row at most; None is four for every row. `submit` waits for space.
        settings: defaults for all prompts.

    Leaving the `with` block waits for all prompts; leaving it by an exception cancels them. If a forward of the model
    fails, all prompts end with its error, and the engine takes no more.
    """

    def __init__(
        self,
        model: nn.Module,
        generation_config: GenerationSettings | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        rows: int | None = None,
        max_length: int | None = None,
        prefill_chunk_size: int | None = None,
        prefix_positions: int = DEFAULT_PREFIX_POSITIONS,
        runtime: str = "auto",
        max_queued: int | None = None,
        **settings: Any,
    ) -> None:
        self._batch = make_batch(
            model,
            rows=rows,
            max_length=max_length,
            prefill_chunk_size=prefill_chunk_size,
            prefix_positions=prefix_positions,
            runtime=runtime,
        )
        queued = 4 * self._batch.num_rows if max_queued is None else max_queued
        self._max_queued = checks.count("max_queued", queued, least=1)
        check_shared(model, generation_config, tokenizer, settings)
        self._model, self._max_length = model, max_length
        self._shared = {"generation_config": generation_config, "tokenizer": tokenizer}
        self._settings = settings
        self._queue: deque[Request] = deque()
        self._changed = threading.Condition()
        self._closed: str | None = None
        self._cancels = False
        self._submitted = 0
        self._said: set[str] = set()
        self._contexts = contexts_of_this_thread()
        # An idle engine that was never closed must not keep the process alive, nor run while the interpreter ends.
        self._thread = threading.Thread(target=self._run, name="pygen.Engine", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def submit(self, prompt: object, *, timeout: float | None = None, **settings: Any) -> BatchHandle:
        """Takes over a prompt: token ids, a text, or a dict as for `generate_batch`.

        timeout: seconds to wait while `max_queued` prompts wait; TimeoutError after that.

        Raises the errors of `generate` for the prompt and its settings, and RuntimeError where the engine is closed.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("`submit` must not be called from a callable of a prompt: it would wait for itself")
        with self._changed:
            self._check_open()
            index, self._submitted = self._submitted, self._submitted + 1
        with torch.no_grad(), one_call(self._said):
            request = make_request(
                self._model,
                prompt,
                index=index,
                max_length=self._max_length,
                settings={**self._settings, **settings},
                **self._shared,
            )
        request.check_below(self._batch.longest)
        handle = BatchHandle(index, request.num_copies, request.tokenizer)
        with self._changed:
            has_room = self._changed.wait_for(lambda: self._closed or len(self._queue) < self._max_queued, timeout)
            if not has_room:
                raise TimeoutError(f"{self._max_queued} prompts (`max_queued`) still wait after {timeout} s")
            self._check_open()
            self._queue.append(dataclasses.replace(request, sink=handle))
            self._changed.notify_all()
        return handle

    def close(self, *, cancel: bool = False) -> None:
        """Takes no more prompts, and waits until all have ended. cancel: ends them with what they have."""
        with self._changed:
            self._closed = self._closed or "it was closed"
            self._cancels |= cancel
            self._changed.notify_all()
        atexit.unregister(self._end)
        try:
            self._thread.join()
        except BaseException:
            # Whoever interrupts the wait does not want the rest.
            self._cancels = True
            raise

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    @property
    def stats(self) -> BatchStats:
        """What the engine has done so far."""
        return self._batch.stats

    def _end(self) -> None:
        self.close(cancel=True)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise RuntimeError(f"the engine takes no more prompts: {self._closed}")

    def _run(self) -> None:
        batch = self._batch
        with contextlib.ExitStack() as stack:
            for context in (*self._contexts, torch.no_grad(), one_call(self._said)):
                stack.enter_context(context)
            try:
                while self._take():
                    if self._cancels:
                        batch.cancel()
                    batch.step()
            except BaseException as error:
                # Handles must end whatever a callable of a prompt raises.
                failure = error if isinstance(error, Exception) else RuntimeError(f"a callable raised {error!r:.200}")
                with self._changed:
                    self._closed = f"a step failed with {error!r:.200}"
                    for request in self._queue:
                        batch.add(request)
                    self._queue.clear()
                    self._changed.notify_all()
                batch.fail(failure)

    def _take(self) -> bool:
        """Waits for work, and takes prompts for rows that are free. False once the engine is closed and all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue or self._batch.is_busy)
            cancelled = [request for request in self._queue if request.sink.cancelled()]
            for request in cancelled:
                self._queue.remove(request)
                self._batch.add(request)
            while self._queue and (self._batch.wants_more or self._cancels):
                self._batch.add(self._queue.popleft())
            self._changed.notify_all()
            return bool(self._queue) or self._batch.is_busy
