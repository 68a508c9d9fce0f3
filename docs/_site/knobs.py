"""Writes docs/knobs.md from the table of knobs: `python docs/_site/knobs.py`. A test compares both."""

from __future__ import annotations

from pathlib import Path

from pygen.knobs import KNOBS, Knob, Stage

PAGE = Path(__file__).resolve().parents[1] / "knobs.md"

_HEAD = """\
<!-- Written by docs/_site/knobs.py from pygen/knobs.py. -->

# Knobs

The settings that shape scores, in the order in which they act. They are arguments of `process_logits`, `sample` and
`beam_step` in [`pygen.ops`](reference/ops.md), fields of [`GenerationConfig`](reference/config.md), and arguments of
[`generate`](reference/generate.md). Each takes one value, or one per row.

In the formulas, `x` is a logit with its bias, and `s` is `x` over the temperature. `p` is the softmax of `s`,
renormalised over the survivors of the filter before. A neutral value switches a knob off and costs nothing. Ties and
`min_tokens_to_keep` follow the rules in [Kernels](internals/kernels.md#ties).
"""
_STAGES = {
    Stage.PENALTY: ("Penalties", "They read the text so far. Positions that `attention_mask` hides do not count."),
    Stage.BAN: ("Bans", "A banned token gets the score -inf. Suppressed tokens and bitmasks act here too."),
    Stage.TEMPERATURE: (
        "Temperature",
        "A row with temperature 0 is greedy: no filter acts on it, and nothing is drawn.",
    ),
    Stage.FILTER: ("Filters", "They act on rows that are drawn."),
    Stage.MODIFIER: ("Modifiers", "They act through the filters."),
}
_COLUMNS = ("knob", "range", "neutral", "`generate()` default", "what it does", "class", "source")


def page() -> str:
    """The text of docs/knobs.md."""
    parts = [_HEAD]
    for stage, (title, sentence) in _STAGES.items():
        rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_row(knob) for knob in KNOBS if knob.stage is stage)]
        parts.append(f"## {title}\n\n{sentence}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows))
    return "\n".join(parts)


def _row(knob: Knob) -> tuple[str, ...]:
    neutral = "unset" if knob.is_optional else f"{knob.neutral:g}"
    default = "unset" if knob.default is None else f"{knob.default:g}"
    anchor = f"reference/processors.md#pygen.processors.{knob.processor}"
    link = f"[`{knob.processor}`]({anchor})" if knob.processor else "–"
    return f"`{knob.name}`", knob.rule.range, neutral, default, f"`{knob.formula}`", link, knob.source or "–"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
