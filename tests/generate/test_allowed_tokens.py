"""`prefix_allowed_tokens_fn` with a few paths: which texts it is called with, and what an empty answer does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.generate import generate
from tests.generate.against_transformers import both
from tests.generate.models import hf_model
from tests.generate.test_assisted import assistant

IDS = torch.tensor([[5, 6, 5, 6], [5, 8, 5, 8]])
EOS, PAD = 2, 3
PATHS = [[[9, 12, 13], [9, 12, 14, 15, 16]], [[7], [9, 8, 7]]]

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 1},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "assistant": {"assistant_model": assistant("llama")},
    "2 beams": {"num_beams": 2},
    "5 beams": {"num_beams": 5},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.4},
    "words": {"num_beams": 4, "force_words_ids": [[[9, 12], [7]]]},
}


class Trie:
    """Allows the paths of a prompt, which end in `end`. `asked` records the prompt and the text of every call."""

    def __init__(self, paths: list[list[list[int]]], end: list[int]) -> None:
        self.paths = [[path + end for path in of_prompt] for of_prompt in paths]
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def __call__(self, batch_id: int, ids: Tensor) -> list[int]:
        text = ids[4:].tolist()
        self.asked.append((batch_id, tuple(text)))
        return sorted({path[len(text)] for path in self.paths[batch_id] if path[: len(text)] == text != path})


def run(trie: Trie, ids: Tensor = IDS, **settings: Any) -> Any:
    arguments = {"max_new_tokens": 8, "pad_token_id": PAD, "return_dict_in_generate": True, **settings}
    return generate(hf_model("llama"), ids, prefix_allowed_tokens_fn=trie, **arguments)


@pytest.mark.parametrize("mode", MODES)
def test_only_texts_that_go_on_are_asked_about(mode: str) -> None:
    trie = Trie(PATHS, [EOS])
    found = run(trie, eos_token_id=EOS, **MODES[mode])
    for row, text in enumerate(found.sequences[:, 4:].tolist()):
        length = text.index(EOS) + 1
        assert text[:length] in trie.paths[row] and set(text[length:]) <= {PAD}
        alone = run(Trie([PATHS[row]], [EOS]), IDS[row : row + 1], eos_token_id=EOS, **MODES[mode])
        assert alone.sequences[0, 4:].tolist() == text[:length]
    begun = {(row, tuple(path[:length])) for row in (0, 1) for path in trie.paths[row] for length in range(len(path))}
    assert set(trie.asked) <= begun
    if "groups" not in mode and "assistant" not in mode:
        # No two beams share a text.
        assert len(set(trie.asked)) == len(trie.asked)


@pytest.mark.parametrize("end", ["an end token", "padding"])
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_answer_ends_its_text_alone(mode: str, end: str) -> None:
    ends: dict[str, Any] = {"eos_token_id": EOS} if end == "an end token" else {}
    trie = Trie(PATHS, [])
    found = run(trie, **ends, **MODES[mode])
    after = EOS if ends else PAD
    for row, text in enumerate(found.sequences[:, 4:].tolist()):
        length = text.index(after)
        assert text[:length] in PATHS[row] and set(text[length + 1 :]) <= {PAD}
    assert found.finish_reason == ["eos" if ends else "stop"] * 2
    assert all(any(text == tuple(path[: len(text)]) for path in PATHS[row]) for row, text in trie.asked)
    if ends:
        spelt_out = run(Trie(PATHS, [EOS]), **ends, **MODES[mode])
        assert torch.equal(found.sequences, spelt_out.sequences)


def test_an_end_needs_a_token() -> None:
    with pytest.raises(
        ValueError, match=r"`eos_token_id` or `pad_token_id` must be set where `prefix_allowed_tokens_fn`"
    ):
        run(Trie(PATHS, []), IDS[:1], pad_token_id=None)


@pytest.mark.parametrize("num_beams", [1, 2, 4])
def test_paths_that_end_by_themselves_are_found_as_transformers_does(num_beams: int) -> None:
    """transformers also calls the function for dead beams and ended rows, which get an end token here."""
    trie = Trie(PATHS, [EOS])

    def never_empty(batch_id: int, ids: Tensor) -> list[int]:
        return trie(batch_id, ids) or [EOS]

    settings = {"max_new_tokens": 8, "pad_token_id": PAD, "eos_token_id": EOS, "num_beams": num_beams}
    ours, theirs = both(hf_model("llama"), IDS, prefix_allowed_tokens_fn=never_empty, **settings)
    assert torch.equal(ours, theirs)
