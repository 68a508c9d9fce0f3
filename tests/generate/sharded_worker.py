"""One process of a group that shards a model or replicates it; see `test_sharded.py`."""

from __future__ import annotations

import copy
import datetime
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM

from tests.generate.models import encoder_decoder, hf_model
from tests.helpers.generation import generate_tokens

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
}


def sharded(model: Any) -> Any:
    """Shards with FSDP2: each layer separately, and the rest together."""
    for module in list(model.modules()):
        if type(module).__name__ in ("LlamaDecoderLayer", "T5Block"):
            fully_shard(module)
    return fully_shard(model)


def flattened(model: Any) -> Any:
    """Shards with FSDP1, in the same way."""
    wrapped = {type(module) for module in model.modules() if type(module).__name__ in ("LlamaDecoderLayer", "T5Block")}
    policy = torch.distributed.fsdp.wrap.ModuleWrapPolicy(wrapped)
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"))


def prepared(model: Any) -> Any:
    return Accelerator(cpu=True).prepare(model)


def in_training(model: Any) -> Any:
    """Returns a replica of distributed training. Its ranks need not generate in lockstep."""
    return DistributedDataParallel(model)


def cases(world_size: int) -> Iterator[tuple[str, Any, Callable[[Any], Any], dict[str, Any]]]:
    """Yields (name, model, wrapper, arguments)."""
    for wrap in (sharded, flattened, in_training, prepared)[: None if world_size > 1 else 2]:
        for name, settings in SETTINGS.items():
            yield f"{wrap.__name__}: {name}", hf_model("llama"), wrap, settings
    for wrap in (sharded, flattened):
        yield f"{wrap.__name__}: an encoder", encoder_decoder("t5"), wrap, {"decoder_start_token_id": 1}


def run(rank: int, world_size: int, folder: str, failures: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29631"}
    limit = datetime.timedelta(seconds=60)
    store = f"file://{folder}/store{world_size}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=limit)
    try:
        # Each rank has other prompts and lengths.
        ids = torch.tensor([[5, 6, 7], [8, 9, 3]]) + rank
        for name, model, wrap, settings in cases(world_size):
            arguments = {"inputs": ids, "max_new_tokens": 3 + 2 * rank, **settings}
            torch.manual_seed(rank)
            expected = generate_tokens(model, **arguments)
            wrapped = wrap(copy.deepcopy(model))
            torch.manual_seed(rank)
            assert generate_tokens(wrapped, **arguments).equal(expected), name
            left = {"generate", "_cache", "_previous_max_cache_length"}
            assert not any(left & vars(module).keys() for module in wrapped.modules()), name
        if world_size > 1:
            _in_parallel(folder)
    except BaseException as error:
        failures.put(f"process {rank}: {type(error).__name__}: {error}")
        raise
    finally:
        dist.destroy_process_group()


def _in_parallel(folder: str) -> None:
    """Runs tensor parallelism: each rank has a part of every layer, so all ranks generate the same."""
    whole = LlamaForCausalLM.from_pretrained(Path(folder) / "model").eval()
    parallel = LlamaForCausalLM.from_pretrained(Path(folder) / "model", tp_plan="auto").eval()
    for name, settings in SETTINGS.items():
        arguments = {"inputs": torch.tensor([[5, 6, 7], [8, 9, 3]]), "max_new_tokens": 5, **settings}
        torch.manual_seed(0)
        expected = generate_tokens(whole, **arguments)
        torch.manual_seed(0)
        assert generate_tokens(parallel, **arguments).equal(expected), f"tensor parallel: {name}"
