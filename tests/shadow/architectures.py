"""The architectures that run in both libraries, one row each: the model class and fields of its config."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from tests.shadow.tiny import built

Inputs = dict[str, Any]
# The placeholder id for a token of an image.
IMAGE = 60


def texts(config: Any, rows: int) -> Inputs:
    """Returns repetitive prompts of nine tokens."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 50, (rows, 9), generator=generator)
    ids[:, 6:8] = ids[:, 1:3]
    return {"input_ids": ids}


def features(name: str, *shape: int) -> Callable[[Any, int], Inputs]:
    """Returns a function that makes random features of `shape` per row, under the model's name for them."""

    def read(config: Any, rows: int) -> Inputs:
        return {name: torch.randn(rows, *shape, generator=torch.Generator().manual_seed(6))}

    return read


def patches(config: Any, rows: int) -> Inputs:
    """Returns flattened patches (rows, 6, 2 + 12). Each begins with its position, counted from 1."""
    places = torch.tensor([[1 + i // 3, 1 + i % 3] for i in range(6)]).expand(rows, 6, 2)
    pixels = torch.randn(rows, 6, 12, generator=torch.Generator().manual_seed(6))
    return {"flattened_patches": torch.cat([places, pixels], dim=-1), "attention_mask": torch.ones(rows, 6)}


def images(tokens: int, *shape: int, **more: Any) -> Callable[[Any, int], Inputs]:
    """Returns a function that makes texts with `tokens` placeholders and one image of `shape` per row.

    more: further inputs, as functions of the ids.
    """

    def read(config: Any, rows: int) -> Inputs:
        ids = texts(config, rows)["input_ids"]
        places = torch.full((rows, tokens), IMAGE)
        ids = torch.cat([ids[:, :2], places, ids[:, 2:]], dim=1)
        generator = torch.Generator().manual_seed(6)
        inputs = {"input_ids": ids, "pixel_values": torch.randn(rows, *shape, generator=generator)}
        return inputs | {name: value(ids) if callable(value) else value for name, value in more.items()}

    return read


def qwen_images(config: Any, rows: int) -> Inputs:
    """Returns texts with one image per row, of 4 x 4 patches that become 2 x 2 tokens."""
    ids = texts(config, rows)["input_ids"]
    image = torch.tensor([[58, *[IMAGE] * 4, 59]]).expand(rows, 6)
    pixels = torch.randn(rows * 16, 3 * 2 * 2 * 2, generator=torch.Generator().manual_seed(6))
    grid = torch.tensor([[1, 4, 4]]).expand(rows, 3)
    ids = torch.cat([ids[:, :2], image, ids[:, 2:]], dim=1)
    return {
        "input_ids": ids,
        "pixel_values": pixels,
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


@dataclasses.dataclass(frozen=True)
class Architecture:
    """
    model, fields: the model class, and fields of its config. inputs: makes the inputs for a number of rows.
    all_modes: run all modes; otherwise each architecture runs in some of them.
    has_attentions: whether its outputs have attentions.
    refused: modes that only pygen refuses, with part of the message.
    own: modes in which pygen's results differ from transformers' and are right, with the reason.
    own_lately: the same, with later releases than 5.6.1.
    """

    model: str
    fields: dict[str, Any]
    inputs: Callable[[Any, int], Inputs]
    all_modes: bool = False
    has_attentions: bool = True
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    own: dict[str, str] = dataclasses.field(default_factory=dict)
    own_lately: dict[str, str] = dataclasses.field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {}


@functools.lru_cache(maxsize=4)
def tiny_model(name: str, seed: int = 0) -> Any:
    """Builds the model of a row."""
    architecture = ARCHITECTURES[name]
    return built(architecture.model, seed, **architecture.fields)


_OPTIONS = ("all_modes", "has_attentions", "refused", "own", "own_lately")


def row(model: str, inputs: Callable[[Any, int], Inputs] = texts, **fields: Any) -> None:
    options = {name: fields.pop(name) for name in _OPTIONS if name in fields}
    ARCHITECTURES[model] = Architecture(model, fields, inputs, **options)


_DECODERS = """
    AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM AriaTextForCausalLM BartForCausalLM
    BigBirdPegasusForCausalLM BioGptForCausalLM BitNetForCausalLM BlenderbotForCausalLM BlenderbotSmallForCausalLM
    BloomForCausalLM CohereForCausalLM Cohere2ForCausalLM CTRLLMHeadModel CwmForCausalLM DeepseekV3ForCausalLM
    DiffLlamaForCausalLM DogeForCausalLM Emu3ForCausalLM Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM
    Exaone4ForCausalLM ExaoneMoeForCausalLM FalconForCausalLM FlexOlmoForCausalLM
    FuyuForCausalLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM GitForCausalLM GlmForCausalLM
    Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM
    GPTNeoXForCausalLM GPTNeoXJapaneseForCausalLM GptOssForCausalLM GraniteForCausalLM GraniteMoeForCausalLM
    GraniteMoeSharedForCausalLM HeliumForCausalLM HYV3ForCausalLM Jais2ForCausalLM JetMoeForCausalLM Lfm2ForCausalLM
    Llama4ForCausalLM MarianForCausalLM MBartForCausalLM
    MiniMaxM2ForCausalLM Ministral3ForCausalLM MistralForCausalLM MixtralForCausalLM
    MllamaForCausalLM ModernBertDecoderForCausalLM MoshiForCausalLM MptForCausalLM MvpForCausalLM
    NanoChatForCausalLM OlmoForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoHybridForCausalLM
    OlmoeForCausalLM OpenAIGPTLMHeadModel OPTForCausalLM PegasusForCausalLM PersimmonForCausalLM PhiForCausalLM
    Phi3ForCausalLM PhimoeForCausalLM PLBartForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM
    Qwen3MoeForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM SolarOpenForCausalLM
    StableLmForCausalLM Starcoder2ForCausalLM TrOCRForCausalLM VaultGemmaForCausalLM WhisperForCausalLM
    XGLMForCausalLM YoutuForCausalLM
"""
_DECODERS_OF_ENCODERS = """
    BertLMHeadModel BertGenerationDecoder BigBirdForCausalLM CamembertForCausalLM Data2VecTextForCausalLM
    ElectraForCausalLM ErnieForCausalLM MegatronBertForCausalLM RemBertForCausalLM RobertaForCausalLM
    RobertaPreLayerNormForCausalLM RoFormerForCausalLM XLMRobertaForCausalLM XLMRobertaXLForCausalLM
"""
_ENCODER_DECODERS = """
    BartForConditionalGeneration BigBirdPegasusForConditionalGeneration BlenderbotForConditionalGeneration
    BlenderbotSmallForConditionalGeneration LongT5ForConditionalGeneration M2M100ForConditionalGeneration
    MarianMTModel MBartForConditionalGeneration MT5ForConditionalGeneration MvpForConditionalGeneration
    NllbMoeForConditionalGeneration PLBartForConditionalGeneration PegasusForConditionalGeneration
    PegasusXForConditionalGeneration SwitchTransformersForConditionalGeneration T5ForConditionalGeneration
    UMT5ForConditionalGeneration
"""
NO_CACHE_FOR_BEAMS = dict.fromkeys(("beams", "beam sampling"), "its cache cannot follow beams")
ROWS_STAY = dict.fromkeys(("beams", "beam sampling"), "transformers leaves the states of some families where they are")
BOTH_WAYS = {"assistant": "transformers reads the first drafts with the prompt, to which the model attends both ways"}

row("LlamaForCausalLM", all_modes=True)
row("FalconMambaForCausalLM", all_modes=True, own=ROWS_STAY, has_attentions=False)
row("MambaForCausalLM", all_modes=True, own=ROWS_STAY, has_attentions=False)
row("MiniMaxForCausalLM", all_modes=True, refused=NO_CACHE_FOR_BEAMS)
row("RwkvForCausalLM", all_modes=True, refused=NO_CACHE_FOR_BEAMS)
row("XLNetLMHeadModel", all_modes=True)
for name in _DECODERS.split():
    row(name)
for name in _DECODERS_OF_ENCODERS.split():
    row(name, is_decoder=True)
MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
    "mamba_n_groups": 1,
}
row("BambaForCausalLM", **MAMBA2, attn_layer_indices=[1])
row("CodeGenForCausalLM", rotary_dim=4)
row("GPTJForCausalLM", rotary_dim=4)
row("DeepseekV2ForCausalLM", num_experts_per_tok=2, n_group=1, topk_group=1, topk_method="greedy")
row("FalconH1ForCausalLM", all_modes=True, **MAMBA2, mamba_d_ssm=64)
row(
    "Gemma3nForCausalLM",
    all_modes=True,
    layer_types=["sliding_attention", "full_attention"],
    num_kv_shared_layers=0,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=64,
    activation_sparsity_pattern=[0.0, 0.0],
    laurel_rank=4,
)
row(
    "Gemma4ForCausalLM",
    layer_types=["sliding_attention", "full_attention"],
    num_kv_shared_layers=0,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=64,
)
row(
    "GlmMoeDsaForCausalLM",
    all_modes=True,
    own=ROWS_STAY,
    own_lately={"assistant": "transformers ends the text with a draft that the model would not choose"},
    index_head_dim=8,
    index_n_heads=2,
    index_topk=4,
    num_key_value_heads=4,
)
row("GPTNeoForCausalLM", attention_types=[[["global", "local"], 1]], window_size=8)
row("GraniteMoeHybridForCausalLM", **MAMBA2, layer_types=["mamba", "attention"])
row(
    "JambaForCausalLM",
    all_modes=True,
    attn_layer_period=2,
    attn_layer_offset=1,
    expert_layer_period=2,
    expert_layer_offset=1,
    use_mamba_kernels=False,
    mamba_dt_rank=4,
)
row(
    "Lfm2MoeForCausalLM",
    all_modes=True,
    own={"assistant": "transformers 5.6.1 leaves the states of rejected drafts in the cache"},
    layer_types=["conv", "full_attention"],
)
row("Mamba2ForCausalLM", has_attentions=False, own=ROWS_STAY, num_heads=8, head_dim=8, n_groups=1, chunk_size=4)
row(
    "NemotronHForCausalLM",
    mamba_num_heads=8,
    mamba_head_dim=8,
    n_groups=1,
    ssm_state_size=8,
    chunk_size=4,
    layers_block_type=["mamba", "attention"],
)
row("ProphetNetForCausalLM", ngram=2, is_decoder=True, add_cross_attention=False)
DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
row("Qwen3NextForCausalLM", all_modes=True, **DELTA)
row("Qwen3_5ForCausalLM", **DELTA)
row("Qwen3_5MoeForCausalLM", **DELTA)
row(
    "RecurrentGemmaForCausalLM",
    all_modes=True,
    own=ROWS_STAY,
    block_types=["recurrent", "attention"],
    attention_window_size=8,
)
row(
    "ReformerModelWithLMHead",
    all_modes=True,
    is_decoder=True,
    attn_layers=["local", "lsh"],
    axial_pos_shape=[8, 8],
    axial_pos_embds_dim=[16, 16],
    local_attn_chunk_length=4,
    lsh_attn_chunk_length=16,
    num_buckets=2,
    feed_forward_size=48,
)
row("xLSTMForCausalLM", all_modes=True, has_attentions=False, refused=NO_CACHE_FOR_BEAMS, hidden_size=128)
row("XmodForCausalLM", is_decoder=True, languages=["en_XX"], default_language="en_XX")
row(
    "ZambaForCausalLM",
    num_hidden_layers=3,
    layers_block_type=["mamba", "hybrid", "hybrid"],
    use_mamba_kernels=False,
    n_mamba_heads=2,
    mamba_dt_rank=4,
    attention_head_dim=16,
)
row(
    "Zamba2ForCausalLM",
    layers_block_type=["mamba", "hybrid"],
    n_mamba_heads=8,
    mamba_headdim=8,
    mamba_ngroups=1,
    mamba_d_state=8,
    num_mem_blocks=1,
    chunk_size=4,
    use_mem_rope=True,
)

for name in _ENCODER_DECODERS.split():
    row(name, decoder_start_token_id=1)
row("ProphetNetForConditionalGeneration", ngram=2, decoder_start_token_id=1)
row("FSMTForConditionalGeneration", langs=["a", "b"], src_vocab_size=64, tgt_vocab_size=64, decoder_start_token_id=1)
# Its logits with a cache differ from those without. With drafts transformers returns the latter.
row(
    "T5GemmaForConditionalGeneration",
    encoder={},
    decoder={},
    own={"lookup": "pygen's logits are those of its call without drafts"},
)
row(
    "WhisperForConditionalGeneration",
    features("input_features", 8, 64),
    all_modes=True,
    num_mel_bins=8,
    decoder_start_token_id=1,
    suppress_tokens=None,
    begin_suppress_tokens=None,
)
row(
    "Speech2TextForConditionalGeneration",
    features("input_features", 20, 8),
    input_feat_per_channel=8,
    conv_channels=8,
    decoder_start_token_id=1,
)
row("MoonshineForConditionalGeneration", features("input_values", 1600), decoder_start_token_id=1)
row(
    "SpeechT5ForSpeechToText",
    features("input_values", 400),
    conv_dim=[8, 8],
    conv_stride=[5, 2],
    conv_kernel=[10, 3],
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    num_feat_extract_layers=2,
    decoder_start_token_id=1,
)
row(
    "Pix2StructForConditionalGeneration",
    patches,
    text_config={"decoder_start_token_id": 1, "use_cache": True},
    vision_config={"patch_embed_hidden_size": 12, "patch_size": 2, "num_channels": 3},
)

VIT = {"image_size": 8, "patch_size": 4, "num_channels": 3}
row(
    "LlavaForConditionalGeneration",
    images(4, 3, 8, 8),
    all_modes=True,
    vision_config=VIT,
    text_config={},
    image_token_index=IMAGE,
    vision_feature_layer=-1,
)
row(
    "VipLlavaForConditionalGeneration",
    images(4, 3, 8, 8),
    vision_config=VIT,
    text_config={},
    image_token_index=IMAGE,
    vision_feature_layers=[-1, -2],
)
row(
    "PaliGemmaForConditionalGeneration",
    images(4, 3, 8, 8),
    own=BOTH_WAYS,
    vision_config={**VIT, "projection_dim": 32},
    text_config={},
    image_token_index=IMAGE,
    projection_dim=32,
    hidden_size=32,
)
row(
    "Gemma3ForConditionalGeneration",
    images(4, 3, 8, 8, token_type_ids=lambda ids: (ids == IMAGE).long()),
    vision_config=VIT,
    text_config={"layer_types": ["sliding_attention", "full_attention"]},
    image_token_index=IMAGE,
    mm_tokens_per_image=4,
)
row(
    "AyaVisionForConditionalGeneration",
    images(1, 3, 8, 8),
    vision_config=VIT,
    text_config={},
    image_token_index=IMAGE,
    downsample_factor=2,
)
row(
    "InternVLForConditionalGeneration",
    images(1, 3, 8, 8),
    vision_config={**VIT, "image_size": [8, 8], "patch_size": [4, 4]},
    text_config={},
    image_token_id=IMAGE,
)
row(
    "Idefics2ForConditionalGeneration",
    images(3, 1, 3, 8, 8),
    vision_config=VIT,
    text_config={},
    image_token_id=IMAGE,
    perceiver_config={
        "resampler_n_latents": 3,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 8,
        "num_key_value_heads": 1,
    },
)
row(
    "Idefics3ForConditionalGeneration",
    images(1, 1, 3, 8, 8),
    vision_config=VIT,
    text_config={},
    image_token_id=IMAGE,
    scale_factor=2,
)
row(
    "SmolVLMForConditionalGeneration",
    images(1, 1, 3, 8, 8),
    vision_config=VIT,
    text_config={},
    image_token_id=IMAGE,
    scale_factor=2,
)
row("NemotronForCausalLM", num_key_value_heads=2)
row("LongcatFlashForCausalLM", ffn_hidden_size=48, expert_ffn_hidden_size=16)
row(
    "Qwen2VLForConditionalGeneration",
    qwen_images,
    vision_config={"embed_dim": 32, "hidden_size": 32, "patch_size": 2},
    text_config={"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
    image_token_id=IMAGE,
    video_token_id=61,
    vision_start_token_id=58,
    vision_end_token_id=59,
)
row(
    "IdeficsForVisionText2Text",
    images(0, 1, 3, 8, 8, image_attention_mask=lambda ids: torch.ones(*ids.shape, 1)),
    all_modes=True,
    vision_config={"embed_dim": 32, "image_size": 8, "patch_size": 4},
    additional_vocab_size=2,
    cross_layer_interval=1,
    alpha_initializer="ones",
)
row(
    "Kosmos2ForConditionalGeneration",
    images(3, 3, 8, 8, image_embeds_position_mask=lambda ids: (ids == IMAGE).long()),
    all_modes=True,
    vision_config={**VIT},
    text_config={"embed_dim": 32, "layers": 2, "attention_heads": 4, "ffn_dim": 48},
    latent_query_num=3,
)
row(
    "MllamaForConditionalGeneration",
    images(
        1,
        1,
        1,
        3,
        8,
        8,
        aspect_ratio_ids=lambda ids: torch.ones(len(ids), 1, dtype=torch.int64),
        aspect_ratio_mask=lambda ids: torch.ones(len(ids), 1, 1, dtype=torch.int64),
        cross_attention_mask=lambda ids: torch.ones(*ids.shape, 1, 1, dtype=torch.int64),
    ),
    vision_config={
        **VIT,
        "max_num_tiles": 1,
        "num_global_layers": 1,
        "attention_heads": 4,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1]],
    },
    text_config={"cross_attention_layers": [1]},
    image_token_index=IMAGE,
)
