"""Token healing: the model chooses the last token of a prompt again, among tokens that begin with its text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from pygen.config.config import GenerationConfig
from pygen.outputs import GenerateOutput
from pygen.request.prompt import Prompt
from pygen.request.protocols import Tokenizer
from pygen.stopping.token_bytes import token_bytes

# (ids (1, length), *, generation_config, tokenizer) -> (1, length + 1)
Generate = Callable[..., Tensor | GenerateOutput]

_EXTENSION_BIAS = 10.0
# Settings that a model's config may have, and that the choice of one token must not have.
_ONE_TOKEN = {"token_healing": False, "return_dict_in_generate": False}
_ORIGINAL_BONUS = 1.0  # favours the original token: "http" should not become "https" by a small margin


def heal(prompt: Prompt, tokenizer: Tokenizer | None, generate: Generate) -> Prompt:
    """`prompt` with healed ids.

    generate: `pygen.generate` for the model of the call.
    Errors: ValueError without a tokenizer, for other inputs than ids of a decoder-only model, and where the text of the
    ids has another shape when tokenized again.
    """
    if tokenizer is None:
        raise ValueError("`token_healing` needs the model's tokenizer: pass it as `tokenizer=`")
    if prompt.main_input is not prompt.input_ids:
        raise ValueError("`token_healing` needs a decoder-only model and `input_ids`")
    healed = heal_tokens(prompt.input_ids, tokenizer, generate)
    if healed.shape != prompt.input_ids.shape:
        raise ValueError(
            f"`token_healing`: the tokenizer makes {tuple(healed.shape)} of the text of `input_ids` "
            f"{tuple(prompt.input_ids.shape)}; strip the prompts before tokenizing them"
        )
    return dataclasses.replace(prompt, input_ids=healed)


def heal_tokens(input_ids: Tensor, tokenizer: Tokenizer, generate: Generate) -> Tensor:
    """A prompt that ends inside a word ends in a token that the model has not seen there; this chooses another.

    for each row, its text stripped and tokenized again, bos replaced by pad unless only one token follows it:
        extensions = tokens whose text begins with the text of the last token
        last token = next token after the others, each extension's score 10 higher, the original's 11

    A row of pads, a row whose last token is its only extension, and rows of one column stay as they are.

    input_ids, result: (batch_size, length) int64, padded as the tokenizer does.
    """
    texts: list[str] = [text.strip() for text in tokenizer.batch_decode(input_ids, skip_special_tokens=True)]
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    ids: Tensor = tokenizer(texts, return_tensors="pt", padding=True).input_ids.to(input_ids.device)
    if bos is not None and pad is not None:
        ids = torch.where(ids == bos, pad, ids)
    if ids.shape[1] < 2:
        return ids
    for row in ids:
        last = int(row[-1])
        seen = row[row != pad] if pad is not None else row
        bias = {(token_id,): _EXTENSION_BIAS for token_id in _extensions(tokenizer, last)}
        if len(seen) == 0 or len(bias) == 1:
            continue
        bias[(last,)] += _ORIGINAL_BONUS
        if len(seen) == 1 and bos is not None:
            row[-2] = bos
        settings = GenerationConfig(max_new_tokens=1, pad_token_id=pad, sequence_bias=bias, **_ONE_TOKEN)
        healed = generate(row[None, :-1], generation_config=settings, tokenizer=tokenizer)
        assert isinstance(healed, Tensor)
        row[-1] = healed[0, -1]
    return ids


def _extensions(tokenizer: Tokenizer, token_id: int) -> list[int]:
    """The tokens whose text begins with that of `token_id`, `token_id` included."""
    table = token_bytes(tokenizer)
    index = int((table.ids == token_id).nonzero()[0, 0])
    length = int(table.lengths[index])
    longer = (table.lengths >= length).nonzero()[:, 0]
    indices = table.starts[longer, None] + torch.arange(length, device="cpu")
    text = table.data[table.starts[index] + torch.arange(length, device="cpu")]
    return sorted(table.ids[longer[(table.data[indices] == text).all(dim=1)]].tolist())
