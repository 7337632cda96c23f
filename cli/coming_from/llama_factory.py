"""LLaMA-Factory's YAML."""

from collections.abc import Mapping
from typing import Any

from postmill.cli.coming_from.common import PEFT, TRAINER, bins_per_step
from postmill.cli.coming_from.rule import (
    Rule,
    carry,
    frozen_parts,
    is_true,
    missing,
    needless,
    several,
    texts,
    whole,
    yes,
)


def datasets(value: Any, config: Mapping[str, Any]) -> list[str]:
    """Names in dataset_info.json become files of the same name, with the count of max_samples."""
    count = f"#{config['max_samples']}" if config.get("max_samples") else ""
    names = texts(value, config) or []
    return [f"{config.get('dataset_dir', 'data')}/{name}.json{count}" if "." not in name else name for name in names]


def _is_said(config: Mapping[str, Any], *names: str) -> bool:
    return any(is_true(config.get(name, False)) for name in names)


def _tuner(value: Any, config: Mapping[str, Any]) -> str | None:
    """Blocks of layers in turn, and new ones, are tuners of their own here."""
    if _is_said(config, "use_badam", "use_llama_pro"):
        return None
    return "full" if value == "freeze" else str(value)


def _new_blocks(value: Any, config: Mapping[str, Any]) -> int | None:
    """Layers that LLaMA-Pro adds; without it, which of the old ones are trained: there is no option for that."""
    return whole(value, config) if _is_said(config, "use_llama_pro") else None


def task(config: Mapping[str, Any]) -> str:
    """What is learned."""
    if "export_dir" in config:
        return "export"
    stage = str(config.get("stage", "sft"))
    loss = str(config.get("pref_loss", ""))
    return loss if stage == "dpo" and loss in ("orpo", "simpo") else stage


OWN: list[Rule] = [
    carry("model_name_or_path model", "model"),
    carry(
        "dataset train_dataset", "data", "names of dataset_info.json become DIR/NAME.json: check them", convert=datasets
    ),
    needless("max_samples dataset_dir", "part of the data: file#count"),
    carry("cutoff_len", "tokenize.max_length", "pack.row_tokens too"),
    carry("use_badam", "train.tuner", convert=yes("badam")),
    carry("use_llama_pro", "train.tuner", convert=yes("llama-pro")),
    carry(
        "finetuning_type",
        "train.tuner",
        convert=_tuner,
    ),
    carry("badam_switch_interval", "train.every", convert=whole),
    carry("badam_switch_mode", "train.order"),
    carry("freeze_trainable_layers", "train.blocks", "with use_llama_pro: the new layers", convert=_new_blocks),
    carry(
        "per_device_train_batch_size micro_batch_size",
        "train.bins_per_step",
        "times gradient_accumulation_steps",
        convert=bins_per_step("per_device_train_batch_size", "micro_batch_size", "gradient_accumulation_steps"),
    ),
    needless("gradient_accumulation_steps", "in train.bins_per_step, over all processes"),
    carry("pref_beta", "train.beta"),
    carry("pref_loss", "train.dpo.loss", values={"orpo": None, "simpo": None, "kto_pair": None}),
    carry("pref_ftx", "train.nll"),
    carry("simpo_gamma", "train.gamma"),
    carry("dpo_label_smoothing", "train.label_smoothing"),
    carry("mask_history", "tokenize.loss_scale", convert=yes("last_round")),
    carry("train_on_prompt", "tokenize.loss_scale", convert=yes("all")),
    carry("enable_thinking", "tokenize.template_kwargs", convert=lambda value, _: {"enable_thinking": is_true(value)}),
    carry("default_system", "tokenize.system"),
    carry("val_size", "tokenize.val_ratio", "once more with split = validation, then train.valid"),
    carry("use_dft_loss", "train.objective", convert=yes("dft")),
    carry("use_eaft_loss", "train.objective", convert=yes("eaft")),
    carry("use_asft_loss", "train.objective", convert=yes("asft")),
    carry("asft_alpha", "train.asft.alpha"),
    carry("use_muon", "train.optimizer", convert=yes("muon")),
    carry("use_galore", "train.optimizer", convert=yes("galore")),
    carry("use_apollo", "train.optimizer", convert=yes("apollo")),
    carry("galore_rank", "train.galore.rank", convert=whole),
    carry("galore_scale", "train.galore.scale"),
    carry("galore_update_interval", "train.galore.gap", convert=whole),
    carry("apollo_rank", "train.apollo.rank", convert=whole),
    carry("apollo_scale", "train.apollo.scale"),
    carry("apollo_update_interval", "train.apollo.gap", convert=whole),
    needless(
        "galore_layerwise apollo_layerwise galore_target apollo_target galore_proj_type apollo_proj apollo_proj_type"
        " badam_verbose badam_mode",
        "all matrices of the layers, projected as their papers have it",
    ),
    carry(
        "oft_target", "train.targets", convert=lambda value, config: None if value == "all" else texts(value, config)
    ),
    carry("oft_block_size", "train.block_size"),
    carry(
        "disable_gradient_checkpointing",
        "train.gradient_checkpointing",
        convert=lambda value, _: None if is_true(value) else True,
    ),
    carry("cp_size context_parallel_size", "train.cp"),
    carry("tensor_model_parallel_size", "train.tp"),
    carry("pipeline_model_parallel_size", "train.pp", convert=several),
    carry("expert_model_parallel_size", "train.ep", convert=several),
    carry(
        "dist_config",
        "train.shard",
        convert=lambda value, _: "fsdp" if "fsdp" in str(value) or "deepspeed" in str(value) else None,
    ),
    carry(
        "peft_config",
        "train.tuner",
        "its members by their own names",
        convert=lambda value, _: _tuner(value.get("name", "lora"), {}) if isinstance(value, dict) else None,
    ),
    carry("adapter_name_or_path", "train.from"),
    needless("optim_config", "train.optimizer and its options"),
    needless("stage", "decides the objective and the chain"),
    needless("template", "the model's own chat template is rendered; another: tokenize --chat-template"),
    needless(
        "packing neat_packing use_packed_sequences batching_strategy group_by_length",
        "always packed; rows never see each other",
    ),
    needless("overwrite_cache tokenized_path", "prepared data is an artifact: out/tokenize, out/pack"),
    needless(
        "model_class kernel_config use_v1_kernels sample_backend infer_backend init_config use_unsloth",
        "models are loaded by transformers, kernels chosen by themselves",
    ),
    needless(
        "compute_environment distributed_type num_machines num_processes machine_rank rdzv_backend "
        "same_network main_training_function main_process_ip main_process_port mixed_precision downcast_bf16 "
        "debug tpu_env tpu_use_cluster tpu_use_sudo fsdp_transformer_layer_cls_to_wrap cp_mode "
        "ray_num_workers",
        "how accelerate starts processes: postmill launch --ranks, or torchrun",
    ),
    carry(
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model",
        "train.freeze",
        "with all weights; write LLaMA-Factory's defaults out: tower and projector frozen. Adapters are on the decoder",
        convert=frozen_parts(
            "finetuning_type",
            freeze_vision_tower="vision",
            freeze_multi_modal_projector="projector",
            freeze_language_model="language",
        ),
    ),
    missing(
        "image_max_pixels image_min_pixels video_max_pixels video_fps video_maxlen",
        "pictures are as large as the model's folder says: set max_pixels in its preprocessor_config.json",
    ),
    needless("export_dir", "passed as -o to merge"),
    needless(
        "export_size export_device export_legacy_format export_hf_on_finish do_predict predict_with_generate "
        "eval_dataset max_new_tokens top_p temperature",
        "merge and eval are stages of their own",
    ),
    needless(
        "export_quantization_bit export_quantization_dataset", "quantize is a stage of its own: postmill run quantize"
    ),
    carry(
        "quant_config", "train.quant", "nf4, through bitsandbytes", convert=lambda value, _: "nf4" if value else None
    ),
    missing(
        "use_kt kt_config kt_cpu_activation kt_weight_path kt_non_expert_weight_path", "KTransformers is not there"
    ),
    missing("apollo_scale_type use_adam_mini", "not there"),
    missing("freeze_trainable_modules mixture_of_depths", "not there; tuners are adapters, or all weights"),
    needless(
        "sequence_parallel use_distributed_optimizer bias_activation_fusion apply_rope_fusion overlap_param_gather "
        "overlap_grad_reduce moe_grouped_gemm moe_token_dispatcher_type",
        "how Megatron works inside",
    ),
    carry("recompute_granularity", "train.gradient_checkpointing", convert=lambda value, _: True if value else None),
]
OF_TASKS: dict[str, list[Rule]] = {
    "export": [
        carry("adapter_name_or_path", "merge.parts", convert=texts),
        carry("export_quantization_bit", "quantize.scheme", convert=lambda value, _: f"w{value}a16"),
    ]
}
"""Rules that go before the others where a config is for that."""
RULES = [*OWN, *TRAINER, *PEFT]
