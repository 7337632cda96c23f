"""GRPO as TRL and ms-swift have it, whose options are nearly the same, as a loop of ours."""

from collections.abc import Mapping
from typing import Any

from postmill.cli.coming_from.rule import Rule, carry, missing, needless, number, whole, yes

TOOLS = ("ms-swift", "trl")
"""Whose options these are."""
_SHARES = {
    "grpo": "seq_mean_token_mean",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "cispo": "token_mean",
    "sapo": "seq_mean_token_mean",
    "luspo": "seq_mean_token_sum",
    "dr_grpo": "seq_mean_token_sum_norm",
}
_DEFAULT_LOSS = {"trl": "dapo", "ms-swift": "grpo"}
_DEFAULT_KL = {"trl": 0.0, "ms-swift": 0.04}


def _prompts(_: Any, config: Mapping[str, Any]) -> int:
    """Questions of a round: the answers of a generation batch, over the answers of a question."""
    batch = number(config.get("generation_batch_size"))
    if not batch:
        steps = config.get("steps_per_generation", config.get("gradient_accumulation_steps", 1))
        batch = (number(config.get("per_device_train_batch_size", 8)) or 1) * (number(steps) or 1)
    return max(1, int(batch) // int(number(config.get("num_generations", 8)) or 8))


def _rounds(value: Any, _: Mapping[str, Any]) -> int | None:
    found = number(value)
    return int(found) if found and found >= 1 else None


RULES: list[Rule] = [
    carry(
        "per_device_train_batch_size generation_batch_size",
        "loop.prompts",
        "answers of one process, times accumulation, over num_generations",
        convert=_prompts,
    ),
    needless("gradient_accumulation_steps steps_per_generation", "in loop.prompts: a round is one update"),
    carry("max_steps", "loop.rounds", convert=whole),
    missing("num_train_epochs", "how often questions are asked follows from [loop] rounds and prompts"),
    carry("num_iterations", "train.epochs", convert=whole),
    carry("warmup_steps warmup_ratio", "loop.warmup", "rounds; a share of them is not carried over", convert=_rounds),
    missing("lr_scheduler_type", "the rate of a loop is constant after its warm-up"),
    needless("save_steps save_strategy save_total_limit eval_steps eval_strategy", "every round is there to look at"),
    carry("seed", "loop.seed"),
    carry("beta", "train.kl_coef"),
    carry("epsilon", "train.clip_low"),
    carry("epsilon_high", "train.clip_high"),
    carry("delta", "train.delta"),
    carry("loss_type", "train.share", "cispo and sapo are surrogates here", values=_SHARES),
    carry("importance_sampling_level", "train.level"),
    carry("top_entropy_quantile", "train.entropy_quantile"),
    carry("tau_pos sapo_temperature_pos", "train.sapo_tau_pos"),
    carry("tau_neg sapo_temperature_neg", "train.sapo_tau_neg"),
    carry("chord_mu_peak", "train.mu"),
    carry("chord_mu_valley", "train.mu_valley"),
    carry("chord_mu_warmup_steps", "train.mu_warmup", convert=whole),
    carry("chord_mu_decay_steps", "train.mu_decay", convert=whole),
    carry("chord_enable_phi_function", "train.phi"),
    needless("chord_sft_per_device_train_batch_size", "train's demonstration_bins say how many bins a step has"),
    missing(
        "chord_sft_dataset", "a section of tokenize and one of pack for them; train's demonstrations name the second"
    ),
    carry(
        "scale_rewards",
        "reward.advantage",
        values={
            "group": "grpo", "true": "grpo", "none": "group_mean", "false": "group_mean", "batch": "batch",
            "gdpo": "gdpo",
        },
    ),
    carry("mask_truncated_completions overlong_filter", "reward.overlong", convert=yes("drop")),
    carry("soft_max_length", "reward.max_answer_tokens"),
    carry("soft_cache_length", "reward.soft_tokens"),
    carry("use_vllm", "rollout.engine", "in an environment of its own if need be", convert=yes("vllm")),
    carry(
        "rollout_importance_sampling_mode vllm_importance_sampling_mode",
        "train.mismatch",
        values={"token_truncate": "token_truncate", "token_mask": "token_mask"},
    ),
    carry("rollout_importance_sampling_threshold vllm_importance_sampling_cap", "train.mismatch_high"),
    needless(
        "vllm_mode vllm_gpu_memory_utilization vllm_server_timeout move_model_batches offload_model offload_optimizer"
        " sleep_level log_completions num_completions_to_print log_entropy log_rollout_offpolicy_metrics"
        " shuffle_dataset max_prompt_length disable_dropout remove_unused_columns",
        "how their trainer shares a GPU with its engine, and what it prints; every sample of a round is there",
    ),
    missing(
        "vllm_tensor_parallel_size vllm_max_model_len vllm_enable_prefix_caching vllm_enforce_eager"
        " vllm_limit_mm_per_prompt vllm_data_parallel_size",
        "words for vLLM's own command line: rollout --engine-arguments",
    ),
    missing("max_resample_times", "prompts with equal rewards are left out, and no others take their place"),
]  # fmt: skip
"""These come before a tool's own rules."""


def complete(sections: dict[str, dict[str, Any]], config: Mapping[str, Any], tool: str) -> None:
    """What their defaults and a loop's form add. Values of other options may be (value, line)."""
    train, rollout = sections["train"], sections["rollout"]
    train |= {"objective": "rl", "rewards": "reward"}
    sections["pack"]["rewards"] = "reward"
    sections["loop"].setdefault("prompts", _prompts(None, config))
    loss = str(config.get("loss_type", _DEFAULT_LOSS[tool])).lower()
    train.setdefault("share", _SHARES.get(loss, "token_mean"))
    if loss in ("cispo", "sapo"):
        train["surrogate"] = loss
    if loss == "cispo":
        train["cispo_cap"] = 1 + (number(config.get("epsilon_high")) or 0.2)
    if loss == "dr_grpo":
        train["max_tokens"] = int(number(config.get("max_completion_length", 512)) or 512)
    train.setdefault("clip_high", number(config.get("epsilon", 0.2)) or 0.2)
    if any(name in rollout for name in ("top_p", "top_k", "min_p")):
        train["mismatch"] = "none"  # log-probs are no longer those of what was sampled from
    kl = number(config.get("beta", _DEFAULT_KL[tool])) or 0.0
    if kl > 0:
        train.setdefault("kl_coef", kl)
        train["scores"] = ["ref=reference"]
        reference = {"stage": "score"}
        order = ("prompts", "rollout", "reference", "reward", "pack", "train", "merge", "loop")
        sections["reference"] = reference
        for name in order:
            if name in sections:
                sections[name] = sections.pop(name)
