"""Processors of many families, built from their parameters alone, and pictures to give them."""

import io
import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' or 'image' in c %}OPEN{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VIDEO = "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
USER = (
    "{% for m in messages %}{{ m['role'] | upper }}:{% if m['content'] is string %} {{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %} {{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}<|im_end|>{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
PARTS = (
    "{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}{{ ':' }}"
    "{% else %}{{ ': ' }}{% endif %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% elif c['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
FAMILIES = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen2_5_omni",
    "glm4v",
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "gemma3",
    "idefics3",
    "smolvlm",
    "paligemma",
    "pixtral",
    "llama4",
)


def tokenizer(extra: dict[str, str], more: tuple[str, ...] = ()) -> Any:
    """A byte-level tokenizer of a few hundred ids that joins what stands around pictures: spaces, newlines, words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    merges = [("Ċ", "Ċ"), ("ĊĊ", "ĊĊ"), ("Ġ", "Ġ"), (".", "Ċ"), ("h", "e"), ("i", "n"), (":", "Ċ"), ("Ġ", "he")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    own = Tokenizer(models.BPE(vocabulary, merges))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>", *extra.values(), *more]
    own.add_special_tokens([AddedToken(text, special=True) for text in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        eos_token="<|im_end|>",
        bos_token="<bos>",
        pad_token="<|endoftext|>",
        extra_special_tokens=extra,
    )


def processor(name: str, **image: Any) -> Any:
    """The processor of a family, small where that changes nothing but time."""
    import transformers as t

    image_token = {"image_token": "<image>"}
    if name == "qwen2_5_omni":
        marks = ("vision_bos", "vision_eos", "audio_bos", "audio_eos")
        names = {f"{mark}_token": f"<|{mark}|>" for mark in marks}
        tok = tokenizer(names | {"image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "audio_token": "<|AUDIO|>"})
        sound = "{% elif c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ c['text']"
        template = CHATML.replace("{% else %}{{ c['text']", sound)
        template = template.replace("OPEN", "<|vision_bos|><|IMAGE|><|vision_eos|>")
        hears = t.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
        parts = t.Qwen2VLImageProcessor(**image), t.Qwen2VLVideoProcessor(), hears
        return t.Qwen2_5OmniProcessor(*parts, tok, chat_template=template)
    if name.startswith("qwen"):
        tok = tokenizer(
            {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}, ("<|vision_start|>", "<|vision_end|>")
        )
        template = CHATML.replace("OPEN", "<|vision_start|><|image_pad|><|vision_end|>")
        template = template.replace("{% else %}{{ c['text']", f"{VIDEO}{{% else %}}{{{{ c['text']")
        if name == "qwen3_vl":
            parts = t.Qwen2VLImageProcessor(patch_size=16, **image), t.Qwen3VLVideoProcessor()
            return t.Qwen3VLProcessor(parts[0], tok, parts[1], chat_template=template)
        kind = t.Qwen2VLProcessor if name == "qwen2_vl" else t.Qwen2_5_VLProcessor
        return kind(t.Qwen2VLImageProcessor(**image), tok, t.Qwen2VLVideoProcessor(), chat_template=template)
    if name == "glm4v":
        tok = tokenizer(
            {"image_token": "<|image|>", "video_token": "<|video|>"}, ("<|begin_of_image|>", "<|end_of_image|>")
        )
        template = CHATML.replace("OPEN", "<|begin_of_image|><|image|><|end_of_image|>")
        return t.Glm4vProcessor(t.Glm4vImageProcessor(**image), tok, t.Glm4vVideoProcessor(), chat_template=template)
    if name == "internvl":
        names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
        tok = tokenizer(names | {"video_token": "<video>"})
        images = t.GotOcr2ImageProcessor(
            **({"size": {"height": 448, "width": 448}, "crop_to_patches": True, "max_patches": 12} | image)
        )
        template = CHATML.replace("OPEN", "<IMG_CONTEXT>\n")
        return t.InternVLProcessor(
            images, tok, t.InternVLVideoProcessor(), image_seq_length=256, chat_template=template
        )
    if name == "gemma3":
        names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
        template = CHATML.replace("OPEN", "<start_of_image>")
        images = t.Gemma3ImageProcessor(**({"size": {"height": 56, "width": 56}} | image))
        return t.Gemma3Processor(images, tokenizer(names), chat_template=template, image_seq_length=16)
    if name in ("idefics3", "smolvlm"):
        rows = tuple(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))
        tok = tokenizer(
            image_token
            | {
                "fake_image_token": "<fake_token_around_image>",
                "global_image_token": "<global-img>",
                "end_of_utterance_token": "<end_of_utterance>",
            },
            rows,
        )
        if name == "idefics3":
            images = t.Idefics3ImageProcessor(
                **({"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}} | image)
            )
            return t.Idefics3Processor(images, tok, image_seq_len=169, chat_template=PARTS)
        images = t.SmolVLMImageProcessor(
            **({"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}} | image)
        )
        return t.SmolVLMProcessor(images, tok, t.SmolVLMVideoProcessor(), image_seq_len=64, chat_template=PARTS)
    if name == "paligemma":
        images = t.SiglipImageProcessor(size={"height": 56, "width": 56}, **image)
        images.image_seq_length = 16
        return t.PaliGemmaProcessor(images, tokenizer(image_token))
    if name == "pixtral":
        names = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
        own = {"patch_size": 14, "spatial_merge_size": 2, "chat_template": CHATML.replace("OPEN", "[IMG]")}
        images = t.PixtralImageProcessor(**({"patch_size": 14, "size": {"longest_edge": 1540}} | image))
        return t.PixtralProcessor(images, tokenizer(names), **own)
    if name == "llama4":
        marks = ("image_start", "image_end", "patch", "tile_x_separator", "tile_y_separator")
        tok = tokenizer({"image_token": "<|image|>"}, tuple(f"<|{mark}|>" for mark in marks))
        template = CHATML.replace("OPEN", "<|image|>")
        return t.Llama4Processor(t.Llama4ImageProcessor(**image), tok, patch_size=14, chat_template=template)
    if name == "llava":
        images = t.CLIPImageProcessor(size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84}, **image)
        return t.LlavaProcessor(
            images,
            tokenizer(image_token),
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=USER,
        )
    if name == "llava_next":
        sizes = {
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        }
        images = t.LlavaNextImageProcessor(**(sizes | image))
        return t.LlavaNextProcessor(
            images,
            tokenizer(image_token),
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=USER,
        )
    assert name == "llava_onevision"
    sizes = {
        "size": {"height": 384, "width": 384},
        "image_grid_pinpoints": [[a * 384, b * 384] for a in range(1, 7) for b in range(1, 7)],
    }
    images = t.LlavaOnevisionImageProcessor(**(sizes | image))
    return t.LlavaOnevisionProcessor(
        images,
        tokenizer(image_token | {"video_token": "<video>"}),
        t.LlavaOnevisionVideoProcessor(),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        chat_template=USER,
    )


def save_processor(folder: Path, name: str, **image: Any) -> Any:
    """A folder with the processor of a family; returns the processor."""
    made = processor(name, **image)
    made.save_pretrained(folder)
    return made


def picture(width: int, height: int, seed: int = 0) -> Any:
    """A picture of coloured noise in large squares, for it to be small as a file."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed + 1000 * width + height)
    small = rng.integers(0, 256, (max(1, min(8, height)), max(1, min(8, width)), 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)


def save_picture(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """A picture as a file, in the form its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(width, height, seed).save(path)
    return path


def picture_bytes(width: int, height: int, form: str = "PNG") -> bytes:
    """A picture as the bytes of a file."""
    out = io.BytesIO()
    picture(width, height).save(out, form)
    return out.getvalue()


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
