"""Constraints of constrained beam search: what a hypothesis has to contain, and how far one has come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

_STEPS_OF_TEST = 10_000

Trie = dict[int, "Trie"]


class Constraint(ABC):
    """Something that a hypothesis must contain, met token by token.

    A subclass also has `seqlen`, the most tokens that it needs. Repeating `update(advance())` must complete it, which
    `__init__` tries; a subclass calls that once its own attributes are set.
    """

    seqlen: int

    def __init__(self) -> None:
        self.test()

    def test(self) -> None:
        """ValueError unless the constraint can be completed, also after a `reset`. Leaves it as at the start."""
        name = type(self).__name__
        for count in range(_STEPS_OF_TEST):
            if count == 1:
                self.reset()
            token_ids = _ids(self.advance())
            if not token_ids or not self.does_advance(token_ids[0]):
                raise ValueError(f"`{name}.does_advance` must be true of what `advance` returns, got {token_ids}")
            if self.update(token_ids[0])[1]:
                break
        else:
            raise ValueError(f"`{name}.update` must complete the constraint within {_STEPS_OF_TEST} tokens")
        if self.remaining() != 0:
            raise ValueError(f"`{name}.remaining` must be 0 once it is completed, got {self.remaining()}")
        self.reset()

    @abstractmethod
    def advance(self) -> int | list[int] | None:
        """The token, or the tokens, any of which is a step towards completion; None after the last."""

    @abstractmethod
    def does_advance(self, token_id: int) -> bool:
        """Whether `token_id` is such a step."""

    @abstractmethod
    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Takes the next token, and returns (stepped, completed, reset): it was a step; the last one; it undid all."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets every token."""

    @abstractmethod
    def remaining(self) -> int:
        """How many more steps it takes, at most."""

    @abstractmethod
    def copy(self, stateful: bool = False) -> Constraint:
        """The same constraint as at the start; with `stateful` as far as this one has come."""


class PhrasalConstraint(Constraint):
    """The tokens `token_ids`, one right after the other. A token that breaks the phrase does not begin it anew.

    token_ids: not empty, ids >= 0; ValueError otherwise.
    """

    def __init__(self, token_ids: list[int]) -> None:
        _check_word("token_ids", token_ids)
        self.token_ids = token_ids
        self.seqlen = len(token_ids)
        self.reset()

    def advance(self) -> int | None:
        return None if self.completed else self.token_ids[self.fulfilled_idx + 1]

    def does_advance(self, token_id: int) -> bool:
        return _checked_id(token_id) == self.advance()

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        if not self.does_advance(token_id):
            self.reset()
            return False, False, True
        self.fulfilled_idx += 1
        self.completed = self.remaining() == 0
        return True, self.completed, False

    def reset(self) -> None:
        self.fulfilled_idx = -1  # the index of the last token that was met
        self.completed = False

    def remaining(self) -> int:
        return self.seqlen - (self.fulfilled_idx + 1)

    def copy(self, stateful: bool = False) -> PhrasalConstraint:
        twin = PhrasalConstraint(self.token_ids)
        if stateful:
            twin.fulfilled_idx, twin.completed = self.fulfilled_idx, self.completed
        return twin


class DisjunctiveTrie:
    """Words in a tree of their tokens, {token id: tree of what may follow}.

    nested_token_ids: the words. With `no_subsets` none may be given twice or begin with another; ValueError otherwise.
    """

    def __init__(self, nested_token_ids: list[list[int]], no_subsets: bool = True) -> None:
        self.max_height = max(len(word) for word in nested_token_ids)
        self.trie: Trie = {}
        for word in nested_token_ids:
            level = self.trie
            for token_id in word:
                level = level.setdefault(token_id, {})
        distinct = {tuple(word) for word in nested_token_ids}
        if no_subsets and (len(distinct) < len(nested_token_ids) or any(map(self.next_tokens, nested_token_ids))):
            raise ValueError(
                f"`nested_token_ids` must hold different words, none of which begins with another, "
                f"got {nested_token_ids}"
            )

    def next_tokens(self, current_seq: list[int]) -> list[int]:
        """What may follow `current_seq`, which begins a word. KeyError where it does not."""
        level = self.trie
        for token_id in current_seq:
            level = level[token_id]
        return list(level)

    def reached_leaf(self, current_seq: list[int]) -> bool:
        return not self.next_tokens(current_seq)


class DisjunctiveConstraint(Constraint):
    """One of the words of `nested_token_ids`, whichever comes first.

    nested_token_ids: not empty; words of ids >= 0, none empty, given twice, or the beginning of another. ValueError
        otherwise.
    """

    def __init__(self, nested_token_ids: list[list[int]]) -> None:
        if not isinstance(nested_token_ids, list) or len(nested_token_ids) == 0:
            raise ValueError(f"`nested_token_ids` must be a non-empty list of words, got {nested_token_ids!r}")
        for index, word in enumerate(nested_token_ids):
            _check_word(f"nested_token_ids[{index}]", word)
        self.trie = DisjunctiveTrie(nested_token_ids)
        self.token_ids = nested_token_ids
        self.seqlen = self.trie.max_height
        self.reset()

    def advance(self) -> list[int] | None:
        return self.trie.next_tokens(self.current_seq) or None

    def does_advance(self, token_id: int) -> bool:
        return _checked_id(token_id) in self.trie.next_tokens(self.current_seq)

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        if not self.does_advance(token_id):
            self.reset()
            return False, False, True
        self.current_seq.append(token_id)
        self.completed = self.trie.reached_leaf(self.current_seq)
        return True, self.completed, False

    def reset(self) -> None:
        self.current_seq: list[int] = []
        self.completed = False

    def remaining(self) -> int:
        """0 once completed, else counted to the end of the longest word."""
        return 0 if self.completed else self.seqlen - len(self.current_seq)

    def copy(self, stateful: bool = False) -> DisjunctiveConstraint:
        twin = DisjunctiveConstraint(self.token_ids)
        if stateful:
            twin.current_seq, twin.completed = list(self.current_seq), self.completed
        return twin


class ConstraintListState:
    """How far one hypothesis has come with all of `constraints`, of which it works on one at a time.

    complete_constraints, inprogress_constraint, pending_constraints: copies of the constraints, each in one of them.
    completed: whether all are met; further tokens change nothing then.
    """

    def __init__(self, constraints: list[Constraint]) -> None:
        self.constraints = constraints
        self.max_seqlen = max(constraint.seqlen for constraint in constraints)
        self.n_constraints = len(constraints)
        self.init_state()

    def init_state(self) -> None:
        self.complete_constraints: list[Constraint] = []
        self.inprogress_constraint: Constraint | None = None
        self.pending_constraints = [constraint.copy(stateful=False) for constraint in self.constraints]
        self.completed = False

    def get_bank(self) -> int:
        """Progress in tokens, each completed constraint counted as the longest of all (Post & Vilar 2018)."""
        bank = len(self.complete_constraints) * self.max_seqlen
        if self.inprogress_constraint is not None:
            bank += self.max_seqlen - self.inprogress_constraint.remaining()
        return bank

    def advance(self) -> list[int] | None:
        """The tokens that are a step: of the constraint in progress, else of every pending one; None if there are none.
        The same id may come twice."""
        current = self.inprogress_constraint
        candidates = self.pending_constraints if current is None else [current]
        return [token_id for constraint in candidates for token_id in _ids(constraint.advance())] or None

    def reset(self, token_ids: list[int] | None) -> None:
        """Starts again, and takes `token_ids` up to the one that meets the last constraint."""
        self.init_state()
        for token_id in token_ids or ():
            self.add(token_id)
            if self.completed:
                break

    def add(self, token_id: int) -> tuple[bool, bool]:
        """Takes the next token, and returns (complete, stepped) of the constraint it concerns.

        A token that breaks the constraint in progress puts it back to the end of the pending ones, and does nothing
        else. Otherwise the first pending constraint that it advances is in progress from here on.
        """
        _checked_id(token_id)
        if self.completed:
            return True, False
        current = self.inprogress_constraint
        if current is None:
            current = next((pending for pending in self.pending_constraints if pending.does_advance(token_id)), None)
            if current is None:
                return False, False
            self.pending_constraints = [pending for pending in self.pending_constraints if pending is not current]
            stepped, complete, reset = current.update(token_id)
            if not stepped:
                raise ValueError(f"`{type(current).__name__}.update` must step where `does_advance` is true")
        else:
            stepped, complete, reset = current.update(token_id)
        self.inprogress_constraint = None if complete or reset else current
        if complete:
            self.complete_constraints.append(current)
            self.completed = not self.pending_constraints
        elif reset:
            self.pending_constraints.append(current.copy(stateful=False))
        return complete, stepped

    def copy(self, stateful: bool = True) -> ConstraintListState:
        """The same constraints, as far as this one has come; without `stateful` as at the start."""
        twin = ConstraintListState(self.constraints)
        if stateful:
            twin.complete_constraints = [constraint.copy(stateful=True) for constraint in self.complete_constraints]
            if self.inprogress_constraint is not None:
                twin.inprogress_constraint = self.inprogress_constraint.copy(stateful=True)
            twin.pending_constraints = [constraint.copy() for constraint in self.pending_constraints]
            twin.completed = self.completed
        return twin


def make_constraints(constraints: Any, force_words_ids: Any) -> list[Constraint]:
    """The constraints of a call: those given, then one for every entry of `force_words_ids`.

    constraints: a list of Constraint, or None.
    force_words_ids: a list, or None. An entry that is a word, a list of ids, must occur; of one that is a list of
        words, one must.
    """
    made = [] if constraints is None else constraints
    if not isinstance(made, list) or not all(isinstance(item, Constraint) for item in made):
        raise TypeError(f"`constraints` must be a list of Constraint, got {constraints!r:.80}")
    if force_words_ids is not None and (not isinstance(force_words_ids, list) or len(force_words_ids) == 0):
        raise ValueError(f"`force_words_ids` must be a non-empty list of words, got {force_words_ids!r:.80}")
    made = made.copy()
    for index, entry in enumerate(force_words_ids or ()):
        try:
            is_nested = isinstance(entry, list) and any(isinstance(word, list) for word in entry)
            made.append(DisjunctiveConstraint(entry) if is_nested else PhrasalConstraint(entry))
        except ValueError as error:
            raise ValueError(f"`force_words_ids[{index}]`: {error}") from None
    if not made:
        raise ValueError("`constraints` must hold at least one Constraint, got []")
    return made


def _ids(advance: int | list[int] | None) -> list[int]:
    if advance is None:
        return []
    return advance if isinstance(advance, list) else [advance]


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _checked_id(token_id: int) -> int:
    if not _is_id(token_id):
        raise TypeError(f"`token_id` must be an int, got {type(token_id).__name__}")
    return token_id


def _check_word(name: str, word: object) -> None:
    if not isinstance(word, list) or len(word) == 0 or not all(_is_id(token_id) and token_id >= 0 for token_id in word):
        raise ValueError(f"`{name}` must be a non-empty list of ints >= 0, got {word!r:.80}")
