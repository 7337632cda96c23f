"""DeepSpeed's JSON, as ms-swift, LLaMA-Factory and transformers read it: a section [train] for `train ... @ FILE`.

`train --shard zero1|zero2|zero3` is DeepSpeed's own ZeRO: the stage is carried over, where its parts lie, and the few
numbers that change what is learned. Keys of tables are joined by dots.
"""

from collections.abc import Mapping
from typing import Any

from postmill.cli.coming_from.common import bins_per_step, optimizer, warmup
from postmill.cli.coming_from.rule import Rule, carry, missing, needless, number, whole, yes

TASK = "deepspeed"
_AUTO = ("auto",)


def task(_: Mapping[str, Any]) -> str:
    """One section, that of `train`."""
    return TASK


def shard(value: Any, _: Mapping[str, Any]) -> str | None:
    """ZeRO's stage as a word of `--shard`."""
    found = number(value)
    return f"zero{found:.0f}" if found in (1, 2, 3) else None


def place(value: Any, _: Mapping[str, Any]) -> str | None:
    """Where parts are offloaded to; the old switch means main memory."""
    return "cpu" if value is True else str(value) if value in ("cpu", "nvme") else None


def folder(value: Any, config: Mapping[str, Any]) -> str | None:
    """The folder of offloaded parts; templates name one even where nothing is offloaded to it."""
    devices = (config.get(f"zero_optimization.offload_{part}.device") for part in ("optimizer", "param"))
    return str(value) if "nvme" in devices else None


def several(value: Any, _: Mapping[str, Any]) -> int | None:
    """A number of ranks, if it is more than one."""
    found = number(value)
    return int(found) if found and found > 1 else None


def flat(options: Mapping[str, Any], known: Mapping[str, Rule]) -> dict[str, Any]:
    """Keys of tables joined by dots, as far as the rules know them; a table that is switched off is False."""
    members: dict[str, Any] = {}

    def put(name: str, value: Any) -> None:
        if isinstance(value, list) and f"{name}.0" in known:
            for place, item in enumerate(value):
                put(f"{name}.{place}", item)
        elif isinstance(value, dict) and name not in known:
            for key, item in value.items():
                put(f"{name}.{key}", item)
        elif isinstance(value, dict) and (value.get("enabled") is False or not any(value.values())):
            members[name] = False
        else:
            members[name] = value

    for name, value in options.items():
        put(name, value)
    return members


def _under(table: str, names: str) -> str:
    return " ".join(f"{table}.{name}" for name in names.split())


RULES: list[Rule] = [
    carry(
        "zero_optimization.stage",
        "train.shard",
        "with DeepSpeed's own code; --shard fsdp does what zero3 does, and needs no package",
        convert=shard,
    ),
    carry("gradient_clipping", "train.clip", "auto: --clip's default, 1", drop=_AUTO),
    carry("bf16.enabled bfloat16.enabled", "train.dtype", convert=yes("bfloat16"), drop=_AUTO),
    carry("fp16.enabled", "train.dtype", "becomes bfloat16", convert=yes("bfloat16"), drop=_AUTO),
    carry(
        "train_micro_batch_size_per_gpu",
        "train.bins_per_step",
        "times gradient_accumulation_steps; over all processes, so times their number",
        convert=bins_per_step("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
        drop=_AUTO,
    ),
    carry("optimizer.type", "train.optimizer", "its kind", convert=optimizer),
    carry("optimizer.params.lr scheduler.params.warmup_max_lr", "train.lr", drop=_AUTO),
    carry("optimizer.params.betas.0", "train.beta1", drop=_AUTO),
    carry("optimizer.params.betas.1", "train.beta2", drop=_AUTO),
    carry("optimizer.params.eps", "train.eps", drop=_AUTO),
    carry("optimizer.params.weight_decay", "train.weight_decay", drop=_AUTO),
    carry(
        "scheduler.type",
        "train.schedule",
        values={"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"},
    ),
    carry("scheduler.params.warmup_num_steps", "train.warmup", convert=warmup, drop=_AUTO),
    carry("scheduler.params.total_num_steps", "train.steps", convert=whole, drop=_AUTO),
    carry("tensor_parallel.autotp_size", "train.tp", convert=several),
    carry("sequence_parallel_size", "train.cp", convert=several),
    needless("gradient_accumulation_steps train_batch_size", "in train.bins_per_step"),
    needless("optimizer.params.betas optimizer.params.torch_adam optimizer.params.adam_w_mode", "torch's AdamW"),
    needless("scheduler.params.warmup_min_lr scheduler.params.warmup_type", "warm-up is linear, from 0"),
    needless(
        _under("fp16", "auto_cast loss_scale loss_scale_window initial_scale_power hysteresis min_loss_scale"),
        "bfloat16 needs no loss scale",
    ),
    needless(
        _under(
            "zero_optimization",
            "allgather_partitions allgather_bucket_size overlap_comm reduce_scatter reduce_bucket_size"
            " contiguous_gradients sub_group_size round_robin_gradients load_from_fp32_weights elastic_checkpoint"
            " stage3_max_live_parameters stage3_max_reuse_distance stage3_prefetch_bucket_size"
            " stage3_param_persistence_threshold stage3_gather_16bit_weights_on_model_save"
            " stage3_gather_fp16_weights_on_model_save stage3_module_granularity_threshold memory_efficient_linear"
            " ignore_unused_parameters use_all_reduce_for_fetch_params",
        ),
        "how ZeRO moves its parts; whole safetensors are saved in any case",
    ),
    needless(
        "steps_per_print wall_clock_breakdown dump_state zero_allow_untested_optimizer zero_force_ds_cpu_optimizer"
        " flops_profiler comms_logger tensorboard wandb csv_monitor comet memory_breakdown"
        " disable_allgather timers checkpoint dataloader_drop_last seed",
        "how DeepSpeed reports; every step is in metrics.jsonl",
    ),
    needless("communication_data_type prescale_gradients gradient_predivide_factor", "gradients are summed in float32"),
    carry(
        "zero_optimization.offload_optimizer.device zero_optimization.offload_param.device"
        " zero_optimization.cpu_offload zero_optimization.cpu_offload_params",
        "train.offload",
        "one place for both: the optimizer's state, and with zero3 the weights",
        convert=place,
    ),
    carry(
        "zero_optimization.offload_optimizer.nvme_path zero_optimization.offload_param.nvme_path",
        "train.offload_to",
        "where something is offloaded to NVMe",
        convert=folder,
    ),
    *(
        needless(
            _under(
                f"zero_optimization.offload_{part}",
                "pin_memory buffer_count buffer_size max_in_cpu ratio fast_init pipeline pipeline_read pipeline_write",
            ),
            "how it is offloaded",
        )
        for part in ("optimizer", "param")
    ),
    missing(
        _under(
            "zero_optimization",
            "zero_quantized_weights zero_quantized_gradients zero_quantized_nontrainable_weights zeropp_loco_param",
        ),
        "gradients and weights travel unrounded",
    ),
    missing(
        "zero_optimization.zero_hpz_partition_size zero_optimization.mics_shard_size",
        "the nearest is --shard hsdp with --shard-ranks",
    ),
    missing("zero_optimization.mics_hierarchical_params_gather", "not there"),
    missing("activation_checkpointing", "the nearest is --gradient-checkpointing"),
    needless("aio", "how files of --offload nvme are read and written: DeepSpeed's defaults"),
    missing(
        "amp compression_training data_efficiency curriculum_learning elasticity autotuning sparse_attention"
        " sparse_gradients pipeline moe hybrid_engine compile data_types eigenvalue progressive_layer_drop",
        "not there",
    ),
]
