"""The tokens of a row that survive all filters: what kernels write, what callers store, and the checks of a request."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pygen.knobs import FILTERS
from pygen.ops import _checks as checks
from pygen.ops._checks import Like

if TYPE_CHECKING:
    from pygen.ops._shaping import Shaping


class KeptRows(NamedTuple):
    """The kept tokens of every row as kernels write them, in tensors of fixed shapes, so that no GPU waits.

    Row r keeps counts[r] tokens, and the first entries of token_ids[r] are their ids, ascending. Further entries are
    unspecified. If a row keeps more tokens than it has entries, all its entries are unspecified.
    """

    token_ids: Tensor  # (rows, min(kept_limit, vocab_size)) int32
    counts: Tensor  # (rows,) int32, the number of kept tokens, also if it exceeds the number of entries
    log_mass: Tensor  # (rows,) float32, ln of the sum of e^s over all kept tokens; -inf if the row keeps none

    def compressed(self) -> KeptTokens:
        """Returns a copy without unspecified entries. On a GPU, the host waits for the counts."""
        rows, width = self.token_ids.shape
        complete = self.counts <= width
        stored = self.counts * complete
        offsets = torch.zeros(rows + 1, dtype=torch.int64, device=stored.device)
        torch.cumsum(stored, dim=0, out=offsets[1:])
        used = int(stored.max()) if rows > 0 else 0
        columns = torch.arange(used, dtype=torch.int32, device=stored.device)
        token_ids = self.token_ids[:, :used][columns < stored[:, None]]
        return KeptTokens(token_ids, offsets, self.log_mass.clone(), complete)

    def without(self, rows: Tensor) -> KeptRows:
        """Returns the same, where rows that are True in `rows`, (rows,) bool, keep nothing."""
        return KeptRows(self.token_ids, self.counts.masked_fill(rows, 0), self.log_mass.masked_fill(rows, -math.inf))


class KeptTokens(NamedTuple):
    """The tokens that survive all filters: row r keeps token_ids[offsets[r]:offsets[r + 1]], ascending.

    Let s be x over the temperature, with x as in `process_logits`; in a greedy row, s is x. A kept token has the
    log-probability s[token] - log_mass[r].

    A greedy row keeps its token alone. A row that is not OK, or that had finished, keeps none.
    """

    token_ids: Tensor  # (n,) int32
    offsets: Tensor  # (rows + 1,) int64, from 0 to n
    log_mass: Tensor  # (rows,) float32, ln of the sum of e^s over all kept tokens; -inf if the row keeps none
    complete: Tensor  # (rows,) bool; False if the row keeps more than `kept_limit` tokens, of which none is stored


def check_kept(output_kept: object, kept_limit: object, shaping: Shaping) -> int:
    """Returns how many entries `KeptRows` has for a row, 0 if the call does not ask for it."""
    if not isinstance(output_kept, bool):
        raise TypeError(f"`output_kept` must be a bool, got {type(output_kept).__name__}")
    limit = checks.count("kept_limit", kept_limit, least=1)
    if not output_kept:
        return 0
    if not _removes_tokens(shaping):
        names = ", ".join(knob.name for knob in FILTERS)
        raise ValueError(
            f"`output_kept` must be False where no filter ({names}), "
            "`token_bitmask` or temperature 0 leaves fewer tokens, got True"
        )
    return min(limit, shaping.like.vocab_size)


def _removes_tokens(shaping: Shaping) -> bool:
    """Returns whether a filter or a bitmask acts on some row, or some row is greedy."""
    if shaping.token_bitmask is not None or shaping.like.rows == 0:
        return True
    acting = [shaping.knobs["temperature"] == 0, *(shaping.knobs[knob.name] != knob.neutral for knob in FILTERS)]
    if checks.is_captured(shaping.like.device):
        return True
    return any(bool(acts.any()) if isinstance(acts, Tensor) else acts for acts in acting)


def empty_kept(rows: int, width: int, device: torch.device) -> KeptRows:
    return KeptRows(
        torch.empty(rows, width, dtype=torch.int32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty(rows, dtype=torch.float32, device=device),
    )


def check_kept_out(kept: object, width: int, like: Like) -> None:
    """Checks `out.kept` of a call whose rows have `width` entries, 0 if it does not ask for kept tokens."""
    if width == 0:
        if kept is not None:
            raise ValueError(f"`out.kept` must be None with output_kept=False, got a {type(kept).__name__}")
        return
    if not isinstance(kept, KeptRows):
        raise TypeError(f"`out.kept` must be a KeptRows, got {type(kept).__name__}")
    words = "(rows, min(kept_limit, vocab_size))"
    checks.check_output("out.kept.token_ids", kept.token_ids, torch.int32, words, (like.rows, width), like)
    checks.check_output("out.kept.counts", kept.counts, torch.int32, "(rows,)", (like.rows,), like)
    checks.check_output("out.kept.log_mass", kept.log_mass, torch.float32, "(rows,)", (like.rows,), like)


def kept_arguments(kept: KeptRows | KeptTokens | None) -> dict[str, int]:
    """Returns keyword arguments for pygen._C.SamplePlan. The tensors must outlive the plan."""
    if not isinstance(kept, KeptRows):
        return {"kept_limit": 0, "kept_ids_ptr": 0, "kept_counts_ptr": 0, "log_mass_ptr": 0}
    return {
        "kept_limit": kept.token_ids.shape[1],
        "kept_ids_ptr": kept.token_ids.data_ptr(),
        "kept_counts_ptr": kept.counts.data_ptr(),
        "log_mass_ptr": kept.log_mass.data_ptr(),
    }
