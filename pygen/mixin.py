"""`GenerationMixin`: gives your own model class `generate` and the hooks that control it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from pygen.call.healing import heal_tokens
from pygen.call.remote_code import load_custom_generate
from pygen.decode.transition_scores import compute_transition_scores
from pygen.generate import generate
from pygen.models.hooks import GenerationHooks
from pygen.models.patches import method_of_patches
from pygen.outputs import GenerateOutput
from pygen.request.protocols import GenerationSettings, Streamer, Tokenizer
from pygen.stopping.criteria import Criterion


class GenerationMixin(GenerationHooks):
    """Base of model classes that generate; transformers is not needed.

    ```
    class Model(torch.nn.Module, pygen.GenerationMixin):
        def forward(self, input_ids, past_key_values=None, attention_mask=None): ...
            return logits, cache

    Model().generate(input_ids, do_sample=True, max_new_tokens=20)
    ```

    A class must have a `forward` over `input_ids`, as `pygen.models.module.ModuleAdapter` describes it; the parameters
    that `forward` names decide which inputs it receives. A class may also have, under transformers' names:

    generation_config: default settings; made from `config` on first use unless set.
    config.max_position_embeddings: bounds the default length.
    prepare_inputs_for_generation, _update_model_kwargs_for_generation, _expand_inputs_for_generation: below.
    _prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, max_cache_length): puts
        the cache of the call into `model_kwargs["past_key_values"]`; without it, `forward` makes it when given None.
        The argument may also be called `cache`, here, in `forward` and in `prepare_inputs_for_generation`.
        The cache must hold max_cache_length positions of batch_size * max(num_beams, num_return_sequences) rows.
    _reorder_cache(past_key_values, beam_idx) -> past_key_values: gathers the rows of a cache after a step of beam
        search, where the cache has no method `reorder_cache(beam_idx)`. With neither, only a tuple with a pair of key
        and value (rows, heads, positions, head_dim) per layer serves beams.

    `generate` raises NotImplementedError for a class that replaces a decoding loop of transformers (`_sample`,
    `_beam_search`, `_get_logits_processor`, ...), because pygen would never call that method.
    """

    @method_of_patches
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationSettings | None = None,
        logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] | None = None,
        stopping_criteria: Sequence[Criterion] | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
        synced_gpus: bool | None = None,
        assistant_model: nn.Module | None = None,
        streamer: Streamer | None = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        custom_generate: str | Callable[..., object] | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """`pygen.generate` on this model, with the parameters in transformers' order."""
        return generate(
            cast(nn.Module, self),
            inputs,
            generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            synced_gpus=synced_gpus,
            assistant_model=assistant_model,
            streamer=streamer,
            negative_prompt_ids=negative_prompt_ids,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            custom_generate=custom_generate,
            **kwargs,
        )

    def heal_tokens(self, input_ids: Tensor, tokenizer: Tokenizer | None = None) -> Tensor:
        """The prompts, the last token of each chosen anew by this model (`pygen.call.healing.heal_tokens`)."""
        if tokenizer is None:
            raise ValueError("`heal_tokens` needs the model's `tokenizer`")
        return heal_tokens(input_ids, tokenizer, functools.partial(generate, cast(nn.Module, self)))

    def load_custom_generate(
        self,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> Callable[..., Any]:
        """The function that `custom_generate=` would call (`pygen.call.remote_code.load_custom_generate`)."""
        if pretrained_model_name_or_path is None:
            raise ValueError("`pretrained_model_name_or_path` must be a folder or a repository, got None")
        return load_custom_generate(os.fspath(pretrained_model_name_or_path), trust_remote_code, **kwargs)

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: tuple[Tensor, ...],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """`pygen.compute_transition_scores`."""
        return compute_transition_scores(sequences, scores, beam_indices, normalize_logits)
