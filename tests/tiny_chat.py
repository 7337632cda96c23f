"""A random model over bytes with a chat template, and an adapter for it: what a server or a talk needs."""

from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if tools %}[{% for t in tools %}{{ t.function.name }} {% endfor %}]{% endif %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def write_chat_model(path: Path, *, longest: int = 256, template: str = TEMPLATE, **config: Any) -> Path:
    """A Llama with 256 byte tokens; id 7 ends answers."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template).save_pretrained(path)
    torch.manual_seed(0)
    settings = {
        "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": longest, "eos_token_id": 7,
        "bos_token_id": None, "initializer_range": 0.2,
    }  # fmt: skip
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**(settings | config))).save_pretrained(path)
    return path
