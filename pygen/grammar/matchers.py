"""Matchers of a grammar: xgrammar's and llguidance's behind one interface, and the grammars that pygen compiles."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from pygen.request.protocols import Tokenizer

# The keys of a grammar that is compiled here.
KINDS = ("json_schema", "regex", "ebnf")


class Matcher(Protocol):
    """The state of a grammar after a text."""

    def fill(self, bitmask: Tensor, row: int) -> None:
        """Sets row `row` of `bitmask`, (rows, ceil(vocab_size / 32)) int32 on the CPU: the tokens that may follow."""
        ...

    def accept(self, token_id: int) -> bool:
        """Continues with a token; False where the grammar does not allow it, or has ended."""
        ...

    def fork(self) -> Matcher:
        """An independent copy."""
        ...


class XgrammarMatcher:
    """Around a `GrammarMatcher`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def fill(self, bitmask: Tensor, row: int) -> None:
        self._inner.fill_next_token_bitmask(bitmask, row)

    def accept(self, token_id: int) -> bool:
        return not self._inner.is_terminated() and bool(self._inner.accept_token(token_id))

    def fork(self) -> XgrammarMatcher:
        return XgrammarMatcher(self._inner.fork())


class LlguidanceMatcher:
    """Around an `LLMatcher`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def fill(self, bitmask: Tensor, row: int) -> None:
        from llguidance.torch import fill_next_token_bitmask

        fill_next_token_bitmask(self._inner, bitmask, row)

    def accept(self, token_id: int) -> bool:
        return not self._inner.is_stopped() and bool(self._inner.consume_token(token_id))

    def fork(self) -> LlguidanceMatcher:
        return LlguidanceMatcher(self._inner.deep_copy())


# (vocab_size) -> one new matcher for each row
MatcherFactory = Callable[[int], Matcher]


def matcher_factory(grammar: object, tokenizer: Tokenizer | None, eos_token_ids: Sequence[int]) -> MatcherFactory:
    """What makes the matchers of a prompt.

    grammar: `{"json_schema": schema}`, `{"regex": pattern}` or `{"ebnf": text}`, which xgrammar compiles for the
        tokenizer; or a matcher of xgrammar or llguidance, from whose present state every row starts. It stays as it is.

    Errors: TypeError and ValueError for anything else, ImportError where xgrammar is missing.
    """
    if isinstance(grammar, Mapping):
        return _compiled(grammar, tokenizer, eos_token_ids)
    if hasattr(grammar, "fill_next_token_bitmask") and hasattr(grammar, "fork"):
        return lambda _: XgrammarMatcher(grammar).fork()
    if hasattr(grammar, "consume_token") and hasattr(grammar, "deep_copy"):
        return lambda _: LlguidanceMatcher(grammar).fork()
    raise TypeError(
        f"`grammar` must be a dict with one of {', '.join(KINDS)}, or a matcher of xgrammar or llguidance, got "
        f"{type(grammar).__name__}"
    )


def _compiled(grammar: Mapping[Any, Any], tokenizer: Tokenizer | None, eos_token_ids: Sequence[int]) -> MatcherFactory:
    if len(grammar) != 1 or next(iter(grammar)) not in KINDS:
        raise ValueError(f"`grammar` must have exactly one of the keys {', '.join(KINDS)}, got {[*grammar]}")
    if tokenizer is None:
        raise ValueError("`grammar` needs the model's tokenizer: pass it as `tokenizer=`, or give a matcher")
    ((kind, source),) = grammar.items()
    try:
        import xgrammar
    except ImportError as error:
        raise ImportError("`grammar` needs xgrammar to compile it: pip install 'pygen-decode[grammar]'") from error

    @functools.cache
    def compiled(vocab_size: int) -> Any:
        compiler = _compiler(xgrammar, tokenizer, vocab_size)
        compile_kind = {
            "json_schema": compiler.compile_json_schema,
            "regex": compiler.compile_regex,
            "ebnf": compiler.compile_grammar,
        }[kind]
        try:
            return compile_kind(source)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(f"`grammar`: xgrammar cannot compile this {kind}: {error}") from error

    def matcher(vocab_size: int) -> Matcher:
        stops = {"override_stop_tokens": [*eos_token_ids]} if eos_token_ids else {}
        return XgrammarMatcher(xgrammar.GrammarMatcher(compiled(vocab_size), **stops))

    return matcher


# The compiler of the tokenizer that was used last: it keeps the grammars that it compiled.
_last: tuple[object, int, Any] | None = None


def _compiler(xgrammar: Any, tokenizer: Tokenizer, vocab_size: int) -> Any:
    global _last
    if _last is None or _last[0] is not tokenizer or _last[1] != vocab_size:
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        _last = tokenizer, vocab_size, xgrammar.GrammarCompiler(info)
    return _last[2]
