"""Models into one: against plain formulas on whole tensors, mergekit's own results, and laws that need neither."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from adapters import LLAMA, far_apart, load, logits, merge, save_base, tensors  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.stages.merge.config import STAGE, Merge  # noqa: E402
from postmill.stages.merge.mix import options  # noqa: E402
from postmill.stages.merge.mix.methods import RULES  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402

MERGEKIT = Path(__file__).with_name("mergekit.safetensors")
TENSOR = "model.layers.1.self_attn.k_proj.weight"


def mix(parts: list[Path], out: Path, base: Path | None = None, threads: int = 2, **given: Any) -> dict[str, Any]:
    inputs = {"parts": [str(p) for p in parts]} | ({"model": [str(base)]} if base else {})
    return run_stage(STAGE, make(Merge, **given), inputs, out, Options(threads=threads)).manifest.metrics


def tuned(base: Path, path: Path, seed: int) -> Path:
    """A model near the base: every tensor moved at random, in the base's dtype."""
    generator = torch.Generator().manual_seed(seed)
    shutil.copytree(base, path)
    moved = {
        name: (t.float() + torch.randn(t.shape, generator=generator) * 0.05).to(t.dtype) if t.is_floating_point() else t
        for name, t in tensors(base).items()
    }
    save_file(moved, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A base and three models tuned from it, bfloat16, four layers."""
    folder = tmp_path_factory.mktemp("models")
    config = transformers.LlamaConfig(tie_word_embeddings=False, **(LLAMA | {"num_hidden_layers": 4}))
    base = save_base(folder / "base", config, "bfloat16")
    return base, [tuned(base, folder / name, seed) for seed, name in enumerate("abc")]


# Plain formulas, on whole tensors


def by_size(delta: Any, count: int) -> Any:
    """True for the `count` largest, the first of equal ones."""
    order = np.argsort(-np.abs(delta).reshape(-1), kind="stable")
    mask = np.zeros(delta.size, bool)
    mask[order[:count]] = True
    return mask.reshape(delta.shape)


def ties(base: Any, parts: list[Any], masks: list[Any], weights: list[float], *, elect: bool, normalize: bool) -> Any:
    deltas = np.stack([(p - base) * m * np.float32(w) for p, m, w in zip(parts, masks, weights, strict=True)])
    counts = np.ones_like(deltas, bool)
    if elect:
        counts = np.sign(deltas) == np.where(deltas.sum(axis=0) >= 0, 1, -1)
    total = (deltas * counts).sum(axis=0)
    if normalize:
        divisor = (np.array(weights, np.float32).reshape(-1, *[1] * base.ndim) * counts).sum(axis=0)
        total = total / np.where(divisor == 0, np.float32(1), divisor)
    return base + total


def plain_linear(base: Any, parts: list[Any]) -> Any:
    weights = np.array([0.7, 0.3, 0.5], np.float32)
    total = np.zeros_like(parts[0])
    for weight, part in zip(weights, parts, strict=True):
        total += weight * part
    return total / (np.float32(0.7) + np.float32(0.3) + np.float32(0.5))


def plain_slerp(base: Any, parts: list[Any]) -> Any:
    a, b = (part.astype(np.float64).reshape(-1) for part in parts[:2])
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    first, second = np.sin(0.7 * angle) / np.sin(angle), np.sin(0.3 * angle) / np.sin(angle)
    return np.float32(first) * parts[0] + np.float32(second) * parts[1]


def plain_stock(base: Any, parts: list[Any]) -> Any:
    deltas = [(part - base).astype(np.float64).reshape(-1) for part in parts]
    pairs = [(0, 1), (0, 2), (1, 2)]
    cos = np.mean([deltas[i] @ deltas[j] / np.linalg.norm(deltas[i]) / np.linalg.norm(deltas[j]) for i, j in pairs])
    t = np.float32(3 * cos / (1 + 2 * cos))
    mean = (parts[0] + parts[1] + parts[2]) / np.float32(3)
    return t * mean + (1 - t) * base


def plain_ties(base: Any, parts: list[Any]) -> Any:
    masks = [by_size(p - base, max(1, int(d * base.size))) for p, d in zip(parts, (0.5, 0.2, 0.9), strict=True)]
    return ties(base, parts, masks, [0.7, 0.3, 0.5], elect=True, normalize=True)


def plain_breadcrumbs(base: Any, parts: list[Any]) -> Any:
    size = base.size
    kept, top = int(0.5 * size), int(0.1 * size)
    bottom = max(0, size - kept - top)
    masks = [by_size(p - base, size - bottom) & ~by_size(p - base, size - bottom - kept) for p in parts]
    return ties(base, parts, masks, [1, 1, 1], elect=False, normalize=False)


def plain_task(base: Any, parts: list[Any]) -> Any:
    deltas = np.stack([(p - base) * np.float32(w) for p, w in zip(parts, (0.7, 0.3, 0.5), strict=True)])
    return base + deltas.sum(axis=0) * np.float32(0.8)


PLAIN: dict[str, tuple[Any, int, bool, dict[str, Any]]] = {
    "linear": (plain_linear, 3, False, {"weight": "0.7,0.3,0.5"}),
    "slerp": (plain_slerp, 2, False, {"t": "0.3"}),
    "model_stock": (plain_stock, 3, True, {}),
    "task_arithmetic": (plain_task, 3, True, {"weight": "0.7,0.3,0.5", "lambda": 0.8}),
    "ties": (plain_ties, 3, True, {"weight": "0.7,0.3,0.5", "density": "0.5,0.2,0.9"}),
    "breadcrumbs": (plain_breadcrumbs, 3, True, {"density": "0.5", "gamma": "0.1"}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_bits_of_the_plain_formula_in_float32_rounded_once(
    tmp_path: Path, models: tuple[Path, list[Path]], name: str
) -> None:
    base, parts = models
    formula, count, needs_base, given = PLAIN[name]
    metrics = mix(parts[:count], tmp_path / "out", base if needs_base else None, method=name, **given)
    assert metrics["method"] == name and metrics["num_mixed"] == metrics["num_tensors"]
    stored = [tensors(folder) for folder in (base, *parts[:count])]
    for tensor, found in tensors(tmp_path / "out").items():
        origin, *others = (one[tensor].float().numpy() for one in stored)
        wanted = torch.from_numpy(np.asarray(formula(origin, others), np.float32)).to(torch.bfloat16)
        assert found.dtype == torch.bfloat16 and torch.equal(found, wanted), tensor
    assert load(tmp_path / "out") is not None


MERGEKITS: dict[str, tuple[str, list[str], bool, dict[str, Any]]] = {
    "linear": ("linear", ["a", "b", "c"], False, {"weight": "0.7,0.3,0.2"}),
    "linear over layers": ("linear", ["a", "b"], False, {"weight": "1:0,0:0.5:1"}),
    "slerp": ("slerp", ["a", "b"], False, {"t": "0:0.5:1", "rule": ["mlp t=0.2"]}),
    "task_arithmetic": ("task_arithmetic", ["a", "b"], True, {"weight": "0.7,0.3", "lambda": 0.8}),
    "ties": ("ties", ["a", "b", "c"], True, {"weight": "0.7,0.6,0.5", "density": "0.5,0.3,0.4"}),
    "ties rescaled": (
        "ties", ["a", "b", "c"], True,
        {"weight": "0.7,0.6,0.5", "density": "0.5,0.3,0.4", "normalize": False, "rescale": "l1"},
    ),
    "breadcrumbs": (
        "breadcrumbs", ["a", "b", "c"], True,
        {"weight": "0.7,0.6,0.5", "density": "0.5,0.3,0.4", "gamma": "0.05"},
    ),
    "breadcrumbs_ties": (
        "breadcrumbs_ties", ["a", "b", "c"], True,
        {"weight": "0.7,0.6,0.5", "density": "0.5,0.3,0.4", "gamma": "0.05"},
    ),
    "model_stock": ("model_stock", ["a", "b", "c"], True, {}),
    "dare_ties": ("dare_ties", ["a", "b", "c"], True, {"weight": "0.7,0.6,0.5"}),
}  # fmt: skip


def one_tensor(path: Path, tensor: Any, num_layers: int = 3, **config: Any) -> Path:
    """A folder that holds one tensor: all that mixing looks at."""
    path.mkdir()
    settings = {"model_type": "llama", "num_hidden_layers": num_layers, "tie_word_embeddings": False} | config
    (path / "config.json").write_text(json.dumps(settings))
    save_file({TENSOR: tensor.contiguous()}, path / "model.safetensors")
    return path


@pytest.mark.parametrize("name", MERGEKITS)
def test_equals_mergekit(tmp_path: Path, name: str) -> None:
    """Its results, kept, with their origin in the file. Its norms are float32, ours float64: a last bit may differ."""
    kept = load_file(MERGEKIT)
    method, parts, needs_base, given = MERGEKITS[name]
    folders = {part: one_tensor(tmp_path / part, kept[part]) for part in [*parts, "base"]}
    base = folders["base"] if needs_base else None
    mix([folders[part] for part in parts], tmp_path / "out", base, method=method, **given)
    assert far_apart(tensors(tmp_path / "out")[TENSOR], kept[name]) < 3e-7


# Laws


@pytest.mark.parametrize("method", ["linear", "ema", "slerp", "ties", "model_stock", "passthrough"])
def test_a_model_with_itself_is_itself(tmp_path: Path, models: tuple[Path, list[Path]], method: str) -> None:
    base, (one, *_) = models
    count = 1 if method == "passthrough" else 2
    needs_base = method in ("ties", "model_stock")
    mix([one] * count, tmp_path / "out", base if needs_base else None, method=method)
    before = tensors(one)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(tmp_path / "out").items())


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_changes_are_kept_at_the_density_and_gain_their_sum_back(tmp_path: Path, method: str) -> None:
    torch.manual_seed(4)
    base, change = torch.randn(400, 300), torch.randn(400, 300) * 0.1
    folders = [one_tensor(tmp_path / n, t) for n, t in (("base", base), ("a", base + change))]
    mix(folders[1:], tmp_path / "out", folders[0], method=method, density="0.3")
    found = tensors(tmp_path / "out")[TENSOR] - base
    kept = found.abs() > 1e-6
    assert abs(float(kept.float().mean()) - 0.3) < 0.01
    delta = (base + change) - base
    factor = delta.abs().double().sum() / (delta.abs().double() * kept).sum()
    assert far_apart(found, delta * kept * factor) < 1e-5
    if method.startswith("della"):  # larger ones are kept more often
        large = delta.abs() > delta.abs().median()
        assert float(kept[large].float().mean()) > float(kept[~large].float().mean()) + 0.1
    mix(folders[1:], tmp_path / "paper", folders[0], method=method, density="0.3", rescale="density")
    assert far_apart(tensors(tmp_path / "paper")[TENSOR] - base, delta * kept / 0.3) < 1e-5
    mix(folders[1:], tmp_path / "seed", folders[0], method=method, density="0.3", seed=1)
    assert not torch.equal(tensors(tmp_path / "seed")[TENSOR], tensors(tmp_path / "out")[TENSOR])


@pytest.mark.parametrize("method", ["slerp", "ties", "dare_ties", "della", "breadcrumbs", "model_stock"])
def test_threads_and_blocks_change_no_byte(
    tmp_path: Path, models: tuple[Path, list[Path]], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from postmill.stages.merge.mix import group

    base, parts = models
    given: dict[str, Any] = {"method": method}
    if method not in ("slerp", "model_stock"):
        given["density"] = "0.4"
    base_or_none = None if method == "slerp" else base
    mix(parts[:2], tmp_path / "one", base_or_none, threads=1, **given)
    monkeypatch.setattr(group, "BLOCK_ELEMENTS", 332)  # divides neither rows nor tensors
    mix(parts[:2], tmp_path / "many", base_or_none, threads=7, **given)
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_equal_changes_are_kept_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All changes are of one size: the first third is kept, over the edges of blocks."""
    from postmill.stages.merge.mix import group

    monkeypatch.setattr(group, "BLOCK_ELEMENTS", 7)
    base = torch.zeros(9, 10)
    folders = [one_tensor(tmp_path / n, t) for n, t in (("base", base), ("a", torch.ones(9, 10)))]
    mix(folders[1:], tmp_path / "out", folders[0], method="ties", density="0.34")
    assert tensors(tmp_path / "out")[TENSOR].reshape(-1).tolist() == [1.0] * 30 + [0.0] * 60


def test_ema_weighs_the_newest_most(tmp_path: Path) -> None:
    folders = [one_tensor(tmp_path / str(n), torch.full((2, 2), float(n))) for n in range(3)]
    mix(folders, tmp_path / "out", method="ema", beta=0.5)
    wanted = (0 * 0.25 + 1 * 0.5 + 2 * 1) / 1.75
    assert far_apart(tensors(tmp_path / "out")[TENSOR], torch.full((2, 2), wanted)) < 1e-6


def test_anchors_run_over_the_layers_and_rules_over_names() -> None:
    from postmill.stages.merge.mix.settings import depth_of, parse_rule, parse_setting, values_of

    settings = {"t": parse_setting("0:0.5:1"), "weight": parse_setting("1:0,2")}
    rules = [parse_rule("mlp t=0.3"), parse_rule("layers.2. weight=5,6")]

    def at(name: str) -> Any:
        return values_of(name, 2, depth_of(name, 5), settings, rules)

    assert [at(f"model.layers.{n}.q.weight")["t"][0] for n in (0, 1, 3, 4)] == [0, 0.25, 0.75, 1]
    assert at("lm_head.weight")["t"] == [0, 0]
    assert at("model.layers.1.q.weight")["weight"] == [0.75, 2]
    assert at("model.layers.1.mlp.up.weight") == {"t": [0.3, 0.3], "weight": [0.75, 2]}
    assert at("model.layers.2.q.weight")["weight"] == [5, 6]


def test_layers_of_several_models_in_a_row(tmp_path: Path, models: tuple[Path, list[Path]]) -> None:
    """The first two layers of one, then the last three of another: as a model built of these layers computes."""
    _, (one, other, _) = models
    given: dict[str, Any] = {"method": "passthrough", "layers": ["0:0-2", "1:1-4"]}
    mix([one, other], tmp_path / "out", dtype="float32", **given)
    left, right = load(one), load(other)
    left.model.layers = torch.nn.ModuleList([*left.model.layers[:2], *right.model.layers[1:]])
    for number, layer in enumerate(left.model.layers):
        layer.self_attn.layer_idx = number
    left.model.norm, left.lm_head, left.config.num_hidden_layers = right.model.norm, right.lm_head, 5
    assert far_apart(logits(load(tmp_path / "out")), logits(left)) < 1e-5
    with pytest.raises(ConfigError, match="--layers 1:1-9: the model has 4 layers"):
        mix([one, other], tmp_path / "no", method="passthrough", layers=["1:1-9"])
    with pytest.raises(ConfigError, match="takes 1 model, got 2; say which layers of each with --layers"):
        mix([one, other], tmp_path / "no", method="passthrough")
    wide = save_base(tmp_path / "wide", transformers.LlamaConfig(**(LLAMA | {"hidden_size": 40})))
    with pytest.raises(ArtifactError, match=r"hidden_size is 40, in .* 32; layers of models of other sizes"):
        mix([one, wide], tmp_path / "no", method="passthrough", layers=["0:0-1", "1:0-1"])
    with pytest.raises(ValueError, match="layers '0:3-3': expected model:from-to"):
        make(Merge, method="passthrough", layers=["0:3-3"])


def test_lists_of_one_item_a_layer_follow_the_layers(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    folders = [one_tensor(tmp_path / n, torch.ones(2, 2), layer_types=kinds) for n in "ab"]
    mix(folders, tmp_path / "out", method="passthrough", layers=["0:0-2", "1:1-3"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    assert config["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert sorted(tensors(tmp_path / "out")) == [TENSOR, TENSOR.replace(".1.", ".2.")]


# What does not fit


def test_tied_and_untied_heads(tmp_path: Path) -> None:
    tied = save_base(tmp_path / "tied", transformers.LlamaConfig(tie_word_embeddings=True, **LLAMA))
    untied = save_base(tmp_path / "untied", transformers.LlamaConfig(tie_word_embeddings=False, **LLAMA))
    assert not mix([tied, tied], tmp_path / "both")["untied"]
    assert mix([tied, untied], tmp_path / "one")["untied"]
    found, left, right = tensors(tmp_path / "one"), tensors(tied), tensors(untied)
    wanted = (left["model.embed_tokens.weight"] + right["lm_head.weight"]) / 2
    assert far_apart(found["lm_head.weight"], wanted) < 1e-6
    model = load(tmp_path / "one")
    assert far_apart(model.lm_head.weight, wanted) < 1e-6
    assert logits(model).isfinite().all()


def test_models_that_are_not_alike_are_refused(tmp_path: Path, models: tuple[Path, list[Path]]) -> None:
    _, (one, *_) = models
    wider = save_base(
        tmp_path / "wider",
        transformers.LlamaConfig(tie_word_embeddings=False, **(LLAMA | {"num_hidden_layers": 4, "vocab_size": 97})),
    )
    with pytest.raises(ArtifactError, match=r"has shape \[97, 32\], in .* \[96, 32\]; models of other sizes") as caught:
        mix([one, wider], tmp_path / "out")
    assert caught.value.code == 78
    shorter = save_base(tmp_path / "shorter", transformers.LlamaConfig(tie_word_embeddings=False, **LLAMA))
    for pair in ([one, shorter], [shorter, one]):
        with pytest.raises(ArtifactError, match=r"has no tensor model.layers.[23].*they are not alike") as caught:
            mix(pair, tmp_path / "out")
        assert caught.value.code == 78
    assert not (tmp_path / "out").exists()


def test_another_vocabulary_is_refused_and_other_templates_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [one_tensor(tmp_path / name, torch.ones(2, 2)) for name in "ab"]
    for folder, token in zip(folders, ("<x>", "<y>"), strict=True):
        vocab = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": token}]}
        (folder / "tokenizer.json").write_text(json.dumps(vocab))
        (folder / "chat_template.jinja").write_text(token)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1 if token == "<x>" else [1, 5]}))
    with pytest.raises(ArtifactError, match=r"2 tokens are not those of .*one vocabulary first") as caught:
        mix(folders, tmp_path / "out")
    assert caught.value.code == 78
    shutil.copyfile(folders[0] / "tokenizer.json", folders[1] / "tokenizer.json")
    assert mix(folders, tmp_path / "out")["stop_ids_added"] == [5]
    assert "chat templates differ" in capsys.readouterr().err
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "<x>"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [1, 5]


def test_tensors_that_are_no_numbers_must_be_equal(tmp_path: Path) -> None:
    folders = []
    for name, value in (("a", 3), ("b", 3), ("c", 4)):
        folders.append(one_tensor(tmp_path / name, torch.ones(2, 2)))
        save_file({TENSOR: torch.ones(2, 2), "ids": torch.tensor([value])}, folders[-1] / "model.safetensors")
    assert mix(folders[:2], tmp_path / "out")["num_mixed"] == 1
    assert tensors(tmp_path / "out")["ids"].tolist() == [3]
    with pytest.raises(ArtifactError, match="ids is I64, which is not mixed, and differs"):
        mix(folders, tmp_path / "other")


@pytest.mark.parametrize(
    ("count", "base", "given", "message"),
    [
        (1, False, {}, "--method linear: takes 2 or more models, got 1"),
        (3, False, {"method": "slerp"}, "--method slerp: takes 2 models, got 3"),
        (
            2,
            False,
            {"method": "ties"},
            "--method ties: needs the model that the others were tuned from; pass it with -m",
        ),
        (2, True, {"method": "slerp"}, "--method slerp: takes no base; drop -m"),
        (2, False, {"weight": "1,2,3"}, "--weight: 3 values for 2 models"),
        (2, True, {"method": "della", "density": "0.9"}, r"density 0.9 and epsilon 0.15: density - epsilon"),
        (2, False, {"scale": [1.0]}, "--scale: is for adapters; give models their shares with --weight"),
    ],
)
def test_calls_that_do_not_fit_the_method(
    tmp_path: Path, models: tuple[Path, list[Path]], count: int, base: bool, given: dict[str, Any], message: str
) -> None:
    origin, parts = models
    with pytest.raises(ConfigError, match=message) as caught:
        mix(parts[:count], tmp_path / "out", origin if base else None, **given)
    assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


def test_settings_that_cannot_be_read() -> None:
    with pytest.raises(ValueError, match=r"'0\.3;1': expected numbers"):
        make(Merge, method="slerp", t="0.3;1")
    with pytest.raises(ValueError, match="rule 'mlp t=1': the method has no t; it has weight"):
        make(Merge, rule=["mlp t=1"])
    with pytest.raises(ValueError, match="rule 'mlp': sets nothing"):
        make(Merge, rule=["mlp"])


def test_adapters_and_models_are_two_things(tmp_path: Path, models: tuple[Path, list[Path]]) -> None:
    base, parts = models
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="adapters and models; merge the adapters into their base first"):
        merge([adapter, parts[0]], base, tmp_path / "out")
    with pytest.raises(ConfigError, match="--method and --rule are for models, these are adapters"):
        merge([adapter], base, tmp_path / "out", method=options.Slerp())


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    folders = [one_tensor(tmp_path / n, t) for n, t in (("a", torch.ones(2, 2)), ("b", torch.full((2, 2), torch.nan)))]
    with pytest.raises(StageError, match="not finite after mixing"):
        mix(folders, tmp_path / "out")


def test_every_method_has_a_rule() -> None:
    assert {f"{kind.__module__}:{kind.__name__}" for kind in RULES} == set(options.MIXES.table.values())


def test_the_command_needs_no_torch(tmp_path: Path, models: tuple[Path, list[Path]]) -> None:
    _, (one, other, _) = models
    code = (
        "import sys; sys.argv[0] = 'postmill'\nfrom postmill.cli import main\ntry: main.main()\nfinally:\n"
        " print({'torch', 'transformers', 'peft'} & set(sys.modules), file=sys.stderr)"
    )
    argv = [
        "merge",
        str(one),
        str(other),
        "--method",
        "slerp",
        "--t",
        "0:1",
        "--dtype",
        "float32",
        "-o",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("set()")
    found = tensors(tmp_path / "out")
    assert torch.equal(
        found["model.layers.0.mlp.up_proj.weight"], tensors(one)["model.layers.0.mlp.up_proj.weight"].float()
    )
    assert torch.equal(
        found["model.layers.3.mlp.up_proj.weight"], tensors(other)["model.layers.3.mlp.up_proj.weight"].float()
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
