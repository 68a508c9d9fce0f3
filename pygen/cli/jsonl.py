"""Many prompts: lines of JSON in, lines of JSON out."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TextIO, cast

import torch
from tqdm import tqdm

from pygen.batch.generate_batch import generate_batch
from pygen.batch.results import BatchResult
from pygen.cli import flags
from pygen.cli.call import Loaded, prepare
from pygen.cli.parser import FAILED, UsageError, one_line
from pygen.cli.prompt import ids_of
from pygen.config.rules import check_settings
from pygen.config.types import normalised
from pygen.generate import generate
from pygen.rules import is_ids, shown

_PROMPTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "prompt": ("a text", lambda value: isinstance(value, str)),
    "messages": (
        "a list of objects",
        lambda value: isinstance(value, list) and bool(value) and all(isinstance(m, dict) for m in value),
    ),
    "input_ids": ("a list of token ids", lambda value: is_ids(value, low=0, empty=False)),
}
# Copied into the answer.
_COPIED = ("id", "metadata")

Request = dict[str, Any]
Answer = dict[str, Any]


def add_arguments(group: Any) -> None:
    group.add_argument(
        "--jsonl",
        metavar="FILE",
        help="lines of JSON, - is standard input: an object with a prompt, messages or input_ids, its own settings, "
        "and id and metadata, which are copied",
    )
    group.add_argument("--output", default="-", metavar="FILE", help="the file for the answers of --jsonl (default: -)")
    group.add_argument("--rows", type=int, metavar="N", help="texts at a time of --jsonl (default: 8, 64 on a GPU)")


def run(arguments: argparse.Namespace) -> int:
    """Answers every line. A line that is refused or fails is an answer with `error`; the others go on."""
    if arguments.prompt is not None or arguments.file is not None:
        raise UsageError("--jsonl and a prompt exclude each other")
    with _opened(arguments.jsonl, "r", sys.stdin) as file:
        requests = list(read(file, arguments.jsonl))
    loaded = prepare(arguments)
    failed = 0
    with _opened(arguments.output, "w", sys.stdout) as output:
        for request, answer in zip(requests, answers(loaded, requests), strict=True):
            copied = {name: request[name] for name in _COPIED if name in request}
            print(json.dumps({**copied, **answer}, ensure_ascii=False), file=output, flush=True)
            failed += "error" in answer
    if failed:
        print(f"pygen generate: {failed} of {len(requests)} prompts failed", file=sys.stderr)
    return FAILED if failed else 0


def read(lines: Iterable[str], name: str) -> Iterator[Request]:
    """The requests of a file, all checked before the first is answered. ValueError with file and line."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            _check(request)
        except ValueError as error:
            raise ValueError(f"{name}:{number}: {error}") from None
        yield request


def _check(request: object) -> None:
    if not isinstance(request, dict):
        raise ValueError(f"a line must hold one JSON object, got {shown(request)}")
    given = [name for name in _PROMPTS if name in request]
    if len(given) != 1:
        raise ValueError(f"a line must hold one of {', '.join(_PROMPTS)}, got {', '.join(given) or 'none'}")
    for name, (words, accepts) in _PROMPTS.items():
        if name in request and not accepts(request[name]):
            raise ValueError(f"`{name}` must be {words}, got {shown(request[name])}")
    known = (*_PROMPTS, *_COPIED, *flags.SETTINGS)
    for name in request:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"; did you mean `{near[0]}`?" if near else "; put it into `metadata`"
            raise ValueError(f"`{name}` is neither a setting nor a part of a prompt{advice}")
    check_settings({name: normalised(name, value) for name, value in request.items()}, in_file=True)


def answers(loaded: Loaded, requests: Sequence[Request]) -> Iterator[Answer]:
    """The answers in order, each with `text` and `finish_reason`; or `answers`, a list of these; or `error`."""
    prompts = [_prompt(loaded, request) for request in requests]
    found = _answers(loaded, [prompt for prompt in prompts if isinstance(prompt, dict)])
    for prompt in prompts:
        yield next(found) if isinstance(prompt, dict) else {"error": one_line(prompt)}


def _prompt(loaded: Loaded, request: Request) -> dict[str, Any] | Exception:
    """The token ids and the settings of a request, or why it has none."""
    given = next(request[name] for name in _PROMPTS if name in request)
    try:
        ids = ids_of(loaded.tokenizer, given, loaded.arguments)
    except UsageError:
        raise
    except Exception as error:  # of the chat template
        return error
    return {"input_ids": ids, **{name: normalised(name, request[name]) for name in flags.SETTINGS if name in request}}


def _answers(loaded: Loaded, prompts: list[dict[str, Any]]) -> Iterator[Answer]:
    """Rows that come and go where the model and the settings of all prompts allow it; else one prompt at a time."""
    shown = sys.stderr.isatty()
    try:
        results = generate_batch(loaded.model, prompts, rows=loaded.arguments.rows, progress=shown, **loaded.settings)
    except NotImplementedError:
        if loaded.settings.get("output_logprobs"):
            raise
        yield from (_alone(loaded, prompt) for prompt in tqdm(prompts, unit="prompt", disable=not shown))
        return
    for _, copies in itertools.groupby(results, key=lambda result: result.index):
        yield _joined([_answer(result) for result in copies])


def _answer(result: BatchResult) -> Answer:
    if result.error is not None:
        return {"error": one_line(result.error)}
    answer: Answer = {"text": result.text, "finish_reason": result.finish_reason}
    if result.seed is not None:
        answer["seed"] = result.seed
    if result.logprobs is not None:
        answer |= {"token_ids": result.token_ids, "logprobs": result.logprobs}
    return answer


def _alone(loaded: Loaded, prompt: dict[str, Any]) -> Answer:
    ids = torch.tensor([prompt["input_ids"]], device=loaded.model.device)
    call = {**loaded.settings, **prompt, "input_ids": ids, "return_dict_in_generate": True}
    try:
        output: Any = generate(loaded.model, **call)
    except Exception as error:
        return {"error": one_line(error)}
    start = 1 if loaded.model.config.is_encoder_decoder else ids.shape[1]
    texts = loaded.tokenizer.batch_decode(output.sequences[:, start:], skip_special_tokens=True)
    reasons = zip(texts, output.finish_reason, strict=True)
    return _joined([{"text": text, "finish_reason": reason} for text, reason in reasons])


def _joined(copies: list[Answer]) -> Answer:
    return copies[0] if len(copies) == 1 else {"answers": copies}


def _opened(name: str, mode: str, standard: TextIO) -> AbstractContextManager[TextIO]:
    if name == "-":
        return contextlib.nullcontext(standard)
    return cast(TextIO, open(name, mode, encoding="utf-8"))
