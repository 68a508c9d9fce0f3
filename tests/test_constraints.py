"""Constraints alone: their progress, token by token, and refusals."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pygen.decode.constraints import (
    Constraint,
    ConstraintListState,
    DisjunctiveConstraint,
    PhrasalConstraint,
    make_constraints,
)
from tests.helpers.naive_searches import progress


def phrase(*token_ids: int) -> PhrasalConstraint:
    return PhrasalConstraint(list(token_ids))


def one_of(*words: list[int]) -> DisjunctiveConstraint:
    return DisjunctiveConstraint(list(words))


def token_ids(constraint: Constraint) -> list[Any]:
    assert isinstance(constraint, (PhrasalConstraint, DisjunctiveConstraint))
    return constraint.token_ids


# Each token, then (stepped, completed, reset), the tokens that advance, and how many tokens are missing.
WALKS: list[tuple[PhrasalConstraint | DisjunctiveConstraint, list[tuple[int, tuple[bool, bool, bool], Any, int]]]] = [
    (phrase(7), [(7, (True, True, False), None, 0)]),
    (phrase(7, 8), [(7, (True, False, False), 8, 1), (8, (True, True, False), None, 0)]),
    (phrase(7, 8), [(7, (True, False, False), 8, 1), (9, (False, False, True), 7, 2), (7, (True, False, False), 8, 1)]),
    (phrase(7, 7, 8), [(7, (True, False, False), 7, 2), (8, (False, False, True), 7, 3)]),
    (one_of([7], [8, 9]), [(7, (True, True, False), None, 0)]),
    (one_of([7], [8, 9]), [(8, (True, False, False), [9], 1), (9, (True, True, False), None, 0)]),
    (one_of([7, 1], [7, 2, 3]), [(7, (True, False, False), [1, 2], 2), (5, (False, False, True), [7], 3)]),
    (one_of([7, 1], [7, 2, 3]), [(7, (True, False, False), [1, 2], 2), (1, (True, True, False), None, 0)]),
]


@pytest.mark.parametrize(("constraint", "walk"), WALKS)
def test_progress(
    constraint: PhrasalConstraint | DisjunctiveConstraint, walk: list[tuple[int, tuple[bool, bool, bool], Any, int]]
) -> None:
    constraint = constraint.copy()
    for token_id, outcome, following, remaining in walk:
        steps = constraint.advance()
        expected = token_id in steps if isinstance(steps, list) else token_id == steps
        assert constraint.does_advance(token_id) == expected
        assert constraint.update(token_id) == outcome
        assert constraint.advance() == following
        assert constraint.remaining() == remaining
        assert constraint.completed == outcome[1]
    constraint.reset()
    assert constraint.remaining() == constraint.seqlen
    assert not constraint.completed


@pytest.mark.parametrize("constraint", [phrase(7, 8), one_of([7, 8], [7, 9])])
def test_a_copy_goes_its_own_way(constraint: Constraint) -> None:
    constraint.update(7)
    twin, fresh = constraint.copy(stateful=True), constraint.copy()
    assert (twin.remaining(), fresh.remaining()) == (1, 2)
    twin.update(8)
    assert (twin.remaining(), constraint.remaining()) == (0, 1)


def test_attributes() -> None:
    a, b = phrase(7, 8), one_of([7], [8, 9])
    assert (a.token_ids, a.seqlen, a.fulfilled_idx, a.completed) == ([7, 8], 2, -1, False)
    assert (b.token_ids, b.seqlen, b.current_seq, b.completed) == ([[7], [8, 9]], 2, [], False)
    assert (b.trie.trie, b.trie.max_height) == ({7: {}, 8: {9: {}}}, 2)
    state = ConstraintListState([a, b])
    assert (state.max_seqlen, state.n_constraints, state.completed) == (2, 2, False)
    state.reset([8, 9, 7])
    assert [token_ids(c) for c in state.complete_constraints] == [b.token_ids]
    assert state.inprogress_constraint is not None and state.inprogress_constraint.remaining() == 1
    assert state.pending_constraints == []
    assert (state.get_bank(), state.advance()) == (3, [8])
    assert state.add(8) == (True, True) and state.completed and state.advance() is None
    assert state.add(8) == (True, False)
    assert state.copy().completed and not state.copy(stateful=False).completed
    state.reset(None)
    assert not state.completed and state.get_bank() == 0


def test_a_broken_constraint_goes_to_the_end() -> None:
    state = ConstraintListState([phrase(1, 2), phrase(3)])
    state.reset([1, 5])
    assert [token_ids(c) for c in state.pending_constraints] == [[3], [1, 2]]
    # A token does one thing: it breaks a phrase, but does not restart it.
    state.reset([1, 1, 2])
    assert state.get_bank() == 0


@pytest.mark.parametrize("number", range(200))
def test_list_of_constraints_against_a_naive_one(number: int) -> None:
    draw = random.Random(number)
    words = []
    for _ in range(draw.randint(1, 3)):
        pool = draw.sample([(1,), (2, 1), (2, 3, 1), (3, 2), (3, 3), (4, 1, 4), (4, 2)], draw.randint(1, 3))
        words.append(pool)
    made: list[Constraint] = [one_of(*map(list, pool)) if len(pool) > 1 else phrase(*pool[0]) for pool in words]
    state = ConstraintListState(made)
    tokens: tuple[int, ...] = ()
    for _ in range(12):
        tokens = (*tokens, draw.randint(1, 5))
        before = state
        state = before.copy()
        state.add(tokens[-1])
        bank, is_met, steps = progress(words, tokens)
        assert (state.get_bank(), state.completed) == (bank, is_met), (words, tokens)
        assert set(state.advance() or ()) == (set() if is_met else set(steps)), (words, tokens)
        assert before.get_bank() == progress(words, tokens[:-1])[0], "a copy changed what it was made of"
        rebuilt = ConstraintListState(made)
        rebuilt.reset(list(tokens))
        assert rebuilt.get_bank() == bank


class AnyOrder(Constraint):
    """Requires all of some ids, at any positions and in any order."""

    def __init__(self, token_ids: set[int], broken: str = "") -> None:
        self.wanted, self.broken, self.seqlen = token_ids, broken, len(token_ids)
        self.left = token_ids
        super().__init__()

    def advance(self) -> list[int] | None:
        return sorted(self.left) or None

    def does_advance(self, token_id: int) -> bool:
        return token_id in self.left and self.broken != "does_advance"

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        if self.broken != "update":
            self.left = self.left - {token_id}
        return True, not self.left, False

    def reset(self) -> None:
        self.left = self.wanted

    def remaining(self) -> int:
        return 1 if self.broken == "remaining" else len(self.left)

    def copy(self, stateful: bool = False) -> AnyOrder:
        twin = AnyOrder(self.wanted)
        twin.left = self.left if stateful else twin.left
        return twin


def test_a_constraint_of_ones_own() -> None:
    state = ConstraintListState([AnyOrder({4, 5, 6}), phrase(9)])
    state.reset([5, 9, 4])
    assert (state.get_bank(), state.advance()) == (2, [6])
    state.add(6)
    state.add(9)
    assert state.completed


@pytest.mark.parametrize("method", ["does_advance", "update", "remaining"])
def test_a_constraint_that_does_not_hold_together(method: str) -> None:
    with pytest.raises(ValueError, match=f"`AnyOrder.{method}` must"):
        AnyOrder({4, 5}, broken=method)


def test_make_constraints() -> None:
    own = phrase(9)
    given = [own]
    made = make_constraints(given, [[5, 6], [[5], [7, 8]]])
    assert [token_ids(c) for c in made] == [[9], [5, 6], [[5], [7, 8]]]
    assert [type(c) for c in made] == [PhrasalConstraint, PhrasalConstraint, DisjunctiveConstraint]
    assert made[0] is own and given == [own]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PhrasalConstraint([]), ValueError, r"`token_ids` must be a non-empty list of ints >= 0, got \[\]"),
        (
            lambda: PhrasalConstraint((5,)),  # type: ignore[arg-type]
            ValueError,
            r"`token_ids` must be a non-empty list of ints >= 0, got \(5,\)",
        ),
        (lambda: phrase(-1), ValueError, "`token_ids` must be"),
        (lambda: phrase(5, True), ValueError, "`token_ids` must be"),
        (lambda: one_of(), ValueError, r"`nested_token_ids` must be a non-empty list of words, got \[\]"),
        (
            lambda: DisjunctiveConstraint([5]),  # type: ignore[list-item]
            ValueError,
            r"`nested_token_ids\[0\]` must be a non-empty list",
        ),
        (lambda: one_of([5], []), ValueError, r"`nested_token_ids\[1\]` must be a non-empty list"),
        (lambda: one_of([5, 6], [5]), ValueError, "`nested_token_ids` must hold different words, none of which begins"),
        (lambda: one_of([5], [5]), ValueError, "`nested_token_ids` must hold different words"),
        (
            lambda: phrase(5).does_advance("5"),  # type: ignore[arg-type]
            TypeError,
            "`token_id` must be an int, got str",
        ),
        (
            lambda: phrase(5).update(5.0),  # type: ignore[arg-type]
            TypeError,
            "`token_id` must be an int, got float",
        ),
        (
            lambda: one_of([5]).update(None),  # type: ignore[arg-type]
            TypeError,
            "`token_id` must be an int, got NoneType",
        ),
        (
            lambda: ConstraintListState([phrase(5)]).add("5"),  # type: ignore[arg-type]
            TypeError,
            "`token_id` must be an int, got str",
        ),
        (lambda: make_constraints([5], None), TypeError, r"`constraints` must be a list of Constraint, got \[5\]"),
        (lambda: make_constraints(phrase(5), None), TypeError, "`constraints` must be a list of Constraint"),
        (lambda: make_constraints([], None), ValueError, "`constraints` must hold at least one"),
        (lambda: make_constraints(None, []), ValueError, r"`force_words_ids` must be a non-empty list of words"),
        (lambda: make_constraints(None, 5), ValueError, "`force_words_ids` must be a non-empty list of words, got 5"),
        (lambda: make_constraints(None, [[5], []]), ValueError, r"`force_words_ids\[1\]`: .*non-empty list of ints"),
        (lambda: make_constraints(None, [[[5], 6]]), ValueError, r"`force_words_ids\[0\]`: .*\[1\]` must be"),
        (lambda: Constraint(), TypeError, "abstract"),  # type: ignore[abstract]
    ],
)
def test_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
