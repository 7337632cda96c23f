"""A teacher with another tokenizer: pieces of text against TRL's, the loss against its formula in float64, laws."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from agreement import against  # noqa: E402
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.io.packed import TokenRows, token_tables  # noqa: E402
from postmill.io.scores import NO_TEXT, ScoresReader  # noqa: E402
from postmill.io.token_bytes import read_token_bytes, shared_tokens  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.pack.config import STAGE as PACK  # noqa: E402
from postmill.stages.pack.config import Pack  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.score.onto import pieces  # noqa: E402
from postmill.stages.shared import hf  # noqa: E402
from postmill.stages.tokenize.config import STAGE as TOKENIZE  # noqa: E402
from postmill.stages.tokenize.config import Tokenize  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.objectives.gkd_options import Gkd  # noqa: E402

from . import laws  # noqa: E402

TOP = 40
MERGES = {
    "student": ["t h", "th e", "i n", "Ġ the", "a n", "an d", "s t", "st o", "e r", "Ã ¶"],
    "teacher": ["h e", "t he", "in g", "i n", "Ġ s", "Ġs t", "o n", "on e", "m o", "mo s", "mos s", "e r"],
}
NAMES = {"student": ("<|start|>", "<|end|>"), "teacher": ("<s>", "</s>")}
ROWS = [
    ("where is moss?", "The moss sits on the stone in the moor, and it is never in a hurry."),
    ("who sings?", "A thrush sings: höher, höher, in the thin air of the morning."),
    ("why?", "The stone and the one who throws it."),
    ("more", "nothing stings more than the thing in the inner ring"),
    ("end", "ö"),
]


def write_tokenizer(folder, name):
    """Bytes, some merges, and special tokens of its own around turns."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(letters if name == "student" else letters[::-1])}
    known = []
    for merge in MERGES[name]:
        left, right = merge.split(" ")
        if left in vocab and right in vocab:
            known.append((left, right))
            vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, known))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    start, end = NAMES[name]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (start, end)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}{{ '" + start + "' + m.role + ': ' + m.content + '" + end + "\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + start + "assistant: ' }}{% endif %}"
    )
    (folder / "chat_template.jinja").unlink()
    said = {"eos_token": end, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return tokenizer.get_vocab_size()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("texts")
    lines = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in ROWS
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for seed, name in enumerate(MERGES):
        model = tiny_model.write_model(folder / name, vocab_size=256 + 2 + len(MERGES[name]), seed=seed)
        assert write_tokenizer(model, name) <= 256 + 2 + len(MERGES[name])
        ports = {"data": [str(folder / "rows.jsonl")], "model": [str(model)]}
        run_stage(TOKENIZE, Tokenize(), ports, folder / f"{name}-tokens", Options(threads=1))
    tokens = {"tokens": [str(folder / "student-tokens")]}
    run_stage(PACK, Pack(row_tokens=256), tokens, folder / "packed", Options())
    run_stage(PACK, Pack(row_tokens=140), tokens, folder / "packed-alone", Options())
    run_stage(SCORE, Score(top_k=TOP), onto(folder), folder / "likely", Options())
    return folder


def onto(folder, **changed):
    """The teacher's rows, on the student's tokens."""
    return {
        "rows": [str(folder / "teacher-tokens")],
        "model": [str(folder / "teacher")],
        "onto": [str(folder / "packed")],
        "onto_tokenizer": [str(folder / "student")],
    } | changed


def laid(artifact, row):
    rows = TokenRows(token_tables(load_artifact(artifact, ("tokens",)))).lay(np.array([row]))
    return rows.input_ids.astype(np.int64), rows.weights


def answer(weights):
    """First token and end of the one run of trained tokens."""
    at = np.flatnonzero(weights)
    assert len(at) == at[-1] - at[0] + 1
    return int(at[0]), int(at[-1]) + 1


def offsets(texts):
    ends = np.cumsum([len(text) for text in texts]).tolist()
    return list(zip([0, *ends], ends, strict=False))


def test_pieces_end_where_trls_do():
    ULDLoss = pytest.importorskip("trl.experimental.gold.gold_trainer", reason="the oracle").ULDLoss
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = bytes(rng.integers(97, 123, 40).tolist())
        cut = [np.sort(rng.choice(np.arange(1, 40), int(rng.integers(3, 30)), replace=False)) for _ in range(2)]
        mine, other = ([text[a:b] for a, b in zip([0, *c], [*c, 40], strict=True)] for c in cut)
        theirs = ULDLoss._align_by_byte_offsets(offsets(mine), offsets(other))
        assert pieces(mine, other) == [(a[-1] + 1, b[-1] + 1) for a, b in zip(*theirs, strict=True)]


def test_pieces_stop_where_texts_differ_and_a_first_space_is_no_difference():
    assert pieces([b"ab", b"c", b"d"], [b"a", b"bc", b"x"]) == [(2, 2)]
    assert pieces([b" the", b" end"], [b"the", b" e", b"nd"]) == [(1, 1), (2, 3)]
    assert pieces([b" ", b"the"], [b"the"]) == [(2, 1)]
    assert pieces([b"a"], [b"b"]) == []


def test_tokens_that_write_the_same_are_one(tmp_path):
    piece = {"type": "BPE", "vocab": {"<0x41>": 0, "A": 1, "\u2581the": 2, "<0xC3>": 3, "x": 4}}
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}]}
    levels = {"type": "BPE", "vocab": {"Ġthe": 0, "Ã": 1, "A": 2, "y": 3}}
    for name, model, decoder_ in (("piece", piece, decoder), ("bytes", levels, {"type": "ByteLevel"})):
        (tmp_path / name).mkdir()
        added = [{"id": 5, "content": "<s>", "special": True}]
        said = {"model": model, "decoder": decoder_, "added_tokens": added}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(said))
    one, two = (read_token_bytes(tmp_path / name) for name in ("piece", "bytes"))
    assert one.text[:5] == [b"A", b"A", b" the", b"\xc3", b"x"]
    assert shared_tokens(one, two) == [-1, 2, 0, 1, -1, 5]
    assert shared_tokens(one, one) == list(range(6))
    words = {"model": {"type": "WordLevel", "vocab": {"a": 0}}, "decoder": {"type": "WordPiece"}}
    (tmp_path / "bytes" / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ArtifactError, match="neither of bytes nor of SentencePiece"):
        read_token_bytes(tmp_path / "bytes")


def test_every_piece_has_the_teachers_log_prob_of_its_text(world):
    teacher = hf.load_model(world / "teacher", "float32").double()
    scores, mine, other = ScoresReader(world / "likely"), *(read_token_bytes(world / name) for name in MERGES)
    seen = 0
    for row in range(len(ROWS)):
        ids, weights = laid(world / "student-tokens", row)
        their_ids, their_weights = laid(world / "teacher-tokens", row)
        with torch.no_grad():
            logp = teacher(torch.from_numpy(their_ids)[None]).logits[0].log_softmax(-1).numpy()
        (a, b), (c, d) = answer(weights), answer(their_weights)
        got = scores.tokens(np.array([row]), np.array([len(ids)]), "logp")
        assert got[a - 1] == NO_TEXT and np.isnan(got[: a - 1]).all() and np.isnan(got[b:]).all()
        at = np.flatnonzero(~np.isnan(got[a:b])) + a
        total = sum(logp[n - 1, their_ids[n]] for n in range(c, d))
        assert float(got[at].sum(dtype=np.float64)) == pytest.approx(total, rel=1e-5)
        texts = [[known.text[n] for n in run] for known, run in ((mine, ids[a:b]), (other, their_ids[c:d]))]
        first, their_first = a, c
        for end, their_end in pieces([*texts[0][:-1], b"\0"], [*texts[1][:-1], b"\0"]):
            wanted = sum(logp[n - 1, their_ids[n]] for n in range(their_first, c + their_end))
            assert float(got[a + end - 1]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
            first, their_first, seen = a + end, c + their_end, seen + 1
        assert (first, their_first) == (b, d)
    metrics = scores.artifact.manifest.metrics
    assert metrics["aligned_text"] == 1 and metrics["pieces"] == seen
    assert 0 < metrics["pieces_of_one_token"] < seen


def kl(p, q):
    return (p * (p / q).log()).sum()


def formula(world, options, student, teacher):
    """The loss of all rows as one step."""
    mine, other = (read_token_bytes(world / name) for name in MERGES)
    ends = [Tokenizer.from_file(str(world / name / "tokenizer.json")).token_to_id(NAMES[name][1]) for name in MERGES]
    keys = {key: n for n, key in enumerate(mine.key)} | {other.key[ends[1]]: ends[0]}
    losses, count = [], 0

    def between(t, s):
        t, s = (torch.cat([p, 1 - p.sum(-1, keepdim=True)]) for p in (t, s))
        middle = options.beta * t + (1 - options.beta) * s
        if options.divergence == "js":
            return options.beta * kl(t, middle) + (1 - options.beta) * kl(s, middle)
        return kl(t, s) if options.divergence == "forward" else kl(s, t)

    for row in range(len(ROWS)):
        ids, weights = laid(world / "student-tokens", row)
        their_ids, their_weights = laid(world / "teacher-tokens", row)
        s = student(torch.from_numpy(ids)[None]).logits[0].softmax(-1)
        with torch.no_grad():
            t = teacher(torch.from_numpy(their_ids)[None]).logits[0].softmax(-1)
        (a, b), (c, d) = answer(weights), answer(their_weights)
        count += b - a
        texts = [[known.text[n] for n in run] for known, run in ((mine, ids[a:b]), (other, their_ids[c:d]))]
        first, their_first = a, c
        for end, their_end in pieces([*texts[0][:-1], b"\0"], [*texts[1][:-1], b"\0"]):
            here, theirs = range(first, a + end), range(their_first, c + their_end)
            first, their_first = a + end, c + their_end
            if len(here) == len(theirs) == 1:
                top = t[theirs[0] - 1].topk(TOP)
                pairs = [(n, keys.get(other.key[n], -1)) for n in top.indices.tolist() if n < len(other.key)]
                pairs = [(n, m) for n, m in pairs if m >= 0]
                t_K, s_K = t[theirs[0] - 1, [n for n, _ in pairs]], s[here[0] - 1, [m for _, m in pairs]]
            else:
                t_K = torch.stack([t[n - 1, their_ids[n]] for n in theirs]).prod()[None]
                s_K = torch.stack([s[n - 1, ids[n]] for n in here]).prod()[None]
            losses.append(between(t_K, s_K))
    return torch.stack(losses).sum() / count


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_loss_and_gradient_are_those_of_the_formula_in_float64(world, divergence):
    options = Gkd(divergence=divergence, beta=0.3)
    ours, gradient, _ = laws.whole_step(options, world / "packed", world / "student", {"teacher": world / "likely"}, 1)
    student, teacher = (hf.load_model(world / name, "float32") for name in MERGES)
    torch.manual_seed(3)
    for parameter in student.parameters():  # as `laws` moves it
        parameter.data += 0.02 * torch.randn_like(parameter)
    student = student.double()
    expected = formula(world, options, student, teacher.double())
    expected.backward()
    theirs = torch.cat([p.grad.flatten() for p in student.parameters()])
    against("gkd", f"another tokenizer, {divergence}, formula", (ours, gradient), (float(expected.detach()), theirs))
    assert ours == pytest.approx(float(expected.detach()), rel=2e-5)
    assert float((gradient - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


def test_cuts_do_not_matter(world):
    packed = (world / "packed", world / "packed-alone")
    laws.cuts_do_not_matter(Gkd(nll=0.1), packed, world / "student", {"teacher": world / "likely"})


def test_with_one_tokenizer_it_is_plain_distillation_to_the_last_bit(world, tmp_path):
    own = {"rows": [str(world / "student-tokens")], "model": [str(world / "student")]}
    run_stage(SCORE, Score(top_k=TOP), {**own, "rows": [str(world / "packed")]}, tmp_path / "plain", Options())
    same = own | {"onto": [str(world / "packed")], "onto_tokenizer": [str(world / "student")]}
    run_stage(SCORE, Score(top_k=TOP), same, tmp_path / "onto", Options())
    plain, written = (
        laws.whole_step(Gkd(), world / "packed", world / "student", {"teacher": tmp_path / name}, 2)
        for name in ("plain", "onto")
    )
    assert plain[0] == written[0] and bool((plain[1] == written[1]).all()) and plain[2] == written[2]


def test_the_student_comes_to_the_teacher(world, tmp_path):
    ports = {
        "packed": [str(world / "packed")],
        "model": [str(world / "student")],
        "scores": [f"teacher={world / 'likely'}"],
    }
    cfg = make(Train, objective=Gkd(), tuner="full", bins_per_step=8, steps=25, lr=1e-2)
    run_stage(STAGE, cfg, ports, tmp_path / "run", Options(threads=1))
    found = laws.lines(tmp_path / "run")
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    with pytest.raises(ConfigError, match="only --objective gkd learns of one"):
        cfg = make(Train, objective="sft", bins_per_step=1)
        run_stage(STAGE, cfg, ports, tmp_path / "no", Options())


def test_what_does_not_go_together_is_said(world, tmp_path):
    def score(cfg, **changed):
        run_stage(SCORE, cfg, onto(world, **changed), tmp_path / "no", Options())

    with pytest.raises(ConfigError, match="give --onto-tokenizer FOLDER and --top-k 64"):
        score(Score())
    with pytest.raises(ConfigError, match="of which rows"):
        score(Score(top_k=4), onto=[])
    with pytest.raises(ArtifactError, match="the rows of --onto are of another tokenizer"):
        score(Score(top_k=4), onto_tokenizer=[str(world / "teacher")])
    lines = (world / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[1:]) + "\n")
    ports = {"data": [str(tmp_path / "fewer.jsonl")], "model": [str(world / "teacher")]}
    run_stage(TOKENIZE, Tokenize(), ports, tmp_path / "fewer", Options(threads=1))
    with pytest.raises(ArtifactError, match="of line 5 it has 1 rows, and 0 were read"):
        score(Score(top_k=4), rows=[str(tmp_path / "fewer")])
    others = [json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "qq"}]})] * 5
    (tmp_path / "others.jsonl").write_text("\n".join(others) + "\n")
    ports["data"] = [str(tmp_path / "others.jsonl")]
    run_stage(TOKENIZE, Tokenize(), ports, tmp_path / "others", Options(threads=1))
    with pytest.raises(ArtifactError, match="no trained text is the same in both"):
        score(Score(top_k=4), rows=[str(tmp_path / "others")])
