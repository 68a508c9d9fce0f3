"""One of two processes whose forwards wait for each other, as FSDP's do; see `test_synced_gpus.py`."""

from __future__ import annotations

import datetime
import threading
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pygen.generate import generate
from tests.generate.models import counting_table, encoder_decoder, hf_model

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])


def scenarios(rank: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Returns (model, arguments) by name. The two processes generate texts of different lengths."""
    stopped = threading.Event()
    if rank == 0:
        stopped.set()
    return {
        "one ends early": (counting_table(40), {"inputs": IDS, "eos_token_id": 12 + 20 * rank, "max_new_tokens": 30}),
        "lengths differ": (hf_model("llama"), {"inputs": IDS, "max_new_tokens": 3 + 5 * rank}),
        "pieces differ": (hf_model("gpt2"), {"inputs": IDS, "prefill_chunk_size": 1 + rank, "max_new_tokens": 4}),
        "an encoder": (
            encoder_decoder("t5"),
            {"inputs": IDS, "decoder_start_token_id": 1, "max_new_tokens": 7 - 4 * rank, "do_sample": True},
        ),
        "beams": (hf_model("llama"), {"inputs": IDS, "num_beams": 2, "max_new_tokens": 3 + 4 * rank}),
        "candidates": (
            hf_model("llama"),
            {"inputs": IDS, "penalty_alpha": 0.6, "top_k": 3, "low_memory": rank == 1, "max_new_tokens": 3},
        ),
        "one is cancelled at once": (hf_model("llama"), {"inputs": IDS, "max_new_tokens": 5, "cancel": stopped}),
        "a cache is returned": (
            hf_model("llama"),
            {"inputs": IDS, "max_new_tokens": 3 + 5 * rank, "return_dict_in_generate": True},
        ),
    }


def run(rank: int, store: str, failures: Any) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    try:
        for name, (model, arguments) in scenarios(rank).items():
            forwards, drawn = _generate(model, **arguments)
            torch.manual_seed(0)
            alone = generate(model, **arguments)
            tokens, expected = (x if isinstance(x, Tensor) else x.sequences for x in (drawn, alone))
            assert torch.equal(tokens, expected), name
            if not isinstance(drawn, Tensor):
                assert drawn.past_key_values.get_seq_length() == tokens.shape[1] - 1, name
            counts = [torch.zeros((), dtype=torch.int64) for _ in range(2)]
            dist.all_gather(counts, torch.tensor(forwards))
            assert counts[0] == counts[1] > 0, f"{name}: {counts}"
        _one_fails(rank)
    except BaseException as error:
        failures.put(f"process {rank}: {type(error).__name__}: {error}")
        raise
    finally:
        dist.destroy_process_group()


def _generate(model: Any, **arguments: Any) -> tuple[int, Any]:
    """Returns the number of forwards and the result. Each forward waits for one of the other process."""
    forwards = 0

    def meet(*args: Any) -> None:
        nonlocal forwards
        forwards += 1
        dist.all_reduce(torch.zeros(1))

    handle = model.register_forward_pre_hook(meet)
    torch.manual_seed(0)
    try:
        drawn = generate(model, synced_gpus=True, **arguments)
        return forwards, drawn
    finally:
        handle.remove()


def _one_fails(rank: int) -> None:
    model = counting_table(40)
    if rank == 0:
        model.table[8] = torch.nan
    try:
        _, drawn = _generate(model, inputs=IDS, max_new_tokens=6)
    except RuntimeError as error:
        assert rank == 0 and "hold NaN" in str(error)
    else:
        assert rank == 1 and drawn.shape == (2, 9)
