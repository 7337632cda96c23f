"""transformers' Trainer on packed bins of ours.

usage: python examples/python/hf_trainer.py PACKED MODEL OUTPUT [STEPS]
"""

import sys

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import postmill


def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Bins end to end as one row; `position_ids` tell the model where rows begin."""
    names = ("input_ids", "labels", "position_ids")
    return {name: torch.cat([item[name] for item in items])[None] for name in names}


def main(packed: str, model: str, output: str, steps: int = 10) -> Trainer:
    """Train every weight for a few steps."""
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=1,
        logging_steps=1,
        report_to="none",
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
    )
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    net.config.use_cache = False  # with a cache, transformers does not look where rows begin, and they see each other
    bins = postmill.open(packed).dataset()
    trainer = Trainer(net, arguments, train_dataset=bins, data_collator=collate)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
