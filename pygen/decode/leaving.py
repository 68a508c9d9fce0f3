"""Whether rows that have ended leave the batch of a call, and why not."""

from __future__ import annotations

from pygen.call.call import Call
from pygen.config.config import GenerationMode
from pygen.graph.eligibility import is_compiled
from pygen.models.leaving_rows import can_leave, fixed_input
from pygen.models.versions import given_cache, without_cache
from pygen.models.wrappers import inner

# "auto" starts with so many rows. A forward over fewer costs almost what it costs over one.
LEAST_ROWS = 5

_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
# Records that hold values of ended rows, which the logits that these rows keep would change.
_KEPT_PER_STEP = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def pays(running: int, rows: int, *, at_any_size: bool) -> bool:
    """Whether the rows that have ended should leave now: `running` of the `rows` in the batch go on.

    The copy of the running rows' cache costs about a tenth of a step. A forward on a CPU over two or three rows costs
    as much as one over four (`docs/benchmarks.md`), so two and three stay with ended ones unless `at_any_size`.
    """
    return 0 < running <= rows * 3 // 4 and (at_any_size or running not in (2, 3))


def check_compact_rows(value: object) -> bool | str:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError(f"`compact_rows` must be True, False or 'auto', got {value!r}")
    return value  # type: ignore[return-value]


def why_rows_stay(call: Call, *, captured: bool = False) -> str | None:
    """Why no row leaves before the last one ends, as far as it is known before the model runs; None if they leave."""
    if call.compact_rows is False:
        return "`compact_rows`=False"
    if captured:
        return "a captured step always reads all rows"
    if call.rows == 1:
        return "there is one row"
    if not call.pads:
        return "without `eos_token_id` they go on until all have ended"
    return _reason_of_auto(call) or _reason_against(call)


def refuse_compaction(call: Call, *, own_loop: bool) -> None:
    """NotImplementedError where the caller asks for compaction, and rows cannot leave the batch."""
    if call.compact_rows is not True:
        return
    reason = "`custom_generate` decodes" if own_loop else _reason_against(call)
    if reason is not None:
        raise refusal(reason)


def refusal(reason: str) -> NotImplementedError:
    return NotImplementedError(f"`compact_rows`=True: {reason}; `compact_rows`='auto' lets the rows stay")


def _reason_against(call: Call) -> str | None:
    model = inner(call.model)
    if call.mode not in _MODES:
        return f"rows stay in {call.mode.value.replace('_', ' ')}"
    if call.synced_gpus:
        return "`synced_gpus`: other processes run as many forwards"
    if is_compiled(call.model) or any(map(is_compiled, model.modules())):
        return "the model is compiled, for one number of rows"
    if model.training:
        return "the model is in training mode, and its noise depends on the rows"
    kind = call.config.cache_implementation
    if kind not in (None, "dynamic", "dynamic_full") and call.config.use_cache is not False:
        return f"`cache_implementation`={kind!r} is another cache than a dynamic one"
    kwargs = call.prompt.model_kwargs
    cache = given_cache(kwargs)
    if cache is not None and not can_leave(cache):
        return f"the caller's {type(cache).__name__} stores more than keys and values that grow"
    fixed = fixed_input(without_cache(kwargs), call.batch_size)
    if fixed is not None:
        return f"pygen does not know the rows of `{fixed}`"
    return call.adapter.rows_stay(call.rows)


def _reason_of_auto(call: Call) -> str | None:
    if call.compact_rows is True:
        return None
    if call.prompt.input_ids.device.type != "cpu":
        return f"it is measured on a CPU only, the model is on {call.prompt.input_ids.device}"
    if call.rows < LEAST_ROWS:
        return f"it pays from {LEAST_ROWS} rows on"
    kept = next((name for name in _KEPT_PER_STEP if call.wants_dict and getattr(call.config, name)), None)
    return None if kept is None else f"`{kept}` records what the model says of ended rows too"
