"""Whether a call runs by captured steps, and why not."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import torch

from pygen.backends import BackendError
from pygen.config.config import GenerationConfig, GenerationMode
from pygen.graph.cuda_graph import CAPTURES, CompileOptions
from pygen.models.foreign_hooks import is_hooked
from pygen.models.inputs import GrowingInputs
from pygen.models.versions import given_cache_name
from pygen.models.wrappers import inner
from pygen.notices import log
from pygen.ops import DISPATCHERS
from pygen.plan.plan import Plan
from pygen.plan.stages import Called

if TYPE_CHECKING:
    from pygen.call.call import Call
    from pygen.graph.captures import Slot
    from pygen.graph.static_encoder import EncoderSize

logger = logging.getLogger(__name__)

RUNTIMES = ("auto", "eager", "graph")
# Steps that a call has to be allowed before "auto" captures one. A capture runs the step three times and records a few
# thousand launches, which takes as long as some tens of eager steps; a captured step saves at best all of one.
LEAST_STEPS = 64

# By mode, the op that ends its captured step.
CAPTURED_MODES = {
    GenerationMode.GREEDY_SEARCH: "sample",
    GenerationMode.SAMPLE: "sample",
    GenerationMode.BEAM_SEARCH: "beam_step",
    GenerationMode.BEAM_SAMPLE: "beam_step",
}
# A cache of so many positions is allocated at once, or of as many as the model has.
MAX_POSITIONS = 32_768
_KEPT_PER_STEP = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_OWN_INPUTS = (
    "input_ids",
    "inputs_embeds",
    *GrowingInputs.KINDS,
    "decoder_attention_mask",
    "decoder_position_ids",
)


@dataclasses.dataclass(frozen=True)
class RuntimeChoice:
    """name: "graph" or "eager". reason: why not "graph", or "".

    capacity, encoder: of the cache of "graph", its positions and what `encoder_size` says.
    """

    name: str
    reason: str
    capacity: int = 0
    encoder: EncoderSize = None

    def __str__(self) -> str:
        if self.name == "eager":
            return f"eager: {self.reason}"
        crossed = f", and one of {self.encoder} for the encoder's output" if isinstance(self.encoder, int) else ""
        return f"graph, over a cache of {self.capacity} positions{crossed}"


def check_runtime(runtime: object) -> str:
    if runtime not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {', '.join(map(repr, RUNTIMES))}, got {runtime!r}")
    return str(runtime)


def choose_runtime(call: Call, plan: Plan | None) -> RuntimeChoice:
    """What runs `call`. Raises BackendError where it asks for "graph" and there is a reason against it.

    plan: None for loops that are never captured.
    """
    if call.runtime == "eager":
        return _eager(call, "`runtime`='eager'")
    reason = _reason_against(call, plan)
    if reason is not None and call.runtime == "graph":
        raise BackendError(f"`runtime`='graph' cannot run here: {reason}")
    if reason is not None:
        return _eager(call, reason)
    from pygen.graph.captures import has_slot
    from pygen.graph.static_cache import bucket
    from pygen.graph.static_encoder import encoder_size

    prompt, steps = call.prompt, call.lengths.max_new_tokens
    longest = prompt.embeds_length + prompt.input_ids.shape[1] + steps - 1
    capacity = bucket(max(longest, getattr(call.config, "max_cache_len", None) or 0))
    encoder = encoder_size(_hooks(call), prompt)
    if call.runtime == "auto" and steps < LEAST_STEPS and not has_slot(_hooks(call), call.rows, capacity, encoder):
        return _eager(call, f"a capture does not pay for {steps} tokens; it does from {LEAST_STEPS} on")
    return RuntimeChoice("graph", "", capacity, encoder)


def choose_slot(call: Call, plan: Plan) -> Slot | None:
    """Where the steps of `call` are captured; None where they run eagerly. Raises as `choose_runtime` does."""
    runtime = choose_runtime(call, plan)
    if runtime.name != "graph":
        return None
    from pygen.graph.captures import take_slot

    slot = take_slot(call.model, call.rows, runtime.capacity, runtime.encoder)
    if slot is None and call.runtime == "graph":
        raise BackendError("`runtime`='graph' cannot run here: another call is using the captured step")
    return slot


def compile_options(config: GenerationConfig) -> CompileOptions | None:
    """Arguments of torch.compile for the forward, or None. pygen makes the capture, so modes lose theirs."""
    if config.compile_config is None or config.disable_compile:
        return None
    options = config.compile_config.to_dict()
    without: dict[str, str | None] = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}
    mode = config.compile_config.mode
    options["mode"] = None if options["options"] else without.get(mode, mode)
    return options


def _eager(call: Call, reason: str) -> RuntimeChoice:
    if compile_options(call.config) is not None:
        log(logger, f"`compile_config` is not used: only captured steps are compiled, and {reason}.")
    return RuntimeChoice("eager", reason)


def _hooks(call: Call) -> Any:
    return inner(call.model)


def _reason_against(call: Call, plan: Plan | None) -> str | None:
    """Why no step of `call` can be captured, the first reason there is."""
    if plan is None:
        if call.mode in CAPTURED_MODES:
            return "`custom_generate` decodes"
        return f"steps of {call.mode.value.replace('_', ' ')} are not captured in this version"
    return _reason_of_model(call) or _reason_of_plan(call, plan) or _reason_of_settings(call) or _reason_of_cache(call)


def _reason_of_model(call: Call) -> str | None:
    hooks, device = _hooks(call), call.prompt.input_ids.device
    if device.type in CAPTURES and type(call.adapter).__name__ != "TransformersAdapter":
        return f"{type(hooks).__name__} is no model of transformers, whose caches a captured step writes"
    if CAPTURED_MODES[call.mode] == "beam_step" and hasattr(hooks, "_reorder_cache"):
        return f"{type(hooks).__name__} moves the rows of its cache by its own `_reorder_cache`"
    return reason_of_model(call.model, device)


def reason_of_model(model: torch.nn.Module, device: torch.device) -> str | None:
    """Why no forward of `model`, a model of transformers or a wrapper of one, can be captured on `device`."""
    if device.type not in CAPTURES:
        return f"it needs a CUDA model, got one on {device}"
    hooks = inner(model)
    elsewhere = sorted({str(weight.device) for weight in hooks.parameters() if weight.device != device})
    if elsewhere:
        return f"weights of {type(hooks).__name__} are on {', '.join(elsewhere)}, and a graph runs on {device} alone"
    from pygen.models.transformers_inputs import is_default, preparer

    if not is_default(hooks, "_update_model_kwargs_for_generation"):
        return f"{type(hooks).__name__} extends its inputs by its own `_update_model_kwargs_for_generation`"
    if hooks is not model and not is_compiled(model):
        return f"the {type(model).__name__} around the model has to be called for every token"
    if hooks.training:
        return "the model is in training mode"
    if (owner := preparer(hooks)) is not None:
        return f"{type(owner).__name__} prepares the inputs, by a call of Python"
    for name, module in (("", model), *hooks.named_modules()):
        if is_compiled(module):
            return "the model is compiled already; `compile_config` compiles its forward inside the capture"
        if _has_adapters(module):
            return f"`{name}` is a layer of peft, whose adapter a replay would not switch"
        if is_hooked(module):
            return f"`{name or type(hooks).__name__}` has hooks or its own forward, which a replay would not call"
    return None


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether `torch.compile` has taken the module, its calls, or its forward."""
    in_place = module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")
    return in_place or "_orig_mod" in module._modules


def _has_adapters(module: torch.nn.Module) -> bool:
    return any(base.__name__ == "BaseTunerLayer" for base in type(module).__mro__)


def _reason_of_plan(call: Call, plan: Plan) -> str | None:
    for segment in plan.segments:
        for stage in segment.early:
            if isinstance(stage, Called):
                item = stage.items[0]
                return f"`{item.name}` ({item.label}) is a call of Python"
            return "the order of the processors needs more than one op"
    if call.grammar is not None:
        return "`grammar`: its matcher runs on the host between two steps"
    op = CAPTURED_MODES[call.mode]
    dispatcher = DISPATCHERS[op]
    backend, _ = dispatcher.choose(call.prompt.input_ids.device)
    if backend == "torch":
        return f"`{op}` in torch reads numbers on the host"
    if backend == "triton" and plan.noise.get("rng") == "torch":
        return f"`{op}` in Triton takes torch's noise from the generator itself; `seed` would not need it"
    return None


def _reason_of_settings(call: Call) -> str | None:
    if call.synced_gpus:
        return "`synced_gpus`: other processes are told of every forward"
    if call.compact_rows is True:
        return "`compact_rows`=True: a captured step always reads all rows"
    if call.criteria:
        criterion = call.criteria[0]
        name = getattr(criterion, "__name__", type(criterion).__name__)
        return f"the stopping criterion {name} is a call of Python"
    kept = next((name for name in _KEPT_PER_STEP if call.wants_dict and getattr(call.config, name)), None)
    if kept is not None:
        return f"`{kept}` keeps tensors of every step"
    return None


def _reason_of_cache(call: Call) -> str | None:
    from pygen.graph.cache_refusals import refusal

    kwargs, kind = call.prompt.model_kwargs, call.config.cache_implementation
    if call.config.use_cache is False:
        return "`use_cache` is False"
    given = given_cache_name(call.settings.model_kwargs)
    if given is not None:
        return f"`{given}`: the cache is the caller's"
    if kind not in (None, "static"):
        return refusal(_hooks(call), kind) or f"`cache_implementation`={kind!r} is another cache than a static one"
    if kind == "static" and call.wants_dict:
        return "the `cache` of the output has to be the static cache that was asked for"
    own = next((n for n, v in kwargs.items() if isinstance(v, torch.Tensor) and n not in _OWN_INPUTS), None)
    if own is not None:
        return f"`{own}` is an input that only this call has"
    return refusal(_hooks(call)) or _reason_of_encoder(call) or _reason_of_length(call)


def _reason_of_length(call: Call) -> str | None:
    of_model: Any = call.model.config
    config = of_model.get_text_config(decoder=True)
    max_positions = max(getattr(config, "max_position_embeddings", None) or 0, MAX_POSITIONS)
    needed = call.prompt.embeds_length + call.prompt.input_ids.shape[1] + call.lengths.max_new_tokens - 1
    if needed <= max_positions:
        return None
    return f"its cache would be allocated at once, and {needed} positions are more than {max_positions}"


def _reason_of_encoder(call: Call) -> str | None:
    mask = call.prompt.model_kwargs.get("attention_mask") if call.adapter.is_encoder_decoder else None
    # Where all scores are equally low, a softmax attends to everything, padding included.
    if mask is not None and not bool((mask != 0).any(-1).all()):
        return "`attention_mask` hides all of a prompt"
    return None
