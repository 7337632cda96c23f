"""Models of many families with pictures, of a few ten thousand random weights, and packed rows for them."""

import json
from pathlib import Path
from typing import Any

import media_models

MODELS = (
    "qwen2_5_vl",
    "qwen3_vl",
    "llava",
    "llava_next",
    "llava_onevision",
    "internvl",
    "idefics3",
    "smolvlm",
    "gemma3",
    "paligemma",
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
        vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
        return t.Qwen2_5_VLConfig(text_config=_text(size, rope_parameters=rope), vision_config=vision, **ids)
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
