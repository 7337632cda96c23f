"""ms-swift's flags, in a shell script or a YAML file."""

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
    number,
    several,
    texts,
    whole,
    yes,
)


def task(config: Mapping[str, Any]) -> str:
    """What is learned: the command, and --rlhf_type."""
    command = str(config.get("", "sft"))
    kind = str(config.get("task_type", "causal_lm"))
    if command == "rlhf":
        return str(config.get("rlhf_type", "dpo"))
    return kind if kind in ("seq_cls", "embedding", "reranker", "generative_reranker") else command


def names(value: Any, config: Mapping[str, Any]) -> list[str]:
    """Data sets: a path as it is, a name on a hub by its hub (ModelScope, unless --use_hf)."""
    hub = "hf" if is_true(config.get("use_hf", False)) else "ms"
    items = value if isinstance(value, list) else str(value).split()

    def is_path(item: str) -> bool:
        path = item.partition("#")[0]
        return path.startswith(("/", ".", "<")) or path.rpartition(".")[2] in ("json", "jsonl", "csv", "parquet", "txt")

    return [item if is_path(item) or "::" in item else f"{hub}:{item}" for item in map(str, items)]


def model(value: Any, config: Mapping[str, Any]) -> str:
    """A folder as it is, a name by its hub."""
    text = str(value)
    is_name = text.count("/") == 1 and not text.startswith((".", "/"))
    return f"ms:{text}" if is_name and not is_true(config.get("use_hf", False)) else text


def first_word(value: Any, _: Mapping[str, Any]) -> str:
    """--model_name takes a Chinese and an English name."""
    items = value if isinstance(value, list) else str(value).split()
    return str(items[-1])


OWN: list[Rule] = [
    carry("model", "model", "a name is one of ModelScope unless --use_hf true", convert=model),
    carry("dataset", "data", "path#count and id:subset#count as they are", convert=names),
    needless("use_hf", "hf: or ms: in front of a name"),
    carry("max_length", "tokenize.max_length", "pack.row_tokens too"),
    carry("packing_length", "pack.row_tokens"),
    carry("truncation_strategy", "tokenize.truncation", values={"delete": "drop"}),
    carry("loss_scale", "tokenize.loss_scale"),
    carry("agent_template", "tokenize.agent_format"),
    carry("system", "tokenize.system"),
    carry("columns", "tokenize.columns"),
    carry("enable_thinking", "tokenize.template_kwargs", convert=lambda value, _: {"enable_thinking": is_true(value)}),
    carry("add_non_thinking_prefix", "tokenize.thinking", convert=yes("empty")),
    carry("model_author", "tokenize.model_author", convert=first_word),
    carry("model_name", "tokenize.model_name", convert=first_word),
    carry(
        "split_dataset_ratio",
        "tokenize.val_ratio",
        "once more with split = validation, then train.valid",
        drop=("0", 0, "0.0", 0.0),
    ),
    carry(
        "tuner_type train_type",
        "train.tuner",
        values={"longlora": "lora", "llamapro": "llama-pro", "bone": "miss"},
    ),
    carry(
        "per_device_train_batch_size",
        "train.bins_per_step",
        "times gradient_accumulation_steps",
        convert=bins_per_step("per_device_train_batch_size", "gradient_accumulation_steps"),
    ),
    needless("gradient_accumulation_steps", "in train.bins_per_step, over all processes"),
    carry("global_batch_size", "train.bins_per_step", convert=whole),
    carry("micro_batch_size", "train.micro_bins"),
    carry("lr", "train.lr"),
    carry(
        "min_lr",
        "train.min_lr",
        "a share of the peak here",
        convert=lambda value, config: round(float(value) / float(config["lr"]), 4) if config.get("lr") else None,
    ),
    carry("lr_warmup_fraction lr_warmup_iters", "train.warmup"),
    carry("train_iters", "train.steps", convert=whole),
    needless("eval_iters", "validation takes all of its bins"),
    carry("eval_interval", "train.valid_every", "needs --valid", convert=whole),
    carry("sequence_parallel_size context_parallel_size", "train.cp"),
    carry("tensor_model_parallel_size", "train.tp"),
    carry("expert_model_parallel_size", "train.ep", convert=several),
    carry("pipeline_model_parallel_size", "train.pp", convert=several),
    carry("attention_backend", "train.attention", convert=lambda value, _: "flash" if value == "flash" else None),
    carry("beta", "train.beta"),
    carry("loss_type", "train.dpo.loss"),
    carry("rpo_alpha", "train.nll"),
    carry("simpo_gamma", "train.gamma"),
    carry("desirable_weight", "train.desirable"),
    carry("undesirable_weight", "train.undesirable"),
    carry("enable_dft_loss", "train.objective", convert=yes("dft")),
    carry(
        "problem_type",
        "train.problem",
        values={"single_label_classification": "single_label", "multi_label_classification": "multi_label"},
    ),
    carry("num_labels", "train.labels"),
    carry("epsilon", "train.clip_low"),
    carry("epsilon_high", "train.clip_high"),
    carry("num_generations", "rollout.samples"),
    carry("max_completion_length max_new_tokens response_length", "rollout.max_new_tokens"),
    carry("temperature", "rollout.temperature"),
    carry("top_p", "rollout.top_p"),
    carry("top_k", "rollout.top_k"),
    carry(
        "reward_funcs",
        "reward.functions",
        "accuracy is math here",
        convert=lambda value, config: ["math" if name == "accuracy" else name for name in texts(value, config) or []],
    ),
    carry("reward_weights", "reward.weights"),
    carry("advantage_estimator", "reward.advantage", values={"reinforce_plus_plus": "reinforce_pp"}),
    carry(
        "scale_rewards",
        "reward.advantage",
        values={
            "group": "grpo",
            "none": "group_mean",
            "false": "group_mean",
            "batch": "batch",
            "gdpo": "gdpo",
            "true": "grpo",
        },
    ),
    carry("overlong_filter", "reward.overlong", convert=yes("drop")),
    carry("dynamic_sample", "reward.keep", convert=yes("mixed")),
    carry("quant_bits", "quantize.scheme", values={"4": "w4a16", "8": "w8a16", 4: "w4a16", 8: "w8a16"}),
    carry(
        "quant_method",
        "quantize.method",
        "gptq and awq look at the rows of --dataset; bnb becomes rounding (rtn), fp8 is a scheme",
        convert=lambda value, _: value.removesuffix("_v2") if value in ("hqq", "gptq", "gptq_v2", "awq") else None,
    ),
    carry("adapters", "merge.parts", convert=texts),
    carry("init_strategy", "train.init"),
    needless("", "the command decides the chain"),
    needless(
        "rlhf_type task_type merge_lora to_hf to_mcore mcore_adapter mcore_model load_args load_data_args config",
        "decides the chain",
    ),
    needless(
        "packing padding_free lazy_tokenize load_from_cache_file streaming shuffle_buffer_size cached_dataset "
        "cached_val_dataset to_cached_dataset group_by_length",
        "always packed; prepared data is an artifact: out/tokenize, out/pack",
    ),
    needless("val_dataset", "tokenize and pack it, then train.valid"),
    needless(
        "template use_chat_template template_mode template_backend response_prefix stop_words "
        "new_special_tokens label_names",
        "the model's own chat template is rendered",
    ),
    needless(
        "finetune no_save_optim no_save_rng attention_softmax_in_fp32 use_logits_to_keep "
        "use_precision_aware_optimizer exp_avg_dtype exp_avg_sq_dtype optimizer save check_model model_type "
        "experts_impl model_kwargs ddp_backend tuner_backend max_epochs save_interval log_interval metric "
        "test_convert_precision",
        "how a trainer works inside; nothing to choose here",
    ),
    needless(
        "cross_entropy_loss_fusion cross_entropy_fusion_impl gradient_accumulation_fusion "
        "masked_softmax_fusion moe_permute_fusion moe_grouped_gemm moe_shared_expert_overlap moe_router_dtype "
        "overlap_param_gather overlap_grad_reduce use_flash_ckpt linear_decoupled_in_proj",
        "kernels are chosen by themselves; the loss never holds the logits",
    ),
    needless(
        "infer_backend stream max_batch_size write_batch_size val_dataset_shuffle result_path eval_dataset "
        "eval_backend eval_limit eval_url eval_use_evalscope eval_dataset_args eval_generation_config "
        "predict_with_generate merge_device_map max_model_len",
        "rollout and eval are stages of their own",
    ),
    needless("host port served_model_name verbose", "serving is a command of its own"),
    carry(
        "freeze_vit freeze_aligner freeze_llm",
        "train.freeze",
        "with all weights; write ms-swift's defaults out: vision and projector frozen. Adapters are on the decoder",
        convert=frozen_parts("tuner_type", freeze_vit="vision", freeze_aligner="projector", freeze_llm="language"),
    ),
    needless("vit_gradient_checkpointing", "train --gradient-checkpointing is for the whole model"),
    missing(
        "max_pixels",
        "and MAX_PIXELS, MIN_PIXELS: pictures are as large as the model's folder says. Set max_pixels in its "
        "preprocessor_config.json before tokenize; the model that is trained has it too",
    ),
    missing("vit_lr aligner_lr", "all parts have one learning rate"),
    needless(
        "recompute_granularity recompute_method recompute_num_layers recompute_modules",
        "train --gradient-checkpointing computes every layer again",
    ),
    needless("sequence_parallel", "Megatron's saving of activations: train --cp divides rows, train --tp layers"),
    carry(
        "quant_n_samples",
        "quantize.calibration_tokens",
        "times max_length",
        convert=lambda value, config: int(number(value) or 256) * int(number(config.get("max_length", 2048)) or 2048),
    ),
    needless("quant_batch_size", "calibration takes rows as they fit"),
    needless("external_plugins", "a function of your own is a reward: file.py:name"),
    needless(
        "kl_in_reward async_generate",
        "sampling and learning are stages: --follow all samples while it trains",
    ),
    missing(
        "use_vllm vllm_mode vllm_max_model_len vllm_gpu_memory_utilization vllm_tensor_parallel_size "
        "vllm_server_host vllm_server_port vllm_data_parallel_size vllm_use_async_engine vllm_enable_lora "
        "vllm_max_lora_rank vllm_speculative_config vllm_limit_mm_per_prompt vllm_enable_prefix_caching "
        "vllm_enforce_eager vllm_server_pass_dataset max_logprobs",
        "an engine of rollout or serve, not of train",
    ),
    missing(
        "sglang_context_length sglang_tp_size sglang_mem_fraction_static sglang_speculative_algorithm "
        "sglang_speculative_eagle_topk sglang_speculative_num_steps sglang_speculative_num_draft_tokens "
        "lmdeploy_tp lmdeploy_vision_batch_size",
        "an engine of rollout or serve, not of train",
    ),
    missing(
        "expert_tensor_parallel_size decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers "
        "moe_expert_capacity_factor mtp_num_layers offload_bridge optimizer_cpu_offload optimizer_offload_fraction "
        "fp8_recipe fp8_format fp8_param_gather",
        "Megatron is not there; its meshes are",
    ),
    missing(
        "teacher_model teacher_deepspeed teacher_model_server offload_teacher_model gkd_logits_topk lmbda sft_alpha",
        "distillation: a chain of score and train of its own",
    ),
    missing(
        "multi_turn_scheduler max_turns use_gym_env gym_env reward_model reward_model_plugin",
        "environments are options of rollout",
    ),
    missing(
        "chord_sft_per_device_train_batch_size chord_sft_dataset chord_enable_phi_function "
        "chord_mu_warmup_steps chord_mu_decay_steps chord_mu_peak chord_mu_valley delta tau_pos tau_neg "
        "fipo_decay_rate fipo_clip_range fipo_clip_high_only fipo_safety_threshold center_rewards_coefficient "
        "loss_weights",
        "not carried over; see the options of train --objective rl",
    ),
    carry("use_galore", "train.optimizer", convert=yes("galore")),
    carry("lisa_activated_layers", "train.layers", convert=whole),
    carry("lisa_step_interval", "train.every", convert=whole),
    carry("llamapro_num_new_blocks", "train.blocks", convert=whole),
    carry("early_stop_interval", "train.patience", "needs --valid-every", convert=whole),
    missing(
        "galore_optim_per_parameter galore_quantization lora_ga_batch_size lora_ga_iters lora_ga_max_length "
        "lora_ga_direction lora_ga_scale lora_ga_stable_gamma reft_intervention_type use_ray "
        "rope_scaling to_ollama data_parallel_size",
        "not there",
    ),
]
RULES = [*OWN, *TRAINER, *PEFT]
