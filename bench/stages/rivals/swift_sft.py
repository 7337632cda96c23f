"""ms-swift's SFT with loss_scale on given bins: `PYTHON swift_sft.py MODEL BINS OUT LR`. Its own environment.

Its command refuses to pack without flash-attn, which needs a GPU. Its collator and trainer can: they are given bins as
its PackingDataset gives them, and transformers keeps rows apart by their positions.
"""

import sys
from typing import Any

from recorder import Recorder, read_bins
from swift.pipelines.train.sft import SwiftSft


class Bins:
    """What PackingDataset is to the trainer: a list of encoded rows an item."""

    def __init__(self, path: str) -> None:
        self.bins = [
            [
                {
                    "input_ids": row["input_ids"],
                    "labels": row["labels"],
                    "loss_scale": row["weights"],
                    "length": len(row["input_ids"]),
                }
                for row in rows
            ]
            for rows in read_bins(path)
        ]

    def __len__(self) -> int:
        return len(self.bins)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return self.bins[index]


class GivenBins(SwiftSft):
    """The sft command with another source of rows, and with a record."""

    bins: Bins
    out: str

    def _prepare_dataset(self) -> list[Any]:
        self.template.packing = self.template.padding_free = True
        return [self.bins, None]

    def train(self, trainer: Any) -> Any:
        recorder = Recorder()
        recorder.watch(trainer)
        trainer.train()
        trainer.save_model(self.out)
        recorder.write(f"{self.out}/record.json")


def main(model: str, bins: str, out: str, lr: str) -> None:
    given = Bins(bins)
    options = {
        "model": model, "model_type": "qwen3", "template": "qwen3", "tuner_type": "full", "torch_dtype": "float32",
        "dataset": "unused", "attn_impl": "sdpa", "loss_scale": "hermes", "output_dir": out,
        "add_version": "false", "max_steps": str(len(given)), "per_device_train_batch_size": "1",
        "gradient_accumulation_steps": "1", "learning_rate": lr, "lr_scheduler_type": "constant", "warmup_ratio": "0",
        "weight_decay": "0.1", "adam_beta2": "0.95", "max_grad_norm": "1.0", "gradient_checkpointing": "false",
        "train_dataloader_shuffle": "false", "dataset_shuffle": "false", "dataloader_num_workers": "0",
        "split_dataset_ratio": "0", "logging_steps": "1", "save_strategy": "no", "report_to": "none",
    }  # fmt: skip
    sft = GivenBins([word for name, value in options.items() for word in (f"--{name}", value)])
    sft.bins, sft.out = given, out
    sft.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
