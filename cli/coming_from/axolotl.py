"""Axolotl's YAML."""

from collections.abc import Mapping
from typing import Any

from postmill.cli.coming_from.common import PEFT, SCHEDULES, TRAINER, bins_per_step, optimizer
from postmill.cli.coming_from.rule import Rule, carry, is_true, missing, needless, number, several, whole, yes


def datasets(value: Any, _: Mapping[str, Any]) -> list[str] | None:
    """References of the data sets: a path, or a name on Hugging Face."""
    names = []
    for item in value if isinstance(value, list) else [value]:
        name = str(item.get("path", "") if isinstance(item, dict) else item)
        local = name.startswith((".", "/")) or "." in name.rpartition("/")[2]
        subset = f":{item['name']}" if isinstance(item, dict) and item.get("name") else ""
        names += [name if local or not name else f"hf:{name}{subset}"]
    return [name for name in names if name] or None


def _copies(value: Any, config: Mapping[str, Any]) -> str | None:
    """Several groups of processes, each with all weights in shards."""
    return "hsdp" if several(value, config) and several(config.get("dp_shard_size"), config) else None


def _share_of_rate(value: Any, config: Mapping[str, Any]) -> float | None:
    """A lowest rate as a share of the highest."""
    lowest, highest = number(value), number(config.get("learning_rate"))
    return lowest / highest if lowest and highest else None


def task(config: Mapping[str, Any]) -> str:
    """What is learned."""
    if config.get("rl"):
        return str(config["rl"])
    if is_true(config.get("process_reward_model") or False):
        return "prm"
    if is_true(config.get("reward_model") or False):
        return "rm"
    return "pt" if config.get("pretraining_dataset") else "sft"


def tuner(config: Mapping[str, Any]) -> str:
    """Without an adapter all weights are trained, with LISA a few layers at a time."""
    return "lisa" if whole(config.get("lisa_n_layers"), config) else "full"


OWN: list[Rule] = [
    carry(
        "base_model model",
        "model",
        convert=lambda value, config: "@".join(filter(None, (str(value), str(config.get("revision_of_model") or "")))),
    ),
    needless("revision_of_model", "behind the model: owner/name@revision"),
    carry(
        "datasets pretraining_dataset",
        "data",
        "columns are recognised; another form: tokenize --columns",
        convert=datasets,
    ),
    carry("sequence_len", "tokenize.max_length", "pack.row_tokens too"),
    carry(
        "micro_batch_size batch_size",
        "train.bins_per_step",
        "times gradient_accumulation_steps",
        convert=bins_per_step("micro_batch_size", "gradient_accumulation_steps"),
    ),
    needless("gradient_accumulation_steps", "in train.bins_per_step, over all processes"),
    carry("num_epochs", "train.epochs", convert=whole),
    carry("optimizer", "train.optimizer", "its kind: paged and 8-bit forms have no counterpart", convert=optimizer),
    carry("lr_scheduler", "train.schedule", values=SCHEDULES),
    carry("cosine_min_lr_ratio", "train.min_lr"),
    carry("eta_min", "train.min_lr", "a share of the rate", convert=_share_of_rate),
    carry("adapter", "train.tuner", values={"qlora": "lora", "": None}, note="qlora is lora with train --quant nf4"),
    carry("peft_use_rslora", "train.rslora", convert=yes(True)),
    missing(
        "chat_template",
        "the model's own is rendered, as with tokenizer_default; another one: tokenize --chat-template FILE",
        off=("tokenizer_default",),
    ),
    carry("train_on_inputs", "tokenize.loss_scale", convert=yes("all")),
    carry("val_set_size", "tokenize.val_ratio", "once more with split = validation, then train.valid"),
    carry("shuffle_merged_datasets", "pack.strategy", convert=lambda value, _: None if is_true(value) else "in_order"),
    carry("dataset_exact_deduplication", "tokenize.dedup", convert=yes(True)),
    carry("dp_shard_size", "train.shard_ranks"),
    carry("tensor_parallel_size", "train.tp"),
    carry("context_parallel_size context_parapllel_size sequence_parallel_degree", "train.cp"),
    carry("rl_beta", "train.beta"),
    carry("orpo_alpha", "train.beta"),
    carry("kto_desirable_weight", "train.desirable"),
    carry("kto_undesirable_weight", "train.undesirable"),
    carry("use_eaft", "train.objective", convert=yes("eaft")),
    carry("eaft_alpha", "train.eaft.alpha"),
    missing("eaft_k", "the entropy is that of all tokens"),
    carry("lisa_n_layers", "train.layers", convert=whole),
    carry("lisa_step_interval", "train.every", convert=whole),
    needless("lisa_layers_attribute", "layers are found"),
    carry("early_stopping_patience", "train.patience", "needs --valid-every", convert=whole),
    carry("loss_watchdog_threshold", "train.watchdog"),
    carry("loss_watchdog_patience", "train.watchdog_steps", convert=whole),
    carry("expert_parallel_size", "train.ep", convert=several),
    carry("dp_replicate_size", "train.shard", "hsdp: copies of sharded weights", convert=_copies),
    carry("center_rewards_coefficient", "train.centring"),
    carry(
        "liger_rms_norm liger_glu_activation liger_layer_norm liger_rope liger_swiglu liger_rms_norm_gated",
        "train.liger",
        convert=yes(True),
    ),
    carry("flash_attention", "train.attention", convert=yes("flash")),
    carry("save_steps", "train.save_every", convert=whole),
    missing("evals_per_epoch saves_per_epoch", "train --valid-every and --save-every count steps: choose them"),
    carry("num_labels", "train.labels", "a reward model has one", drop=(1, "1")),
    carry("adam_eps", "train.eps"),
    needless("rl reward_model process_reward_model", "decides the objective and the chain"),
    needless(
        "sample_packing pad_to_sequence_len eval_sample_packing max_packed_sequence_len "
        "sample_packing_eff_est sample_packing_seq_len_multiplier total_num_tokens "
        "sample_packing_sequentially pretrain_multipack_attn streaming_multipack_buffer_size min_sample_len "
        "multipack_real_batches",
        "always packed, best fit over the whole input",
    ),
    needless(
        "dataset_prepared_path push_dataset_to_hub skip_prepare_dataset",
        "prepared data is an artifact: out/tokenize, out/pack",
    ),
    needless(
        "wandb_name wandb_project wandb_entity wandb_watch wandb_log_model wandb_run_id use_wandb "
        "use_tensorboard use_swanlab swanlab_project swanlab_experiment_name swanlab_description swanlab_mode "
        "swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer "
        "swanlab_workspace swanlab_log_model trackio_project_name trackio_run_name trackio_space_id "
        "use_otel_metrics otel_metrics_host otel_metrics_port eval_table_size",
        "every step is in metrics.jsonl; postmill plot draws it",
    ),
    needless(
        "model_type tokenizer_type tokenizer_config processor_type tokenizer_use_mistral_common "
        "tokenizer_use_fast tokenizer_legacy hf_use_auth_token strict is_llama_derived_model",
        "read from the model's own files",
    ),
    needless("special_tokens eot_tokens", "the tokenizer and the template say which tokens close a turn"),
    needless("lora_target_linear", "all-linear is the default"),
    needless(
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel use_kernels liger_fused_linear_cross_entropy "
        "liger_cross_entropy flash_attn_cross_entropy flash_attn_fuse_mlp flash_attn_rms_norm "
        "cut_cross_entropy fused_attn_kernel use_scattermoe use_sonicmoe experts_implementation "
        "gemma4_hybrid_attn_impl flex_attn_compile_kwargs use_dsv4_kernels use_glm_dsa_kernels tiled_mlp",
        "kernels are chosen by themselves; the loss never holds the logits",
    ),
    needless("plugins", "what they add is built in, or named by its own option"),
    needless(
        "lora_model_dir peft auto_resume_from_checkpoints torchdistx_path experimental_skip_move_to_device "
        "flash_optimum device_map debug test_value ddp_timeout",
        "run the same command again; how a trainer works inside",
    ),
    missing(
        "gptq gptq_groupsize gptq_model_v1 gptq_disable_exllama model_quantization_config "
        "model_quantization_config_kwargs quantize_moe_experts qat use_onebitllms nvfp4_merge_aware "
        "dsv4_fp4_grouped_mode llmcompressor",
        "training on a base in few bits is not there",
    ),
    missing("activation_offloading", "not there"),
    missing(
        "unfrozen_parameters relora relora_prune_ratio "
        "relora_cpu_offload jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps "
        "reinit_weights freeze_mm_modules",
        "not there; tuners are adapters, or all weights",
    ),
    missing("tokens resize_token_embeddings_to_32x", "new tokens: add them to the tokenizer first"),
    missing(
        "expert_parallel_num_nvl_bytes expert_parallel_token_capacity llama4_linearized_experts",
        "not there",
    ),
    missing("trl vllm ebft diffusion curriculum_sampling", "sampling is a stage of its own: rollout, reward"),
    missing(
        "use_ray ray_num_workers provider node_count gpu gpu_count volumes secrets branch memory timeout "
        "memory_preprocess timeout_preprocess dockerfile_commands",
        "placing jobs is for Slurm, Airflow and their kin: postmill recipe export",
    ),
    missing("do_causal_lm_eval eval_causal_lm_metrics eval_max_new_tokens", "postmill eval asks questions afterwards"),
    missing(
        "lr_quadratic_warmup cosine_constant_lr_ratio cls_model_config "
        "model_config base_model_ignore_patterns streaming full_finetune",
        "not there",
    ),
]
RULES = [*OWN, *TRAINER, *PEFT]
