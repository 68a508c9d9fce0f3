"""Tables that search for stop strings token by token: each token maps a state of the search to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pygen.stopping.token_bytes import TokenBytes

# The search composes so many steps at once: more need more memory, fewer need more launches.
_COMPOSED = 32
# So many passes over the vocabulary that compare bytes take less time than one that looks them up.
_MAX_COMPARED = 8


@dataclass(frozen=True, eq=False)
class StopTables:
    """The automaton of Aho and Corasick over bytes, with whole tokens as its letters.

    A state is the longest prefix of some string that the text ends with; state 0 is the empty one. Tokens with the same
    transitions share a class. Class 0 leads from every state to state 0.

    classes: (size + 2,) int32, the class of id i at i + 1; ids below and above the vocabulary have class 0.
    states: (num_classes, num_states) int32, the state after the token.
    ends: (num_classes, num_states) bool, whether a string ends inside the token.
    longest: the number of bytes of the longest string.
    """

    classes: Tensor
    states: Tensor
    ends: Tensor
    longest: int

    def to(self, device: torch.device) -> StopTables:
        if self.classes.device == device:
            return self
        return StopTables(self.classes.to(device), self.states.to(device), self.ends.to(device), self.longest)

    @property
    def num_bytes(self) -> int:
        """The memory that they take."""
        return 4 * self.classes.numel() + 5 * self.ends.numel()

    def ended(self, input_ids: Tensor) -> Tensor:
        """(rows,) bool: whether a string ends in the last token of each row (rows, length), on the tables' device.

        The search composes the transitions of the last tokens pairwise, so it launches O(log(longest)) operations and
        reads nothing back from a GPU.
        """
        last_ids = input_ids[:, -self.longest :].clamp(-1, len(self.classes) - 2) + 1
        classes = self.classes[last_ids]
        ends = self.ends[classes[:, -1]]
        # The majority of tokens end nothing in any state. On a GPU, to read that back costs more than it saves.
        if ends.device.type == "cpu" and not ends.any():
            return ends[:, 0]
        return ends.gather(1, self._states_before(classes[:, :-1]))[:, 0]

    def _states_before(self, classes: Tensor) -> Tensor:
        """(rows, length) classes of tokens -> (rows, 1) int64, the state after them, from state 0."""
        length = classes.shape[1]
        composed = min(_COMPOSED, 1 << (length - 1).bit_length()) if length else 1
        state = torch.zeros((len(classes), 1), dtype=torch.int64, device=classes.device)
        # Class 0 leads to state 0, where the search begins.
        for some in functional.pad(classes, (-length % composed, 0)).split(composed, dim=1):
            functions = self.states[some].long()
            while functions.shape[1] > 1:
                functions = functions[:, 1::2].gather(2, functions[:, 0::2])
            if functions.shape[1]:
                state = functions[:, 0].gather(1, state)
        return state


def stop_tables(vocabulary: TokenBytes, patterns: list[bytes]) -> StopTables:
    """Tables for `patterns`, on the CPU. ValueError where no token can end any of them.

    Source: Aho, Corasick, Efficient string matching, CACM 18 (1975).
    """
    delta, depth, accepting = _automaton(patterns)
    after, ended = _read_in_state_0(vocabulary, delta, depth, accepting)
    changes, hits = _read_in_other_states(vocabulary, patterns, delta, accepting)
    if not ended.any() and not len(hits):
        raise ValueError("no token of the vocabulary can end any of")

    # First come classes that lead from every state to the same one, without and with an end inside; then the others.
    num_states = len(delta)
    empty = (vocabulary.lengths == 0).nonzero()[:, 0]
    apart = torch.cat([changes[:, 0], hits[:, 0], empty]).unique()
    common = torch.arange(num_states).repeat(2)
    states = torch.cat([common, after[apart]])[:, None].repeat(1, num_states)
    ends = torch.cat([torch.arange(2 * num_states) >= num_states, ended[apart]])[:, None].repeat(1, num_states)
    class_of = after + num_states * ended
    class_of[apart] = 2 * num_states + torch.arange(len(apart))
    states[class_of[changes[:, 0]], changes[:, 1]] = changes[:, 2]
    states[class_of[empty]] = torch.arange(num_states)
    ends[class_of[hits[:, 0]], hits[:, 1]] = True
    classes = torch.zeros(vocabulary.size + 2, dtype=torch.int32)
    classes[vocabulary.ids + 1] = class_of.int()
    return StopTables(classes, states.int(), ends, max(map(len, patterns)))


def _automaton(patterns: list[bytes]) -> tuple[Tensor, Tensor, Tensor]:
    """delta (num_states, 256) int64, the state after a byte; depth (num_states,) int64, the length of its prefix;
    accepting (num_states,) bool, whether a pattern ends."""
    children: list[dict[int, int]] = [{}]
    accepting, depth = [False], [0]
    for pattern in patterns:
        state = 0
        for byte in pattern:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                accepting.append(False)
                depth.append(depth[state] + 1)
            state = children[state][byte]
        accepting[state] = True

    delta = [[0] * 256 for _ in children]
    shorter = [0] * len(children)  # the state of the longest proper suffix
    order = [0]
    for state in order:
        if state:
            delta[state] = list(delta[shorter[state]])
            accepting[state] |= accepting[shorter[state]]
        for byte, child in children[state].items():
            shorter[child] = delta[state][byte]
            delta[state][byte] = child
        order.extend(children[state].values())
    return torch.tensor(delta), torch.tensor(depth), torch.tensor(accepting)


def _read_in_state_0(vocabulary: TokenBytes, delta: Tensor, depth: Tensor, accepting: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) int64, the state after every token from state 0, and (n,) bool, whether a pattern ends in it.

    The loop follows all occurrences of prefixes of the patterns inside tokens, byte by byte. The first occurrence that
    reaches the end of its token is the longest, and gives the state.
    """
    data, is_last = vocabulary.data, vocabulary.is_last
    states = torch.zeros_like(vocabulary.starts)
    ended = torch.zeros_like(states, dtype=torch.bool)
    at, length = _occurrences(data, delta[0].nonzero()[:, 0].tolist()), 1
    state = delta[0][data[at].long()]
    while len(at):
        ended[vocabulary.token_at(at[accepting[state]])] = True
        last = is_last[at]
        states[vocabulary.token_at(at[last])] = state[last]
        at, state, length = at[~last] + 1, state[~last], length + 1
        state = delta[state, data[at].long()]
        longer = depth[state] == length
        at, state = at[longer], state[longer]
    return states, ended


def _occurrences(data: Tensor, values: list[int]) -> Tensor:
    """The positions of bytes with one of `values`."""
    if len(values) > _MAX_COMPARED:
        wanted = torch.zeros(256, dtype=torch.bool)
        wanted[values] = True
        return wanted[data.int()].nonzero()[:, 0]
    found = torch.zeros(len(data), dtype=torch.bool)
    for value in values:
        found |= data == value
    return found.nonzero()[:, 0]


def _may_differ(vocabulary: TokenBytes, patterns: list[bytes]) -> Tensor:
    """(n,) bool, False only for tokens whose transitions from all states equal that from state 0, or without bytes.

    The first byte of such a token ends no pattern, and no pattern contains its first two bytes in sequence. So the
    state after these two bytes does not depend on the text before the token.
    """
    differ = torch.zeros(2**16 + 2, dtype=torch.bool)
    differ[2**16] = True
    pairs = differ[: 2**16].view(256, 256)
    for pattern in patterns:
        pairs[pattern[-1]] = True
        pairs[list(pattern[:-1]), list(pattern[1:])] = True
    return differ.index_select(0, vocabulary.beginnings)


def _read_in_other_states(
    vocabulary: TokenBytes, patterns: list[bytes], delta: Tensor, accepting: Tensor
) -> tuple[Tensor, Tensor]:
    """The transitions from other states that differ from those from state 0.

    changes (m, 3): index of the token in `vocabulary`, state before, and state after, where the last differs.
    hits (k, 2): index of the token and state before, where a pattern ends in the token.

    The loop drops each (token, state) whose path meets that of state 0, typically after a byte or two.
    """
    going = _may_differ(vocabulary, patterns).nonzero()[:, 0]
    first = vocabulary.data[vocabulary.starts[going]].long()
    byte, state = (delta != delta[0]).T.nonzero(as_tuple=True)
    per_byte = torch.bincount(byte, minlength=256)
    counts = per_byte[first]
    token = going.repeat_interleave(counts)
    rank = torch.arange(len(token)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    start = state[(per_byte.cumsum(0) - per_byte)[first].repeat_interleave(counts) + rank]

    changes, hits = [start.new_zeros(0, 3)], [start.new_zeros(0, 2)]
    now, plain, offset = start, torch.zeros_like(start), 0
    while len(token):
        byte = vocabulary.data[vocabulary.starts[token] + offset].long()
        now, plain, offset = delta[now, byte], delta[plain, byte], offset + 1
        hit = accepting[now]
        hits.append(torch.stack([token[hit], start[hit]], 1))
        over = (now != plain) & (vocabulary.lengths[token] == offset)
        changes.append(torch.stack([token[over], start[over], now[over]], 1))
        follow = (now != plain) & ~over
        token, start, now, plain = token[follow], start[follow], now[follow], plain[follow]
    return torch.cat(changes), torch.cat(hits)
