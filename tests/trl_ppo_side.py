"""TRL's PPOTrainer (experimental until TRL 1.12) on a batch that is given: run by a process with that TRL on its path.

    PYTHONPATH=TRL python tests/trl_ppo_side.py FOLDER

FOLDER has `policy`, `ref`, `value` and `reward`, models; `batch.npz`: prompts [rows, prompt], padded on the left with
`pad`, answers [rows, answer]; and `options.json`. Writes `trl.npz`: values, scores, advantages and returns of the
batch; `policy-after`, the policy after all updates, and `value-after`, the critic after the first.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    options: dict[str, Any] = json.loads((folder / "options.json").read_text())
    batch = np.load(folder / "batch.npz")
    prompts, answers = torch.from_numpy(batch["prompts"]).long(), torch.from_numpy(batch["answers"]).long()
    seen: dict[str, Any] = {}

    def given(model: Any, queries: Any, size: int, pad: int, config: Any) -> tuple[Any, Any]:
        """The stored answers in the place of new ones, with what the policy says of them."""
        order = [(prompts == query).all(1).nonzero()[0, 0].item() for query in queries]
        assert sorted(order) == list(range(len(prompts)))
        seen["order"] = np.array(order)
        whole = torch.cat([queries, answers[order]], dim=1)
        logits = ppo_trainer.forward(model, whole, pad).logits[:, queries.shape[1] - 1 : -1]
        return whole, logits / (config.temperature + 1e-7)

    def kept(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            made = function(*args, **options)
            seen.setdefault(name, []).append((args, made))
            return made

        return call

    ppo_trainer.batch_generation = given
    ppo_trainer.get_reward = kept("get_reward", ppo_trainer.get_reward)
    ppo_trainer.masked_whiten = kept("whiten", ppo_trainer.masked_whiten)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == options["pad"]
    policy, ref = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in ("policy", "ref")
    )
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(folder / name, num_labels=1, dtype=torch.float32)
        for name in ("value", "reward")
    )
    rates = [
        {"params": list(policy.parameters()), "lr": options["lr"]},
        {"params": list(value.parameters()), "lr": options["critic_lr"]},
    ]
    optimizer = torch.optim.SGD(rates)

    def save_once(*_: object) -> None:
        if not (folder / "value-after").exists():
            value.save_pretrained(folder / "value-after")

    optimizer.register_step_post_hook(save_once)
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=len(prompts),
        num_mini_batches=1,
        num_ppo_epochs=options["epochs"],
        total_episodes=len(prompts),
        response_length=answers.shape[1],
        temperature=options["temperature"],
        kl_coef=options["kl_coef"],
        kl_estimator="k1",
        gamma=options["gamma"],
        lam=options["lam"],
        vf_coef=options["vf_coef"],
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=ref,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list(
            [{"input_ids": [int(t) for t in row if t != options["pad"]]} for row in prompts]
        ),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
    )
    trainer.train()
    (_, (full, _, _)), (_, (_, scores, _)) = seen["get_reward"]
    ((raw, _), white) = seen["whiten"][0]
    values = full[:, prompts.shape[1] - 1 : -1, 0]
    back = np.argsort(seen["order"])
    found = {"values": values, "scores": scores, "advantages": white, "returns": raw + values}
    np.savez(folder / "trl.npz", **{name: tensor.detach().numpy()[back] for name, tensor in found.items()})
    policy.save_pretrained(folder / "policy-after")


if __name__ == "__main__":
    main()
