"""TRL's YAML, and its commands in a shell script: fields of its configs, and of the script's arguments."""

from collections.abc import Mapping
from typing import Any

from postmill.cli.coming_from.common import PEFT, TRAINER, bins_per_step
from postmill.cli.coming_from.rule import Rule, carry, is_true, missing, needless, texts, yes


def task(config: Mapping[str, Any]) -> str:
    """What is learned: the command's verb, or fields that only one trainer has."""
    if "" in config:
        verb = str(config[""])
        loss = str(config.get("loss_type", ""))
        return {"reward": "rm", "cpo": "simpo" if loss == "simpo" else "cpo"}.get(verb, verb)
    if "num_generations" in config or "reward_funcs" in config:
        return "grpo"
    if "desirable_weight" in config or "undesirable_weight" in config:
        return "kto"
    if "center_rewards_coefficient" in config:
        return "rm"
    return "dpo" if "beta" in config or "loss_type" in config or "precompute_ref_log_probs" in config else "sft"


def dataset(value: Any, config: Mapping[str, Any]) -> list[str]:
    """A name on Hugging Face, with its subset."""
    subset = f":{config['dataset_config']}" if config.get("dataset_config") else ""
    return [f"hf:{value}{subset}" if not str(value).startswith((".", "/")) else str(value)]


def tuner(_: Mapping[str, Any]) -> str:
    """Without `use_peft` all weights are trained."""
    return "full"


OWN: list[Rule] = [
    carry("model_name_or_path", "model"),
    carry("dataset_name", "data", convert=dataset),
    needless("dataset_config dataset_train_split dataset_test_split", "part of the data: hf:owner/name:subset"),
    carry("max_length max_seq_length", "tokenize.max_length", "pack.row_tokens too"),
    carry("truncation_mode", "tokenize.truncation", values={"keep_start": "right", "keep_end": "left"}),
    carry(
        "per_device_train_batch_size",
        "train.bins_per_step",
        "times gradient_accumulation_steps",
        convert=bins_per_step("per_device_train_batch_size", "gradient_accumulation_steps"),
    ),
    needless("gradient_accumulation_steps", "in train.bins_per_step, over all processes"),
    carry("use_peft", "train.tuner", convert=lambda value, _: "lora" if is_true(value) else "full"),
    carry("completion_only_loss", "tokenize.loss_scale", convert=yes("last_round")),
    carry(
        "assistant_only_loss",
        "tokenize.loss_scale",
        "the default",
        convert=lambda value, _: None if is_true(value) else "all",
    ),
    carry("chat_template_path", "tokenize.template", "a file"),
    carry("beta", "train.beta"),
    carry("loss_type", "train.dpo.loss", convert=lambda value, config: ",".join(texts(value, config) or [])),
    carry("label_smoothing", "train.label_smoothing"),
    carry("f_divergence_type", "train.f", values={"js_divergence": "js", "alpha_divergence": "alpha"}),
    carry("use_weighting", "train.weighting", convert=yes(True)),
    carry("ld_alpha", "train.ld_alpha"),
    carry("discopop_tau", "train.discopop_tau"),
    carry("desirable_weight", "train.desirable"),
    carry("undesirable_weight", "train.undesirable"),
    carry("num_generations", "rollout.samples"),
    carry("max_completion_length", "rollout.max_new_tokens"),
    carry("temperature", "rollout.temperature"),
    carry("top_p", "rollout.top_p"),
    carry("top_k", "rollout.top_k"),
    carry("min_p", "rollout.min_p"),
    carry("reward_funcs", "reward.functions", convert=texts),
    carry("reward_weights", "reward.weights"),
    carry("packing_strategy", "pack.strategy", convert=lambda value, _: "wrapped" if value == "wrapped" else None),
    needless("packing padding_free eval_packing", "always packed, best fit over the whole input"),
    needless("precompute_ref_log_probs", "always: the reference is scored once, by score"),
    needless(
        "max_prompt_length dataset_text_field dataset_kwargs eos_token pad_token pad_to_multiple_of "
        "disable_dropout activation_offloading",
        "read from the rows and the tokenizer",
    ),
    needless(
        "compute_environment distributed_type num_machines num_processes machine_rank rdzv_backend "
        "same_network main_training_function mixed_precision downcast_bf16 debug tpu_env tpu_use_cluster "
        "tpu_use_sudo gpu_ids enable_cpu_affinity accelerate_config config_file no_remove_unused_columns "
        "lora_task_type",
        "how accelerate starts processes: postmill launch --ranks, or torchrun",
    ),
    carry(
        "deepspeed_config",
        "train.shard",
        "ZeRO 2 and 3; no offload",
        convert=lambda value, _: (
            "fsdp" if isinstance(value, dict) and int(value.get("zero_stage", 0) or 0) >= 2 else None
        ),
    ),
    carry(
        "parallelism_config",
        "train.cp",
        convert=lambda value, _: value.get("parallelism_config_cp_size") if isinstance(value, dict) else None,
    ),
    missing(
        "sync_ref_model ref_model_mixin_alpha ref_model_sync_steps use_vllm vllm_mode vllm_server_host "
        "vllm_server_port vllm_gpu_memory_utilization center_rewards_coefficient",
        "not there",
    ),
]
RULES = [*OWN, *TRAINER, *PEFT]
