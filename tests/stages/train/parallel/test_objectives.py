"""Objectives of pairs, samples and classifiers under each form: they see whole bins, whatever part a rank computes."""

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import json  # noqa: E402

import tiny_model  # noqa: E402
from forks import fork_ranks, wait_code  # noqa: E402
from tiny_tokenizer import write_tokenizer  # noqa: E402

from postmill.stages.options import changed, make  # noqa: E402
from postmill.stages.pack.config import STAGE as PACK  # noqa: E402
from postmill.stages.pack.config import Pack  # noqa: E402
from postmill.stages.reward.config import STAGE as REWARD  # noqa: E402
from postmill.stages.reward.config import Reward  # noqa: E402
from postmill.stages.rollout.config import STAGE as ROLLOUT  # noqa: E402
from postmill.stages.rollout.config import Rollout  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.tokenize.config import STAGE as TOKENIZE  # noqa: E402
from postmill.stages.tokenize.config import Tokenize  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.dpo_options import Dpo  # noqa: E402
from postmill.stages.train.objectives.rl_options import Rl  # noqa: E402

OBJECTIVES = {
    "dpo": make(Train, objective=Dpo(), tuner="full"),
    "aot": make(Train, objective=Dpo(loss="aot"), tuner="full"),  # looks at all pairs of the step
    "weighted": make(Train, objective=Dpo(weighting=True), tuner="full"),
    "rm": make(Train, objective="rm", tuner="full"),
    "lora": make(Train, objective=Dpo(), tuner="lora"),
}
FORMS = {"tp": {"tp": 2}, "cp": {"cp": 2}, "cp and shards": {"cp": 2, "shard": "fsdp"}, "pp": {"pp": 2}}
QUICK = {("aot", "cp"), ("rm", "cp"), ("dpo", "pp")}
REFUSED = {("aot", "pp"), ("rm", "pp")}
"""A pipeline computes losses of rows and pairs, of the language model's head."""


def pairs(num_pairs):
    """Chosen and rejected rows."""
    rows = tiny_model.make_rows(2 * num_pairs, longest=16)
    for number, row in enumerate(rows):
        row |= {"pair_id": (number // 2).to_bytes(16, "big"), "side": number % 2, "margin": 0.5}
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("objectives")
    base = tiny_model.write_model(folder / "base", pad_token_id=0)
    tiny_model.write_packed(folder / "packed", base, pairs(12), row_tokens=47)
    given = {"rows": [str(folder / "packed")], "model": [str(base)]}
    run_stage(SCORE, Score(), given, folder / "scores", Options())
    return folder


def run(world, name, target, form):
    cfg = changed(OBJECTIVES[name], bins_per_step=4, steps=3, lr=1e-2, eps=1e-5)
    given = {"packed": [str(world / "packed")], "model": [str(world / "base")], "valid": [str(world / "packed")]}
    if name != "rm":
        given["scores"] = [f"ref={world / 'scores'}", f"valid.ref={world / 'scores'}"]
    if form:
        pids = fork_ranks([changed(cfg, **form)] * 2, given, target)
        assert [wait_code(pid) for pid in pids] == [0, 0]
    elif not target.exists():
        run_stage(STAGE, cfg, given, target, Options(threads=1))
    return [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]


CASES = [
    pytest.param(name, form, id=f"{name}-{form}", marks=[] if (name, form) in QUICK else pytest.mark.slow)
    for name in OBJECTIVES
    for form in FORMS
    if (name, form) not in REFUSED
]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"objective": Dpo(loss="aot")}, "--pp 2 --objective: its loss looks at a step twice"),
        ({"objective": "rm"}, "--pp 2 --objective: its loss looks at a step twice, or at the hidden states"),
        ({"tuner": "adalora"}, "--pp 2 --tuner adalora: its adapters look at all layers"),
        ({"tuner": "lora", "modules_to_save": ["norm"]}, "--pp 2 --lora.modules-to-save"),
        ({"ema": 0.9}, "--pp 2 --ema"),
        ({"router_aux": 0.1}, "--pp 2 --router-aux"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused_before_torch_loads(options, says):
    from postmill.io.errors import ConfigError
    from postmill.stages.train.checks import check_request

    with pytest.raises(ConfigError, match=says):
        check_request(make(Train, pp=2, **options))


@pytest.mark.parametrize(("name", "form"), CASES)
def test_the_same_is_learned(world, tmp_path, name, form):
    one = run(world, name, world / f"one-{name}", {})
    two = run(world, name, tmp_path / "two", FORMS[form])
    for x, y in zip(one, two, strict=True):
        assert x.keys() == y.keys()
        # with the reference it starts from, rewards are 0 but for rounding, and so is which of two is larger
        for key, value in x.items() if name == "rm" else ((k, v) for k, v in x.items() if k != "reward_accuracy"):
            assert y[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-5)


SAMPLED = {
    "grpo": make(Train, objective=Rl(share="seq_mean_token_mean"), tuner="full"),
    "gspo": make(Train, objective=Rl(level="sequence", share="seq_mean_token_mean"), tuner="full"),
    "grpo with lora": make(Train, objective=Rl(), tuner="lora"),
}
RL_FORMS = {**FORMS, "shards": {"shard": "fsdp"}}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Four prompts, three samples of each, and rewards for them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("samples")
    base = tiny_model.write_model(folder / "base", hidden_size=16, vocab_size=263)
    (base / "chat_template.jinja").unlink()
    write_tokenizer(base)
    asks = [{"messages": [{"role": "user", "content": "n" * n}]} for n in range(4)]
    (folder / "asks.jsonl").write_text("".join(json.dumps(ask) + "\n" for ask in asks))
    (folder / "mine.py").write_text("def letters(row):\n    return sum(map(ord, row.output)) % 11 / 10\n")

    def make_artifact(stage, cfg, name, **ports):
        given = {port: [str(folder / path)] for port, path in ports.items()}
        run_stage(stage, cfg, given, folder / name, Options(threads=1))

    make_artifact(TOKENIZE, Tokenize(for_="prompt"), "prompts", data="asks.jsonl", model="base")
    cfg = make(Rollout, samples=3, max_new_tokens=7, temperature=0.7)
    make_artifact(ROLLOUT, cfg, "rollouts", prompts="prompts", policy="base")
    make_artifact(REWARD, Reward(), "rewards", rollouts="rollouts", functions="mine.py:letters")
    make_artifact(PACK, Pack(row_tokens=40), "packed", tokens="rollouts", rewards="rewards")
    return folder


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=[] if (name, form) == ("grpo", "pp") else pytest.mark.slow)
        for name in SAMPLED
        for form in RL_FORMS
    ],
)
def test_the_same_is_learned_from_samples(samples, tmp_path, name, form):
    """Ratios compare with log-probs of the start, which each form computes before the first of three steps."""
    cfg = changed(SAMPLED[name], bins_per_step=4, steps=3, lr=1e-2, eps=1e-5)
    given = {port: [str(samples / folder)] for port, folder in {"packed": "packed", "model": "base"}.items()}
    given |= {"rewards": [str(samples / "rewards")]}
    one = samples / f"one-{name}"
    if not one.exists():
        run_stage(STAGE, cfg, given, one, Options(threads=1))
    pids = fork_ranks([changed(cfg, **RL_FORMS[form])] * 2, given, tmp_path / "two")
    assert [wait_code(pid) for pid in pids] == [0, 0]
    read = [
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, tmp_path / "two")
    ]
    for x, y in zip(*read, strict=True):
        assert x.keys() == y.keys()
        for key, value in x.items():
            assert y[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
