"""Options that several tools have, because they come from transformers' Trainer and from PEFT."""

from collections.abc import Mapping
from typing import Any

from postmill.cli.coming_from.rule import Rule, carry, missing, needless, number, texts, whole, yes

SCHEDULES = {
    "constant_with_warmup": "constant",
    "cosine_with_restarts": "cosine-restarts",
    "cosine_with_min_lr": "cosine",
    "warmup_stable_decay": "wsd",
    "rex": "cosine",
}


def optimizer(value: Any, _: Mapping[str, Any]) -> str | None:
    """The kind of an optimizer, whatever its kernel or the width of its state."""
    name = str(value).lower()
    return next((kind for kind in ("adafactor", "lion", "muon", "sgd") if kind in name), "adamw")


def bins_per_step(*rows: str) -> Any:
    """Rows of a device times accumulation: what one process sees in a step."""

    def convert(_: Any, config: Mapping[str, Any]) -> int:
        product = 1
        for name in rows:
            product *= int(number(config.get(name, 1)) or 1)
        return product

    return convert


def warmup(value: Any, _: Mapping[str, Any]) -> float | int | None:
    """A share below 1, or steps."""
    found = number(value)
    return None if not found else int(found) if found >= 1 else found


def shard(value: Any, _: Mapping[str, Any]) -> str | None:
    """Weights in shards, for ZeRO 2 and 3 and FSDP."""
    text = str(value)
    return None if not value or "zero1" in text or "zero0" in text or "z0" in text else "fsdp"


TRAINER: list[Rule] = [
    carry("learning_rate", "train.lr"),
    carry("num_train_epochs", "train.epochs", convert=whole),
    carry("max_steps", "train.steps", convert=whole),
    carry("lr_scheduler_type", "train.schedule", values=SCHEDULES),
    carry("warmup_ratio warmup_steps", "train.warmup", "a share below 1, else steps", convert=warmup),
    carry("weight_decay", "train.weight_decay"),
    carry("max_grad_norm", "train.clip"),
    carry("adam_beta1", "train.beta1"),
    carry("adam_beta2", "train.beta2"),
    carry("adam_epsilon", "train.eps"),
    carry("optim", "train.optimizer", "its kind: paged and 8-bit forms have no counterpart", convert=optimizer),
    carry("save_steps", "train.save_every", convert=whole),
    carry("save_total_limit", "train.keep_last", convert=whole),
    carry("eval_steps", "train.valid_every", "needs --valid", convert=whole),
    carry("seed data_seed", "train.seed"),
    carry("gradient_checkpointing", "train.gradient_checkpointing", convert=yes(True)),
    carry("bf16 fp16 float16 bfloat16 pure_bf16", "train.dtype", "float16 becomes bfloat16", convert=yes("bfloat16")),
    carry("torch_dtype dtype", "train.dtype", values={"float16": "bfloat16", "half": "bfloat16", "auto": None}),
    carry("neftune_noise_alpha", "train.neftune_alpha"),
    carry("label_smoothing_factor", "train.label_smoothing"),
    carry("use_liger_kernel enable_liger_kernel", "train.liger", convert=yes(True)),
    carry(
        "attn_implementation attn_impl flash_attn",
        "train.attention",
        "eager, sdpa and flex stay auto",
        convert=lambda value, _: "flash" if "fa2" in str(value) or "flash" in str(value) else None,
    ),
    carry("fsdp fsdp_config fsdp_version deepspeed", "train.shard", "ZeRO 2 and 3 too; no offload", convert=shard),
    carry("router_aux_loss_coef moe_aux_loss_coeff", "train.router_aux"),
    carry("metric_for_best_model", "train.keep_best", "always the loss on --valid", convert=lambda *_: 1),
    needless("output_dir", "passed as -o"),
    needless(
        "logging_steps logging_strategy logging_dir logging_first_step log_level report_to run_name project_name"
        " plot_loss include_num_input_tokens_seen log_completions",
        "every step is in metrics.jsonl; postmill plot draws it",
    ),
    needless("resume_from_checkpoint", "run the same command again"),
    needless(
        "overwrite_output_dir ignore_data_skip save_strategy save_safetensors save_only_model eval_strategy"
        " evaluation_strategy do_train do_eval load_best_model_at_end greater_is_better",
        "always so, or said by another option",
    ),
    needless(
        "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_persistent_workers"
        " preprocessing_num_workers dataset_num_proc ddp_timeout ddp_find_unused_parameters ddp tf32"
        " remove_unused_columns group_by_length local_rank low_cpu_mem_usage dataloader_drop_last"
        " gradient_checkpointing_kwargs use_reentrant_gc full_determinism include_tokens_per_second device_map",
        "how a trainer works inside; nothing to choose here",
    ),
    needless("per_device_eval_batch_size eval_batch_size eval_accumulation_steps", "validation takes bins as they are"),
    needless("trust_remote_code", "model folders run no code here"),
    missing("push_to_hub hub_model_id hub_token hub_strategy hub_private_repo", "nothing is sent to a hub"),
    missing("torch_compile torch_compile_backend torch_compile_mode", "not there"),
    missing("optim_args accelerator_config use_cpu fp8 fp8_backend fp8_enable_fsdp_float8_all_gather", "not there"),
]

PEFT: list[Rule] = [
    carry("lora_r lora_rank r", "train.rank"),
    carry("lora_alpha", "train.alpha"),
    carry("lora_dropout", "train.dropout"),
    carry(
        "lora_target_modules lora_target target_modules",
        "train.targets",
        "all and all-linear are the default",
        convert=lambda value, config: None if value in ("all", "all-linear") else texts(value, config),
    ),
    carry("modules_to_save lora_modules_to_save additional_target", "train.modules_to_save", convert=texts),
    carry("use_dora peft_use_dora", "train.dora", convert=yes(True)),
    carry("use_rslora peft_use_rslora", "train.rslora", convert=yes(True)),
    carry("pissa_init", "train.init", convert=yes("pissa")),
    carry("init_weights init_lora_weights peft_init_lora_weights", "train.init", drop=("true", True)),
    carry("loraplus_lr_ratio lorap_lr_ratio", "train.lr_ratio"),
    carry("lora_target_parameters target_parameters", "train.parameters", convert=texts),
    needless("lora_bias lora_fan_in_fan_out peft_layers_to_transform", "adapters have no bias; layers are found"),
    missing("pissa_iter pissa_convert", "PiSSA is exact and always saved as plain LoRA"),
    carry(
        "load_in_4bit", "train.quant", "needs bitsandbytes; or a base that postmill quantize made", convert=yes("nf4")
    ),
    carry("load_in_8bit", "train.quant", convert=yes("int8")),
    carry("quantization_bit", "train.quant", values={"4": "nf4", "8": "int8", 4: "nf4", 8: "int8"}),
    carry("quantization_type bnb_4bit_quant_type", "train.quant"),
    needless(
        "quantization_method double_quantization bnb_4bit_use_double_quant bnb_4bit_compute_dtype"
        " use_bnb_nested_quant bnb_config_kwargs quantization_device_map",
        "as bitsandbytes has it by default",
    ),
]
