"""TRL's SFTTrainer on given bins: `PYTHON trl_sft.py MODEL BINS OUT LR`. Its own environment: see bench_train.py.

The bins go in as TRL's own packing would make them (input_ids, labels, seq_lengths). It has no token weights.
"""

import sys

from recorder import Recorder, read_bins


def main(model: str, bins: str, out: str, lr: str) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": [i for row in rows for i in row["input_ids"]],
            "labels": [i for row in rows for i in row["labels"]],
            "seq_lengths": [len(row["input_ids"]) for row in rows],
        }
        for rows in read_bins(bins)
    ]
    config = SFTConfig(
        output_dir=out,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        padding_free=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        per_device_train_batch_size=1,
        max_steps=len(rows),
        learning_rate=float(lr),
        lr_scheduler_type="constant",
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
    )
    trainer = SFTTrainer(
        model, args=config, train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(model)
    )
    recorder = Recorder()
    recorder.watch(trainer)
    trainer.train()
    trainer.save_model(out)
    recorder.write(f"{out}/record.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
