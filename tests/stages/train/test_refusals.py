"""Options that do not go together end in one line that names both, before torch loads."""

import pytest

from postmill.io.errors import ConfigError
from postmill.stages.options import make
from postmill.stages.protocol import Input
from postmill.stages.train.checks import check_request, check_watched
from postmill.stages.train.config import Train

PROMPTS = Input("sample_prompts", "file", "", "asked.jsonl", None)
TOGETHER = [
    ({"tp": 2, "tuner": "boft"}, ("--tp 2", "--tuner boft")),
    ({"tp": 2, "optimizer": "galore"}, ("--tp 2", "--optimizer galore")),
    ({"shard": "fsdp", "optimizer": "q-galore"}, ("--shard fsdp", "--optimizer q-galore")),
    ({"shard": "fsdp", "tuner": "prompt-tuning"}, ("--shard", "--tuner prompt-tuning")),
    ({"shard": "fsdp", "tuner": "adapter"}, ("--shard", "--tuner adapter")),
    ({"cp": 2, "tuner": "reft"}, ("--cp", "--tuner reft")),
    ({"tuner": "res-tuning", "gradient_checkpointing": True}, ("--tuner res-tuning", "--gradient-checkpointing")),
    ({"ema": 0.9, "optimizer": "schedule-free"}, ("--ema 0.9", "--optimizer schedule-free")),
    ({"quant": "nf4", "tp": 2}, ("--quant nf4", "--tp")),
    ({"quant": "int8", "shard": "fsdp"}, ("--quant int8", "--shard")),
    ({"pp": 2, "ema": 0.9}, ("--pp 2", "--ema")),
    ({"pp": 2, "router_aux": 0.1}, ("--pp 2", "--router-aux")),
    ({"pp": 2, "modules_to_save": ["lm_head"]}, ("--pp 2", "--lora.modules-to-save")),
    ({"pp": 2, "tuner": "lokr"}, ("--pp 2", "--tuner lokr")),
    ({"pp": 2, "objective": "embedding"}, ("--pp 2", "--objective")),
]
IN_A_STRUCT = [
    ({"min_lr": 0.1, "schedule": "constant"}, ("min_lr", "schedule constant")),
    ({"keep_best": 2}, ("keep_best", "valid_every")),
    ({"patience": 2}, ("patience", "valid_every")),
    ({"micro_bins": 3, "bins_per_step": 8}, ("micro_bins 3", "bins_per_step 8")),
    ({"init": "pissa", "dora": True}, ("init pissa", "dora")),
    ({"init": "loftq", "dora": True}, ("init loftq", "dora")),
    ({"init": "eva", "parameters": ["mlp.experts.down_proj"]}, ("init eva", "parameters")),
    ({"parameters": ["mlp.experts.down_proj"], "dropout": 0.1}, ("parameters", "dropout")),
]
WATCHED = [
    ({"row_losses": True, "objective": "rm"}, None, ("--row-losses", "--objective rm")),
    ({"sample_every": 5}, None, ("--sample-every 5", "--sample-prompts")),
    ({"valid_every": 5}, None, ("--valid-every 5", "--valid,")),
    ({"objective": "seq_cls"}, PROMPTS, ("--sample-prompts", "--objective seq_cls")),
    ({"tuner": "p-tuning"}, PROMPTS, ("--sample-prompts", "--tuner p-tuning")),
    ({"shard": "fsdp"}, PROMPTS, ("--sample-prompts", "--shard")),
]


@pytest.mark.parametrize(("options", "names"), TOGETHER, ids=str)
def test_what_does_not_go_together_is_named(options, names):
    with pytest.raises(ConfigError) as error:
        check_request(make(Train, **options))
    one_line_with(error, names)


@pytest.mark.parametrize(("options", "names"), IN_A_STRUCT, ids=str)
def test_what_a_group_of_options_refuses_is_named(options, names):
    with pytest.raises(ValueError) as error:  # what it says is checked below
        make(Train, **options)
    one_line_with(error, names)


@pytest.mark.parametrize(("options", "prompts", "names"), WATCHED, ids=str)
def test_what_cannot_be_watched_is_named(options, prompts, names):
    with pytest.raises(ConfigError) as error:
        check_watched(make(Train, **options), prompts, has_valid=False)
    one_line_with(error, names)


def one_line_with(error, names):
    said = str(error.value)
    assert "\n" not in said
    for name in names:
        assert name in said
