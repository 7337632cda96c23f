"""What does the gradient of a GRPO step cost, from the same samples with the same model: against TRL's GRPOTrainer?

Log-probs, loss and backward pass of 2 prompts with 8 answers each, all of one length, so that TRL pads nothing; full
training in float32 of a random Llama with the proportions of SmolLM2-135M (body to head 3 to 1) at a seventeenth of its
size. TRL's trainer is built as anybody builds it and its `compute_loss` is called; ours runs what a step of `train`
runs. It computes a prompt once an answer; so do we with `--no-shared-prefixes`. Gradients have to agree before the
clock starts. The clock is the process's CPU time on one thread, which other programs on the machine hardly change;
generation, rewards and the optimizer's update, which are the same for everyone, are not in it.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, Rival

PROMPTS, SAMPLES, VOCABULARY = 2, 8, 8192
FULL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4}
TOY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


class Samples:
    """Made-up answers and their advantages."""

    def __init__(self, prompt_length: int, answer_length: int) -> None:
        rng = np.random.default_rng(0)
        self.prompts = np.repeat(rng.integers(3, VOCABULARY, (PROMPTS, prompt_length)), SAMPLES, axis=0)
        self.answers = rng.integers(3, VOCABULARY, (PROMPTS * SAMPLES, answer_length))
        rewards = rng.random((PROMPTS, SAMPLES))
        self.advantages = (rewards - rewards.mean(1, keepdims=True)).ravel()


def write_model(folder: Path, size: dict[str, int]) -> None:
    import torch
    from tiny_tokenizer import write_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=2, pad_token_id=0, **size
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)


def ours(folder: Path, samples: Samples, *, shares: bool) -> tuple[Any, Callable[[], None]]:
    """The model, and what adds the gradient of the step to it."""
    import torch

    from postmill.io.packed import Bin
    from postmill.stages.shared import attention, hf
    from postmill.stages.shared.batch import collate
    from postmill.stages.shared.forward import Forward
    from postmill.stages.shared.prefixes import share
    from postmill.stages.train.objectives.rl_options import PRESETS

    net = hf.load_model(folder, "float32", attention=attention.choose("per-row", torch.device("cpu"), torch.float32))
    forward = Forward(net, compute_dtype=torch.float32, backend="auto").train()
    if shares:
        assert forward.share_prefixes()
    rows = np.concatenate([samples.prompts, samples.answers], axis=1).astype(np.int32)
    count, length = rows.shape
    scored = np.arange(length) >= samples.prompts.shape[1]
    laid = Bin(
        rows.ravel(),
        np.tile(np.arange(length, dtype=np.int32), count),
        np.arange(count + 1, dtype=np.int32) * length,
        np.tile(scored.astype(np.float32), count),
        np.arange(count),
    )
    columns = {"advantage": samples.advantages, "engine_logp": np.full(rows.size, np.nan)}
    norms = {"live": float(count), "sampled": float(samples.answers.size)}
    objective = PRESETS["grpo"].build()

    def step() -> None:
        batch = collate([laid], columns)
        if shares:
            batch = batch._replace(shared=share(batch.input_ids_1T[0].numpy(), batch.row_starts))
        objective.loss(forward(batch, objective.ask(batch, norms)), batch, norms, {}).total.backward()

    return net, step


def theirs(folder: Path, samples: Samples) -> tuple[Any, Callable[[], None]]:
    """The same of TRL."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(samples.prompts),
        num_generations=SAMPLES,
        loss_type="grpo",
        beta=0.0,
        report_to="none",
        use_cpu=True,
    )
    trainer = GRPOTrainer(
        str(folder),
        reward_funcs=lambda **_: [0.0],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "x"}]),
        processing_class=AutoTokenizer.from_pretrained(folder, pad_token="<|im_end|>"),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = {
        "prompt_ids": torch.from_numpy(samples.prompts),
        "prompt_mask": torch.ones(samples.prompts.shape, dtype=torch.long),
        "completion_ids": torch.from_numpy(samples.answers),
        "completion_mask": torch.ones(samples.answers.shape, dtype=torch.long),
        "advantages": torch.from_numpy(samples.advantages).float(),
        "num_items_in_batch": torch.tensor(samples.answers.size),
    }

    def step() -> None:
        trainer.compute_loss(trainer.model, inputs).backward()

    return trainer.model, step


class Clocked:
    """A way to make the gradient, and the CPU seconds of its last time."""

    def __init__(self, net: Any, step: Callable[[], None]) -> None:
        self.net, self._step, self.seconds = net, step, 0.0

    def run(self) -> None:
        self.net.zero_grad()
        started = time.process_time()
        self._step()
        self.seconds = time.process_time() - started

    def gradient(self) -> Any:
        import torch

        self.run()
        found = {name: p.grad.flatten() for name, p in self.net.named_parameters() if p.grad is not None}
        return torch.cat([found[name] for name in sorted(found)])


def agree(ways: dict[str, Clocked]) -> dict[str, Any]:
    """Raises unless all gradients are equal to 1e-5 of the largest entry."""
    gradients = {name: way.gradient() for name, way in ways.items()}
    first = gradients["postmill"]
    found: dict[str, Any] = {"threads": 1}
    for name, other in gradients.items():
        worst = float((other - first).abs().max() / first.abs().max())
        assert worst < 1e-5, f"{name}: gradients differ by {worst:.2e}"
        found[f"largest difference of gradients from {name}"] = float(f"{worst:.2e}")
    return found


def cases(smoke: bool) -> Iterator[Case]:
    import torch

    torch.set_num_threads(1)
    name, size = ("toy", TOY) if smoke else ("8M", FULL)
    for prompt_length, answer_length in [(24, 8)] if smoke else [(256, 32), (128, 128)]:
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), size)
            samples = Samples(prompt_length, answer_length)
            ways = {
                "postmill": Clocked(*ours(Path(folder), samples, shares=True)),
                "postmill --no-shared-prefixes": Clocked(*ours(Path(folder), samples, shares=False)),
                "TRL": Clocked(*theirs(Path(folder), samples)),
            }
            yield Case(
                f"grpo {name}, prompts of {prompt_length}, answers of {answer_length}",
                f"gradient of a GRPO step, {name} Llama, float32, {SAMPLES} answers a prompt, CPU time of one thread",
                "samples",
                [
                    Rival(who, way.run, float(len(samples.prompts)), seconds=functools.partial(getattr, way, "seconds"))
                    for who, way in ways.items()
                ],
                check=functools.partial(agree, ways),
                repeats=1 if smoke else 3,
                packages=("torch", "transformers", "trl"),
            )
