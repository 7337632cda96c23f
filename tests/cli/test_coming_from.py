"""Configs of other tools become recipes that our own parser takes; what is not carried over is said, with its line."""

import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from postmill.cli.chain import read_steps
from postmill.cli.coming_from.read import TOOLS, read_config, rules_of
from postmill.cli.coming_from.write import Imported, check, convert, to_toml
from postmill.cli.flags import resolve
from postmill.cli.loop import read_plan
from postmill.cli.recipe import run
from postmill.cli.stage_command import parse
from postmill.io.errors import ConfigError
from postmill.stages.options import options, short_names
from postmill.stages.table import STAGES

DECLARED = {name: importlib.import_module(f"postmill.stages.{name}.config").STAGE for name in STAGES}
AXOLOTL = """
base_model: org/base
datasets:
  - path: org/chats
    type: chat_template
  - path: ./mine.jsonl
sequence_len: 4096
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 3
learning_rate: 2e-4
lr_scheduler: cosine
optimizer: paged_adamw_8bit
num_epochs: 2
adapter: lora
lora_r: 8
lora_alpha: 16
bf16: auto
"""
FACTORY = """
model_name_or_path: org/base
stage: sft
finetuning_type: lora
lora_target: all
dataset: chats
template: qwen3
cutoff_len: 512
max_samples: 100
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
"""
SWIFT = """
CUDA_VISIBLE_DEVICES=0 swift sft \\
    --model org/base \\
    --tuner_type lora \\
    --dataset 'org/chats#500' mine.jsonl \\
    --torch_dtype bfloat16 \\
    --num_train_epochs 1 \\
    --learning_rate 1e-4 \\
    --lora_rank 8 \\
    --target_modules all-linear \\
    --max_length 2048 \\
    --system 'You are kind.' \\
    --model_author swift \\
    --model_name swift-robot
"""
GRPO = "swift rlhf --rlhf_type grpo --model m --dataset q.jsonl --num_generations 4 --reward_funcs accuracy\n"
TRL = """
model_name_or_path: org/base
dataset_name: org/chats
learning_rate: 2.0e-5
max_length: 1024
packing: true
per_device_train_batch_size: 4
use_peft: true
lora_r: 4
"""


def imported(tmp_path: Path, name: str, text: str, tool: str = "") -> tuple[Imported, dict[str, Any]]:
    """A config as a recipe, which the real parser takes."""
    path = tmp_path / name
    path.write_text(text.lstrip("\n"))
    made = check(convert(read_config(path, tool)[0]), DECLARED)
    recipe = tmp_path / "made.toml"
    recipe.write_text(to_toml(made, name))
    settings = {"model": ["base"], "data": ["d.jsonl"]} | (
        {} if "functions" in made.sections.get("reward", {"functions": ""}) else {"reward.functions": ["math"]}
    )
    read_steps(recipe, settings, tmp_path / "out", besides=("loop",))
    assert len(made.lines) == len({line.name for line in made.lines}), "every option once"
    return made, tomllib.loads(recipe.read_text())


@pytest.mark.parametrize(
    ("name", "text", "task", "wanted"),
    [
        (
            "a.yml",
            AXOLOTL,
            "sft",
            {
                "model": "org/base",
                "data": ["hf:org/chats", "./mine.jsonl"],
                "pack.row_tokens": 4096,
                "train.bins_per_step": 6,
                "train.lr": 2e-4,
                "train.optimizer": "adamw",
                "train.epochs": 2,
                "train.rank": 8,
            },
        ),
        (
            "b.yml",
            AXOLOTL + "val_set_size: 0.1\ntrain_on_inputs: true\n",
            "sft",
            {
                "tokenize.loss_scale": "all",
                "tokenize-valid.split": "validation",
                "tokenize-valid.val_ratio": 0.1,
                "train.valid": "pack-valid",
            },
        ),
        ("c.yml", AXOLOTL + "rl: dpo\nrl_beta: 0.2\n", "dpo", {"train.beta": 0.2, "train.scores": ["ref=score"]}),
        (
            "full.yml",
            AXOLOTL.replace("adapter: lora\n", "")
            + "revision_of_model: abc\ndp_shard_size: 2\ndp_replicate_size: 2\neta_min: 2e-5\n",
            "sft",
            {"model": "org/base@abc", "train.tuner": "full", "train.shard": "hsdp", "train.min_lr": 0.1},
        ),
        (
            "lisa.yml",
            AXOLOTL.replace("adapter: lora\n", "") + "lisa_n_layers: 4\nlisa_step_interval: 20\n",
            "sft",
            {"train.tuner": "lisa", "train.layers": 4, "train.every": 20},
        ),
        ("q.yml", AXOLOTL + "load_in_4bit: true\n", "sft", {"train.quant": "nf4"}),
        ("d.yml", AXOLOTL + "rl: orpo\norpo_alpha: 0.3\n", "orpo", {"train.objective": "orpo", "train.beta": 0.3}),
        ("a.yaml", FACTORY, "sft", {"data": ["data/chats.json#100"], "train.bins_per_step": 8, "train.epochs": 3}),
        (
            "b.yaml",
            FACTORY.replace("stage: sft", "stage: dpo") + "pref_beta: 0.3\npref_loss: simpo\nsimpo_gamma: 0.7\n",
            "simpo",
            {"train.objective": "simpo", "train.beta": 0.3, "train.gamma": 0.7},
        ),
        (
            "c.yaml",
            FACTORY.replace("stage: sft", "stage: pt").replace("finetuning_type: lora", "finetuning_type: full"),
            "pt",
            {"train.tuner": "full", "tokenize.truncation": "split"},
        ),
        (
            "d.yaml",
            "model: org/base\npeft_config:\n  name: lora\n  r: 4\n  lora_alpha: 8\n"
            "train_dataset: data/x.yaml\ncutoff_len: 64\n",
            "sft",
            {"train.tuner": "lora", "train.rank": 4, "train.alpha": 8},
        ),
        (
            "merge.yaml",
            "model_name_or_path: org/base\nadapter_name_or_path: saves/sft\ntemplate: qwen3\nexport_dir: out\n",
            "export",
            {"model": "org/base", "merge.parts": ["saves/sft"]},
        ),
        (
            "galore.yaml",
            FACTORY.replace("finetuning_type: lora", "finetuning_type: full")
            + "use_galore: true\ngalore_rank: 128\ngalore_scale: 2.0\npipeline_model_parallel_size: 2\n",
            "sft",
            {"train.optimizer": "galore", "train.galore.rank": 128, "train.galore.scale": 2.0, "train.pp": 2},
        ),
        (
            "badam.yaml",
            FACTORY.replace("finetuning_type: lora", "finetuning_type: full")
            + "use_badam: true\nbadam_switch_mode: ascending\nbadam_switch_interval: 50\n",
            "sft",
            {"train.tuner": "badam", "train.order": "ascending", "train.every": 50},
        ),
        (
            "trl.sh",
            "# as their README has it\naccelerate launch trl/scripts/dpo.py \\\n    --model_name_or_path org/base \\\n"
            "    --dataset_name org/pairs --learning_rate 5.0e-7 --beta 0.2 --use_peft --lora_r 16\n",
            "dpo",
            {"data": ["hf:org/pairs"], "train.beta": 0.2, "train.tuner": "lora", "train.rank": 16},
        ),
        (
            "megatron.sh",
            "megatron sft --model org/moe --use_hf true --dataset o/d --tuner_type full --expert_model_parallel_size 8"
            " --pipeline_model_parallel_size 1 --micro_batch_size 1\n",
            "sft",
            {"train.tuner": "full", "train.ep": 8},
        ),
        ("full.sh", "trl sft --model_name_or_path org/base --dataset_name o/d\n", "sft", {"train.tuner": "full"}),
        (
            "a.sh",
            SWIFT,
            "sft",
            {
                "model": "ms:org/base",
                "data": ["ms:org/chats#500", "mine.jsonl"],
                "tokenize.system": "You are kind.",
                "tokenize.model_name": "swift-robot",
                "train.dtype": "bfloat16",
            },
        ),
        (
            "b.sh",
            SWIFT.replace("swift sft", "swift rlhf --rlhf_type kto") + "",
            "kto",
            {"train.objective": "kto", "train.scores": ["ref=score", "kl=score-mismatched"]},
        ),
        (
            "c.sh",
            "swift rlhf --rlhf_type grpo --model m --num_generations 6 --max_completion_length 99 --use_hf true \\\n"
            "  --reward_funcs accuracy format --dataset 'o/d'\n",
            "grpo",
            {
                "data": ["hf:o/d"],
                "rollout.samples": 6,
                "rollout.max_new_tokens": 99,
                "reward.functions": ["math", "format"],
                "prompts.for": "prompt",
                # what ms-swift does where the command says nothing
                "train.share": "seq_mean_token_mean",
                "train.clip_high": 0.2,
                "train.kl_coef": 0.04,
                "train.scores": ["ref=reference"],
            },
        ),
        (
            "grpo.sh",
            "swift rlhf --rlhf_type grpo --model m --dataset q.jsonl --num_generations 8 --beta 0 --loss_type dapo"
            " --per_device_train_batch_size 4 --gradient_accumulation_steps 8 --num_iterations 2 --epsilon 0.1"
            " --epsilon_high 0.3 --importance_sampling_level sequence --overlong_filter true --dynamic_sample true"
            " --soft_max_length 900 --use_vllm true --max_steps 50 --rollout_importance_sampling_mode token_mask\n",
            "grpo",
            {
                "loop.prompts": 4,
                "loop.rounds": 50,
                "train.epochs": 2,
                "train.clip_low": 0.1,
                "train.clip_high": 0.3,
                "train.share": "token_mean",
                "train.level": "sequence",
                "train.mismatch": "token_mask",
                "train.rewards": "reward",
                "pack.rewards": "reward",
                "reward.keep": "mixed",
                "reward.overlong": "drop",
                "reward.max_answer_tokens": 900,
                "rollout.engine": "vllm",
            },
        ),
        (
            "grpo.yaml",
            TRL + "num_generations: 4\ngeneration_batch_size: 64\nloss_type: dr_grpo\nmax_completion_length: 300\n"
            "scale_rewards: none\ntop_p: 0.9\ntop_entropy_quantile: 0.2\nmask_truncated_completions: true\n",
            "grpo",
            {
                "loop.prompts": 16,
                "train.share": "seq_mean_token_sum_norm",
                "train.max_tokens": 300,
                "train.entropy_quantile": 0.2,
                "train.mismatch": "none",
                "reward.advantage": "group_mean",
                "reward.overlong": "drop",
                "rollout.top_p": 0.9,
            },
        ),
        (
            "gptq.sh",
            "swift export --model m --quant_method gptq --quant_bits 4 --dataset c.jsonl --quant_n_samples 64"
            " --max_length 512\n",
            "export",
            {
                "quantize.method": "gptq",
                "quantize.layout": "gptq",
                "quantize.scheme": "w4a16",
                "quantize.rows": "tokenize",
                "quantize.calibration_tokens": 64 * 512,
            },
        ),
        (
            "d.sh",
            "swift export --adapters out/ckpt --merge_lora true --quant_bits 4\n",
            "export",
            {"quantize.scheme": "w4a16"},
        ),
        ("e.yaml", TRL, "sft", {"train.tuner": "lora", "train.rank": 4, "tokenize.max_length": 1024}),
        ("f.yaml", TRL + "beta: 0.5\nloss_type: [sigmoid, ipo]\n", "dpo", {"train.dpo.loss": "sigmoid,ipo"}),
        ("g.yaml", TRL + "chat_template_path: t.jinja\ndesirable_weight: 2\n", "kto", {"tokenize.template": "t.jinja"}),
    ],
)
def test_a_config_becomes_a_recipe(tmp_path: Path, name: str, text: str, task: str, wanted: dict[str, Any]) -> None:
    made, recipe = imported(tmp_path, name, text)
    assert made.task == task
    for path, value in wanted.items():
        section, _, option = path.partition(".")
        found = recipe[section]
        for part in option.split(".") if option else ():
            found = found[part]
        assert found == value, path
    assert not made.count("unknown"), [line for line in made.lines if line.status == "unknown"]


# the shape of the files that ms-swift and LLaMA-Factory bring: everything auto but ZeRO itself
ZERO = {
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "none", "pin_memory": True},
        "offload_param": {"device": "none", "pin_memory": True},
        "overlap_comm": False,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def test_deepspeed_s_json_becomes_options_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files in which all is auto carry the stage alone; own numbers are carried; what would be ignored is refused."""
    path, recipe = tmp_path / "zero3.json", tmp_path / "zero3.toml"
    path.write_text(json.dumps(ZERO))
    assert run(["import", str(path), "--strict"]) == 0
    recipe.write_text(capsys.readouterr().out)
    assert {k: v for k, v in tomllib.loads(recipe.read_text()).items() if v} == {"train": {"shard": "zero3"}}
    stage = DECLARED["train"]
    given = parse(stage, ["packed/", "-m", "base/", "-o", "run/", "@", str(recipe)])
    assert resolve(stage.config, given.said, "train").parallel.shard == "zero3"

    numbers = {
        "gradient_clipping": 0.5,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-5, "betas": [0.8, 0.99], "eps": 1e-7, "weight_decay": 0.2}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 10, "total_num_steps": 100}},
    }
    path.write_text(json.dumps(ZERO | numbers))
    assert run(["import", str(path), "--strict"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["train"] == {
        "shard": "zero3",
        "clip": 0.5,
        "bins_per_step": 8,
        "optimizer": "adamw",
        "lr": 3e-5,
        "beta1": 0.8,
        "beta2": 0.99,
        "eps": 1e-7,
        "weight_decay": 0.2,
        "schedule": "linear",
        "warmup": 10,
        "steps": 100,
    }

    zero = ZERO["zero_optimization"]
    assert isinstance(zero, dict)
    place = {"device": "nvme", "nvme_path": "/fast", "pin_memory": True, "buffer_count": 4}
    offloaded = {
        "zero_optimization": zero | {"offload_optimizer": place, "offload_param": place},
        "aio": {"thread_count": 2},
    }
    path.write_text(json.dumps(ZERO | offloaded))
    assert run(["import", str(path), "--strict"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["train"] == {
        "shard": "zero3",
        "offload": "nvme",
        "offload_to": "/fast",
    }

    ignored = {"zero_optimization": zero | {"zero_quantized_weights": True}}
    path.write_text(json.dumps(ZERO | ignored | {"nonsense": {"deep": 1}}, indent=1))
    assert run(["import", str(path), "--strict"]) == 1
    said = capsys.readouterr().err
    for name in ("zero_quantized_weights", "nonsense.deep"):
        assert name in said


def test_what_is_not_carried_over_is_said_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yml"
    path.write_text("base_model: b\nsequence_len: 64\nreinit_weights: 2\nlora_rr: 3\nlearning_rate: high\nrelora:\n")
    assert run(["import", str(path), "--strict"]) == 1
    out, err = capsys.readouterr()
    assert f"{path}:3: reinit_weights: not there; tuners are adapters, or all weights" in err
    assert f"{path}:4: lora_rr: no option of axolotl that is known here; did you mean lora_r?" in err
    assert f"{path}:5: learning_rate:" in err and "relora: needless; off here too" in err
    assert "# not carried over: reinit_weights = 2" in out
    assert "lr" not in tomllib.loads(out)["train"]


def test_a_file_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    for name, text, words in (
        ("x.yml", "a: 1\n", "cannot tell whose config this is"),
        ("x.sh", "echo hello\n", "no command of ms-swift or TRL in it"),
        ("y.yml", "", "no options in it"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_config(tmp_path / name)
    with pytest.raises(ConfigError, match="did you mean axolotl"):
        run(["import", "x.yml", "--of", "axolotel"])


@pytest.mark.parametrize("tool", TOOLS)
def test_every_rule_leads_to_an_option_that_exists(tool: str) -> None:
    known: set[str] = {"model", "data", "output"}
    for name, stage in DECLARED.items():
        for section in {name, "prompts" if name == "tokenize" else name}:
            known |= {f"{section}.{port}" for port in stage.inputs}
            base = options(stage.config)
            known |= {f"{section}.{short}" for short in short_names(base)}
            for path, option in base.items():
                for picked in option.choice.table if option.choice else ():
                    known |= {f"{section}.{short}" for short in short_names(options(stage.config, {path: picked}))}
    lost = {rule.ours for rule in rules_of(tool).values() if rule.ours} - known
    assert not lost
    assert all(rule.ours or rule.note for rule in rules_of(tool).values())


def test_texts_survive_toml(tmp_path: Path) -> None:
    hostile = 'a "b" \\ \n[pack]\nrow_tokens = 1 \u2028 é'
    text = f"base_model: b\nsequence_len: 64\nadapter: lora\ndatasets: [{{path: {json.dumps('./' + hostile)}}}]\n"
    _, recipe = imported(tmp_path, "x.yml", text)
    assert recipe["data"] == ["./" + hostile] and recipe["pack"]["row_tokens"] == 64


def test_frozen_parts_are_named_and_sizes_of_pictures_are_said_to_be_missing(tmp_path: Path) -> None:
    text = "swift sft --model org/vlm --tuner_type {} --dataset x.jsonl --freeze_vit true --freeze_aligner true"
    for tuner, frozen in (("full", ["vision", "projector"]), ("lora", None)):
        script = text.format(tuner) + " --freeze_llm false --max_pixels 100000\n"
        made, recipe = imported(tmp_path, f"{tuner}.sh", script)
        assert recipe["train"].get("freeze") == frozen
        assert {line.name: line.status for line in made.lines}["max_pixels"] == "missing"


@pytest.mark.parametrize("text", [GRPO, TRL + "num_generations: 4\nbeta: 0.1\n"], ids=["ms-swift", "trl"])
def test_an_imported_grpo_is_a_loop_that_can_be_planned(tmp_path: Path, text: str) -> None:
    name = "g.sh" if text.startswith("swift") else "g.yaml"
    made, recipe = imported(tmp_path, name, text)
    assert made.task == "grpo"
    (tmp_path / "loop.toml").write_text(to_toml(made, name))
    settings = {"model": ["base"], "data": ["q.jsonl"], "reward.functions": ["math"]}
    plan = read_plan(tmp_path / "loop.toml", settings, tmp_path / "out")
    assert [step.stage.name for step in plan.rounds] == ["rollout", "score", "reward", "pack", "train"]
    assert [step.name for step in plan.scores] == ["reference"]
    assert recipe["loop"]["prompts"] >= 1
