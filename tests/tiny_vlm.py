"""Models of many families with pictures, of a few ten thousand random weights, and packed rows for them."""

import json
from pathlib import Path
from typing import Any

import media_models

MODELS = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen2_5_omni",
    "glm4v",
    "llava",
    "llava_next",
    "llava_onevision",
    "internvl",
    "idefics3",
    "smolvlm",
    "gemma3",
    "paligemma",
    "pixtral",
    "llama4",
)
_SMALL_IMAGES: dict[str, dict[str, Any]] = {
    "internvl": {"size": {"height": 56, "width": 56}, "max_patches": 4},
    "gemma3": {"size": {"height": 56, "width": 56}},
    "idefics3": {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
    "smolvlm": {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
    "llava_next": {
        "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56},
        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
    },
    "llava_onevision": {
        "size": {"height": 56, "width": 56},
        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
    },
    "pixtral": {"size": {"longest_edge": 112}},
    "llama4": {"size": {"height": 56, "width": 56}, "max_patches": 4},
}


def _text(vocab_size: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "pad_token_id": None,
    } | more


def config(name: str, processor: Any) -> Any:
    """The config of a tiny model whose pictures `processor` makes."""
    import transformers as t

    tok = processor.tokenizer
    number = tok.convert_tokens_to_ids
    size = len(tok)
    vit = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 14,
    }
    if name == "qwen2_5_omni":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        text = _text(size, rope_parameters=rope)
        text.pop("head_dim")
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}
        audio = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
        return t.Qwen2_5OmniThinkerConfig(
            text_config=text,
            vision_config=vision | {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
            audio_config=audio | {"num_mel_bins": 16, "max_source_positions": 100, "n_window": 20, "output_dim": 32},
            image_token_index=number("<|IMAGE|>"),
            video_token_index=number("<|VIDEO|>"),
            audio_token_index=number("<|AUDIO|>"),
            audio_start_token_id=number("<|audio_bos|>"),
            audio_end_token_id=number("<|audio_eos|>"),
            vision_start_token_id=number("<|vision_bos|>"),
        )
    if name.startswith("qwen"):
        ids = {
            "image_token_id": number("<|image_pad|>"),
            "video_token_id": number("<|video_pad|>"),
            "vision_start_token_id": number("<|vision_start|>"),
            "vision_end_token_id": number("<|vision_end|>"),
        }
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}
        if name == "qwen3_vl":
            rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
            vision |= {"patch_size": 16, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
            return t.Qwen3VLConfig(text_config=_text(size, rope_parameters=rope), vision_config=vision, **ids)
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        if name == "qwen2_vl":
            vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 4, "patch_size": 14}
            return t.Qwen2VLConfig(text_config=_text(size, rope_parameters=rope), vision_config=vision, **ids)
        vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
        return t.Qwen2_5_VLConfig(text_config=_text(size, rope_parameters=rope), vision_config=vision, **ids)
    if name == "glm4v":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}
        names = {"image_token": "image", "video_token": "video"}
        names |= {"image_start_token": "begin_of_image", "image_end_token": "end_of_image"}
        return t.Glm4vConfig(
            text_config=_text(size, rope_parameters=rope),
            vision_config=vision | {"patch_size": 14, "image_size": 84},
            **{f"{key}_id": number(f"<|{text}|>") for key, text in names.items()},
        )
    if name == "pixtral":
        return t.Mistral3Config(
            text_config=_text(size, model_type="mistral", sliding_window=None),
            vision_config=vit | {"model_type": "pixtral", "image_size": 112, "head_dim": 8},
            image_token_index=number("[IMG]"),
            vision_feature_layer=-1,
        )
    if name == "llama4":
        wide = {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
        sparse = {"intermediate_size_mlp": 48, "num_local_experts": 2, "no_rope_layers": [1, 0]}
        return t.Llama4Config(
            text_config=_text(size, **sparse, bos_token_id=None, eos_token_id=None),
            vision_config=vit | wide | {"image_size": 56, "intermediate_size": 128},
            image_token_index=number("<|patch|>"),
            boi_token_index=number("<|image_start|>"),
            eoi_token_index=number("<|image_end|>"),
        )
    if name == "gemma3":
        return t.Gemma3Config(
            text_config=_text(size, sliding_window=24, layer_types=["sliding_attention", "full_attention"]),
            vision_config=vit | {"model_type": "siglip_vision_model", "image_size": 56, "vision_use_head": False},
            mm_tokens_per_image=16,
            boi_token_index=number("<start_of_image>"),
            eoi_token_index=number("<end_of_image>"),
            image_token_index=number("<image_soft_token>"),
        )
    if name == "paligemma":
        return t.PaliGemmaConfig(
            text_config=_text(size, model_type="gemma"),
            vision_config=vit | {"model_type": "siglip_vision_model", "image_size": 56, "vision_use_head": False},
            projection_dim=32,
            image_token_index=number("<image>"),
        )
    if name in ("idefics3", "smolvlm"):
        kind = t.Idefics3Config if name == "idefics3" else t.SmolVLMConfig
        return kind(
            text_config=_text(size, model_type="llama"),
            vision_config=vit | {"image_size": 56},
            scale_factor=2,
            image_token_id=number("<image>"),
        )
    if name == "internvl":
        return t.InternVLConfig(
            text_config=_text(size, model_type="qwen2"),
            vision_config=vit | {"patch_size": [14, 14], "image_size": [56, 56]},
            image_token_id=number("<IMG_CONTEXT>"),
            image_seq_length=4,
        )
    kind = {"llava": t.LlavaConfig, "llava_next": t.LlavaNextConfig, "llava_onevision": t.LlavaOnevisionConfig}[name]
    pins = [[56, 112], [112, 56], [112, 112]]
    more: dict[str, Any] = {} if name == "llava" else {"image_grid_pinpoints": pins}
    side = 84 if name == "llava" else 56
    tower = "siglip_vision_model" if name == "llava_onevision" else "clip_vision_model"
    extra = {"vision_use_head": False} if name == "llava_onevision" else {"projection_dim": 32}
    return kind(
        text_config=_text(size, model_type="llama"),
        vision_config=vit | extra | {"model_type": tower, "image_size": side},
        image_token_index=number("<image>"),
        vision_feature_select_strategy="full" if name == "llava_onevision" else "default",
        vision_feature_layer=-1,
        **more,
    )


def write_model(folder: Path, name: str, seed: int = 0) -> Any:
    """A model folder with its processor; returns the processor."""
    import torch
    from transformers import AutoModelForMultimodalLM

    made = media_models.processor(name, **_SMALL_IMAGES.get(name, {}))
    if name == "internvl":
        made.image_seq_length = 4
    if name in ("idefics3", "smolvlm"):
        made.image_seq_len = 4
    if name == "llava_onevision":
        made.num_image_tokens = 16
    folder.mkdir(parents=True, exist_ok=True)
    made.save_pretrained(folder)
    torch.manual_seed(seed)
    model = AutoModelForMultimodalLM.from_config(config(name, made)).float()
    if name == "gemma3":  # whose projector starts as zeros
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    model.save_pretrained(folder)
    return made


def write_rows(folder: Path, number: int = 6, pictures: int = 2) -> Path:
    """Rows of questions about pictures, one or more a row, some of text alone."""
    rows = []
    for index in range(number):
        count = 0 if index % 4 == 3 else 1 + index % pictures
        files = []
        for picture in range(count):
            name = f"p{index}-{picture}.png"
            media_models.save_picture(folder / name, 40 + 13 * index, 60 + 31 * picture, seed=index)
            files.append(name)
        text = "".join(f"<image>what is {'in' * picture} it?" for picture in range(count)) or "hello there"
        answer = {"role": "assistant", "content": f"the answer is {index}"}
        row: dict[str, Any] = {"messages": [{"role": "user", "content": text}, answer]}
        if files:
            row["images"] = files
        rows.append(row)
    return media_models.write_lines(folder / "rows.jsonl", rows)


def write_packed(folder: Path, model: Path, data: Path, row_tokens: int = 1024) -> Path:
    """`data` tokenized for `model` and packed, at `folder`."""
    from postmill.stages.pack.config import STAGE as PACK
    from postmill.stages.pack.config import Pack
    from postmill.stages.runner import Options, run_stage
    from postmill.stages.tokenize.config import STAGE as TOKENIZE
    from postmill.stages.tokenize.config import Tokenize

    tokens = folder.parent / f"{folder.name}-tokens"
    run_stage(TOKENIZE, Tokenize(), {"data": [str(data)], "model": [str(model)]}, tokens, Options())
    run_stage(PACK, Pack(row_tokens=row_tokens), {"tokens": [str(tokens)]}, folder, Options())
    return folder


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())
