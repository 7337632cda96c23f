"""What a run writes down besides its numbers: losses by row and span, answers to prompts, a profile. None of it changes
what is learned, and a run that was stopped goes on with all of it."""

import itertools
import json

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("peft")
pytest.importorskip("postmill._native", reason="native module not built")

import numpy as np  # noqa: E402
import tiny_chat  # noqa: E402
import tiny_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tuner_laws import STEPS, config, digest, given, load, losses, stop_at  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.schemas import ROW_LOSSES_V1  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.shared.engine.text import Speaker  # noqa: E402
from postmill.stages.train.config import STAGE, Measure  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("watching")
    base = tiny_chat.write_chat_model(folder / "base")
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(16, seed=3))
    tiny_model.write_packed(folder / "valid", base, tiny_model.make_rows(4, seed=9))
    lines = [{"prompt": "ab"}, {"messages": [{"role": "user", "content": "c"}]}]
    (folder / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def train(cfg, ports, target):
    run_stage(STAGE, cfg, ports, target, Options(threads=1))
    return target


def table_of(run):
    batches = list(TableReader(run / "row_losses.arrow", ROW_LOSSES_V1))
    return [line for batch in batches for line in batch.to_pylist()]


def test_losses_of_spans_are_those_of_rows_alone(world, tmp_path):
    run = train(config("lora", rank=2, row_losses=True), given(world), tmp_path / "run")
    reader, model = PackedReader(world / "packed"), load(world / "base")
    table = table_of(run)
    first = {(line["row"], line["start"]): line for line in table if line["step"] == 1}
    rows_of_step = {line["row"] for line in first.values()}
    seen = set()
    for number in range(len(reader)):
        found = reader.bin(number)
        for row, (start, end) in zip(found.rows.tolist(), itertools.pairwise(found.cu_seqlens.tolist()), strict=True):
            if row not in rows_of_step:
                continue
            ids = torch.from_numpy(found.input_ids[start:end].astype(np.int64))
            weights = found.weights[start:end]
            with torch.no_grad():
                logp = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0].double()
            for (weight, _), places in itertools.groupby(range(1, len(ids)), key=lambda t: (float(weights[t]), row)):
                at = list(places)
                if not weight:
                    continue
                line = first[row, at[0]]
                seen.add((row, at[0]))
                assert (line["end"], line["weight"]) == (at[-1] + 1, weight)
                assert line["nll"] == pytest.approx(-float(logp[at[0] - 1 : at[-1]].sum()), abs=1e-4)
                assert line["row_id"] == reader.values(np.array([row]), "row_id")[0]
    assert seen == first.keys()
    total = sum(line["weight"] * line["nll"] for line in first.values())
    tokens = sum(line["end"] - line["start"] for line in first.values())
    assert total / tokens == pytest.approx(losses(run)[0], rel=1e-5)


def test_losses_of_spans_do_not_depend_on_micro_batches(world, tmp_path):
    tables = []
    for micro_bins in (1, 4):
        cfg = config("lora", rank=2, row_losses=True, micro_bins=micro_bins)
        tables.append(table_of(train(cfg, given(world), tmp_path / f"run-{micro_bins}")))
    assert [{**line, "nll": 0} for line in tables[0]] == [{**line, "nll": 0} for line in tables[1]]
    ours, theirs = ([line["nll"] for line in table] for table in tables)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def weights_of(run):
    return load_file(run / "adapter_model.safetensors")


def test_watching_changes_nothing_and_goes_on(world, tmp_path):
    ports = given(world)
    plain = weights_of(train(config("lora", rank=2), ports, tmp_path / "plain"))
    ports |= {"sample_prompts": [str(world / "asked.jsonl")]}
    asked = train(config("lora", rank=2, sample_every=1, sample_tokens=5), ports, tmp_path / "asked")
    assert all(torch.equal(tensor, plain[name]) for name, tensor in weights_of(asked).items())
    cfg = config("lora", rank=2, row_losses=True, sample_every=2, sample_tokens=5)
    run = train(cfg, ports, tmp_path / "run")
    for name, tensor in weights_of(run).items():  # the head rounds otherwise where it gives log-probs as well
        torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-5)
    for _ in range(1, STEPS):
        stop_at(cfg, ports, tmp_path / "again", 1)
    train(cfg, ports, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(run)


def test_answers_are_those_of_the_weights_at_that_step(world, tmp_path):
    from peft import PeftModel

    ports = given(world, sample_prompts=[str(world / "asked.jsonl")])
    run = train(config("lora", rank=2, sample_every=2, sample_tokens=5), ports, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [
        (2, "ab"),
        (2, [{"role": "user", "content": "c"}]),
        (3, "ab"),
        (3, [{"role": "user", "content": "c"}]),
    ]
    speaker, model = Speaker([world / "base"]), PeftModel.from_pretrained(load(world / "base"), str(run)).eval()
    for line, content in zip(lines[2:], ("ab", "c"), strict=True):
        ids = speaker.prompt_ids([{"role": "user", "content": content}])
        out = model.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=5, do_sample=False, eos_token_id=list(speaker.eos_ids) or None
        )
        wanted = out[0, len(ids) :].tolist()
        assert line["answer"] == speaker.text(wanted, is_stopped=line["finish"] == "stop")
        assert line["tokens"] == len(wanted)


def test_a_profile_is_written_beside_the_checkpoints(world, tmp_path):
    cfg = config("lora", rank=2, profile_steps="2-3")
    train(cfg, given(world), tmp_path / "run")
    events = json.loads((tmp_path / "run.checkpoints" / "profile-steps-2-3.json").read_text())["traceEvents"]
    assert any("mm" in event.get("name", "") for event in events)
    plain = weights_of(train(config("lora", rank=2), given(world), tmp_path / "plain"))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in weights_of(tmp_path / "run").items())
    for text in ("0", "3-", "5-3", "x"):
        with pytest.raises(ValueError, match="expected a step like 3"):
            Measure(profile_steps=text)


@pytest.mark.parametrize(
    ("name", "options", "ports", "message"),
    [
        ("lora", {"sample_every": 2}, {}, "--sample-every 2: needs --sample-prompts"),
        ("prompt-tuning", {}, {"sample_prompts": "asked.jsonl"}, "--sample-prompts --tuner prompt-tuning"),
    ],
)
def test_what_cannot_be_shown_is_refused(world, tmp_path, name, options, ports, message):
    ports = given(world, **{port: [str(world / file)] for port, file in ports.items()})
    with pytest.raises((ConfigError, ArtifactError), match=message):
        run_stage(STAGE, config(name, **options), ports, tmp_path / "run", Options(threads=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no prompts in it"),
        ('{"prompt": "a", "messages": []}\n', ":1: expected prompt, or messages, and not both"),
        ('{"prompt": 3}\n', ":1: Expected `str"),
    ],
)
def test_prompts_that_are_none(world, tmp_path, text, message):
    (tmp_path / "asked.jsonl").write_text(text)
    ports = given(world, sample_prompts=[str(tmp_path / "asked.jsonl")])
    with pytest.raises(ArtifactError, match=message) as error:
        run_stage(STAGE, config("lora", rank=2), ports, tmp_path / "run", Options(threads=1))
    assert error.value.code == 65
