"""TRL's SFTTrainer on tokens of ours: nothing is tokenized again, and what is learned is what `postmill show` shows.

usage: python examples/python/trl_sft.py TOKENS MODEL OUTPUT [STEPS]
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import postmill


def main(tokens: str, model: str, output: str, steps: int = 10) -> SFTTrainer:
    """Train every weight for a few steps."""
    config = SFTConfig(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=1,
        logging_steps=1,
        report_to="none",
        max_length=None,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    rows = postmill.open(tokens).datasets()
    trainer = SFTTrainer(net, config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
