"""Convert a Llama-family GGUF file to a Hugging Face folder with bf16 safetensors: python convert_gguf.py IN.gguf OUT/

For small models that ship as GGUF; the whole model is held in memory. transformers drops the digit-splitting
pre-tokenizer that SmolLM2 was trained with, so it is put back.
"""

import sys
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def convert(source: Path, target: Path) -> None:
    """Write `target` from `source`. Raises what transformers raises if the architecture is not Llama's."""
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(True), ByteLevel(False, use_regex=True)])
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    # GGUF stores 1e-5 as float32; the difference is noise
    config["rms_norm_eps"] = round(config["rms_norm_eps"], 8)
    # a fresh model: the loaded one carries a quantizer that refuses to be saved
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
