"""The bitmask of a call whose texts follow grammars: one matcher for each row, found again by what the row says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pygen.grammar.matchers import Matcher, MatcherFactory

_ALL = -1


class GrammarMask:
    """Fills the table that an op reads as `token_bitmask`, before every step.

    A row's matcher is that of the row of the step before with the same text, less the newest token; where two rows
    continue one, as beams do, one of them takes a copy. Drafted tokens that were refused never reach a matcher, because
    the loop shows accepted ones only.

    Attributes: tables: by vocabulary size.
    """

    def __init__(self, factories: Sequence[MatcherFactory], rows: int, prompt_length: int) -> None:
        """factories: one for each prompt, of as many adjacent rows each."""
        self._factories, self._rows, self._prompt_length = factories, rows, prompt_length
        self._tables: dict[int, Tensor] = {}
        self._matchers: list[Matcher | None] = []
        self._texts = torch.empty((rows, 0), dtype=torch.int64, device="cpu")

    def table(self, vocab_size: int, device: torch.device) -> Tensor:
        """(rows, ceil(vocab_size / 32)) int32, the same tensor in every call, of all tokens at first."""
        if vocab_size not in self._tables:
            shape = (self._rows, -(-vocab_size // 32))
            self._tables[vocab_size] = torch.full(shape, _ALL, dtype=torch.int32, device=device)
        return self._tables[vocab_size]

    def fill(self, input_ids: Tensor, running: Tensor, vocab_size: int) -> None:
        """Allows each row that is `running` (rows,) the tokens that may follow its text, and every other row any.

        input_ids: (rows, length), the prompts and what was generated, one token more than in the call before.
        """
        texts, is_running = input_ids[:, self._prompt_length :].cpu(), running.tolist()
        table = self.table(vocab_size, input_ids.device)
        masks = table if table.device.type == "cpu" else torch.empty(table.shape, dtype=table.dtype, device="cpu")
        matchers = self._advanced(texts, is_running, vocab_size)
        for row, matcher in enumerate(matchers):
            if matcher is None:
                masks[row] = _ALL
            else:
                matcher.fill(masks, row)
        if masks is not table:
            table.copy_(masks)
        self._matchers, self._texts = matchers, texts.clone()

    def _advanced(self, texts: Tensor, is_running: list[bool], vocab_size: int) -> list[Matcher | None]:
        if texts.shape[1] == 0:
            per_prompt = self._rows // len(self._factories)
            return [
                self._factories[row // per_prompt](vocab_size) if running else None
                for row, running in enumerate(is_running)
            ]
        sources = self._sources(texts[:, :-1])
        takers = {source: row for row, source in enumerate(sources)}
        matchers: list[Matcher | None] = []
        for row, (source, token_id) in enumerate(zip(sources, texts[:, -1].tolist(), strict=True)):
            matcher = self._matchers[source] if source is not None and is_running[row] else None
            if matcher is not None:
                # The last row that continues a text takes its matcher itself.
                matcher = matcher if row == takers[source] else matcher.fork()
                matcher = matcher if matcher.accept(token_id) else None
            matchers.append(matcher)
        return matchers

    def _sources(self, before: Tensor) -> list[int | None]:
        """The row of the step before that each row continues: itself where it may; None where that row had ended."""
        rows = torch.arange(self._rows)
        prompts = rows // (self._rows // len(self._factories))
        alive = torch.tensor([matcher is not None for matcher in self._matchers])
        same = (before[:, None] == self._texts[None]).all(2) & (prompts[:, None] == prompts[None]) & alive[None]
        sources = torch.where(same.diagonal(), rows, same.int().argmax(1)).tolist()
        return [source if any_same else None for source, any_same in zip(sources, same.any(1).tolist(), strict=True)]
