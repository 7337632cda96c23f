"""Encoder-decoders: the prompt goes to the encoder, the answer to the decoder, in training, scores and generation."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
import token_tables  # noqa: E402
from tuner_laws import config, given, losses, trained  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.scores import ScoresReader  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.shared.engine.local import LocalEngine  # noqa: E402
from postmill.stages.shared.engine.protocol import Request, Sampling  # noqa: E402
from postmill.stages.train.config import STAGE  # noqa: E402

START = 1
IDS = {"vocab_size": tiny_model.VOCAB, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": START}


def t5(**options):
    made = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**(IDS | made | options)))


def bart():
    sides = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 40))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 24, "dropout": 0.0}
    made = transformers.BartConfig(**IDS, **sides, **heads, max_position_embeddings=64, forced_eos_token_id=None)
    return transformers.BartForConditionalGeneration(made)


MODELS = {
    "t5": t5,
    "t5 v1.1": lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False, scale_decoder_outputs=False),
    "bart": bart,
}


def write(folder, name="t5"):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = MODELS[name]()
    for parameter in net.parameters():  # far enough from zero that a wrong split shows
        parameter.data += 0.1 * torch.randn_like(parameter)
    net.save_pretrained(folder / "base")
    plain = tiny_model.write_model(folder / "plain")
    for file in ("tokenizer.json", "chat_template.jinja"):
        (folder / "base" / file).write_bytes((plain / file).read_bytes())
    for part, rows in (("packed", tiny_model.make_rows(16, seed=3)), ("valid", tiny_model.make_rows(4, seed=9))):
        tiny_model.write_packed(folder / part, folder / "base", rows)
    return folder


def load(path):
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval()


def rows_of(packed):
    reader = PackedReader(packed)
    for number in range(len(reader)):
        found = reader.bin(number)
        for row, start, end in zip(found.rows, found.cu_seqlens[:-1], found.cu_seqlens[1:], strict=True):
            yield int(row), found.input_ids[start:end].astype(np.int64), found.weights[start:end]


def answer_logp(net, ids, weights):
    """What a model says of an answer, from its own logits: the textbook's way."""
    split = int(np.flatnonzero(weights)[0])
    ids = torch.from_numpy(ids)
    reads = torch.cat([torch.tensor([START]), ids[split:-1]])
    with torch.no_grad():
        logits = net(input_ids=ids[None, :split], decoder_input_ids=reads[None]).logits[0]
    return logits.log_softmax(-1).gather(-1, ids[split:, None])[:, 0]


def loss_of(net, packed):
    total, count = 0.0, 0
    for _, ids, weights in rows_of(packed):
        answer = weights[np.flatnonzero(weights)[0] :]
        total += float((-torch.from_numpy(answer) * answer_logp(net, ids, weights)).double().sum())
        count += int((answer != 0).sum())
    return total / count


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_trains_resumes_and_its_validation_is_the_textbooks(tmp_path, name):
    run = trained(write(tmp_path, name), config("full"), tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    assert loss_of(load(run), tmp_path / "valid") == pytest.approx(valid, abs=2e-6)


def test_an_adapter_loads_in_peft(tmp_path):
    run = trained(write(tmp_path), config("lora", rank=4), tmp_path / "run")
    first, last, valid = losses(run)
    assert last < first
    tuned = peft.PeftModel.from_pretrained(load(tmp_path / "base"), str(run)).eval()
    assert type(tuned) is peft.PeftModelForSeq2SeqLM
    assert loss_of(tuned, tmp_path / "valid") == pytest.approx(valid, abs=2e-6)


def test_scores_are_of_the_answer(tmp_path):
    base = write(tmp_path) / "base"
    ports = {"rows": [str(tmp_path / "packed")], "model": [str(base)]}
    run_stage(SCORE, Score(), ports, tmp_path / "scores", Options(threads=1))
    net, scores = load(base), ScoresReader(tmp_path / "scores")
    for row, ids, weights in rows_of(tmp_path / "packed"):
        found = scores.tokens(np.array([row]), np.array([len(ids)]), "logp")
        np.testing.assert_allclose(found[~np.isnan(found)], answer_logp(net, ids, weights).numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="--where all"):
        run_stage(SCORE, Score(where="all"), ports, tmp_path / "all", Options(threads=1))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_answers_are_those_of_generate(tmp_path, name):
    base = write(tmp_path, name) / "base"
    prompts = [[5, 9, 2, 11], [3, 1], [7] * 9]
    engine, net = LocalEngine([base], batch_size=8), load(base)
    asked = [Request(key=str(n), prompt_ids=ids, seed=n) for n, ids in enumerate(prompts)]
    replies = engine.answer(asked, Sampling(max_new_tokens=6, temperature=0.0, stop_ids=frozenset({2})))
    for ids, reply in zip(prompts, replies, strict=True):
        expected = net.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=6, num_beams=1)[0, 1:].tolist()
        assert reply.ids == expected
    assert len({len(reply.ids) for reply in replies} | {tuple(reply.ids) for reply in replies}) > 1


def test_several_answers_of_a_row_are_refused(tmp_path):
    write(tmp_path)
    row = tiny_model.make_rows(1, seed=1)[0]
    length, turn = len(row["input_ids"]), row["turns"][0]
    turns = [turn | {"generated_start": 1, "generated_end": 2}, turn | {"generated_start": 3, "generated_end": length}]
    two = token_tables.row(row["input_ids"], [(1, 2, 1.0), (3, length, 1.0)], turns=turns)
    tiny_model.write_packed(tmp_path / "two", tmp_path / "base", [two])
    ports = given(tmp_path, packed=[str(tmp_path / "two")])
    with pytest.raises(ArtifactError, match=r"1 rows train on several answers.*last_round") as error:
        run_stage(STAGE, config("lora"), ports, tmp_path / "run", Options(threads=1))
    assert error.value.code == 65


def test_what_does_not_fit_two_parts_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ConfigError, match="t5 has an encoder and a decoder, which only losses of tokens fit"):
        run_stage(STAGE, config("lora", neftune_alpha=5.0), given(tmp_path), tmp_path / "run", Options(threads=1))
