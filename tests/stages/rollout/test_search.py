"""Search: the paths that are kept are those that brute force finds, trees do not mix, and what it cost is counted."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch", reason="generation needs torch")
transformers = pytest.importorskip("transformers")

import tiny_model  # noqa: E402
from tiny_tokenizer import write_tokenizer  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.io.rollouts import ROLLOUTS  # noqa: E402
from postmill.io.schemas import ROLLOUTS_V1  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.pack.config import STAGE as PACK  # noqa: E402
from postmill.stages.pack.config import Pack  # noqa: E402
from postmill.stages.rollout.config import STAGE, Rollout  # noqa: E402
from postmill.stages.rollout.guides import ModelGuide  # noqa: E402
from postmill.stages.rollout.rows import Ended  # noqa: E402
from postmill.stages.rollout.search import Searcher  # noqa: E402
from postmill.stages.rollout.search_options import Search  # noqa: E402
from postmill.stages.rollout.tries import Path  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.shared.engine.protocol import Reply  # noqa: E402
from postmill.stages.tokenize.config import STAGE as TOKENIZE  # noqa: E402
from postmill.stages.tokenize.config import Tokenize  # noqa: E402
from postmill.stages.train.config import STAGE as TRAIN  # noqa: E402
from postmill.stages.train.config import Train  # noqa: E402

STOP = 9
PROMPTS = [{"row_id": bytes([n]) * 16, "input_ids": [n, n], "messages": None, "extra": None} for n in range(3)]


class Letters:
    """Ids as digits, in place of a tokenizer."""

    def text(self, ids, *, is_stopped):
        return "".join(map(str, ids[:-1] if is_stopped else ids))


def draw_step(request, room):
    """One or two digits that the request alone decides; now and then the end."""
    rng = np.random.default_rng(request.seed)
    ids = rng.integers(0, 9, min(room, int(rng.integers(1, 3)))).tolist()
    if rng.random() < 0.2:
        ids[-1] = STOP
    return ids


def total(prompt, path, text):
    return float(sum(map(int, text))) / math.sqrt(len(text) or 1)


def search(**options):
    asked = []

    def ask(requests, room, is_step):
        assert is_step != (options["search"] == "best_of_n") or options["search"] == "mcts"
        asked.extend(requests)
        replies = {}
        for request in requests:
            ids = draw_step(request, room)
            finish = "stop" if ids[-1] == STOP else "length"
            replies[request.key] = Reply(key=request.key, ids=ids, logp=[-1.0] * len(ids), finish=finish)
        return replies

    cfg = Search(step_tokens=2, **options)
    guide = lambda items: [total(*item) for item in items]  # noqa: E731
    searcher = Searcher(cfg, Ended(Letters(), frozenset({STOP})), guide, max_new_tokens=7, seed=0)
    return searcher, searcher.run(PROMPTS, ask), asked


def test_best_of_n_keeps_all_the_best_first():
    searcher, found, asked = search(search="best_of_n", beams=2, width=4)
    assert [len(paths) for paths in found] == [8, 8, 8]
    for paths in found:
        scores = [path.score for path in paths]
        assert scores == sorted(scores, reverse=True)
    assert len({request.seed for request in asked}) == len(asked)
    assert searcher.sampled_tokens == sum(len(draw_step(r, 7)) for r in asked)


def test_a_beam_keeps_the_best_of_all_ways_after_each_step():
    """Against the same search written out for one prompt, with all paths in one list."""
    _, found, asked = search(search="beam", beams=3, width=2)
    replies = {request.key: request for request in asked}
    for number, prompt in enumerate(PROMPTS):
        kept, depth = [("0", [])], 0
        while any(ids[-1:] != [STOP] and len(ids) < 7 for _, ids in kept):
            tried = []
            for key, ids in kept:
                if ids[-1:] == [STOP] or len(ids) >= 7:
                    tried.append((key, ids))
                    continue
                for child in range(6 if depth == 0 else 2):
                    request = replies[f"{prompt['row_id'].hex()}-{key}.{child}"]
                    assert request.prompt_ids == prompt["input_ids"] + ids
                    tried.append((f"{key}.{child}", ids + draw_step(request, min(2, 7 - len(ids)))))
            text = {key: Letters().text(ids, is_stopped=ids[-1] == STOP) for key, ids in tried}
            kept = sorted(tried, key=lambda item: (-total(None, None, text[item[0]]), item[0]))[:3]
            depth += 1
        assert [path.ids for path in found[number]] == [ids for _, ids in kept]


def test_trees_do_not_compete():
    searcher, found, _ = search(search="dvts", beams=4, width=3)
    for paths in found:
        assert sorted(path.tree for path in paths) == [0, 1, 2, 3]
        assert all(path.finish in ("stop", "length") for path in paths)
    samples = searcher.samples(PROMPTS, found, 2)
    assert [sample.number for sample in samples] == [0, 1] * 3
    assert samples[0].transcript[0]["score"] == found[0][0].score


def test_a_tree_grows_where_the_best_is_to_be_expected():
    """Every whole answer is found once; tokens are bounded; more of them find better answers; steps are those of the
    tree, right where an answer that was seen to go on from them is."""
    best = []
    for tokens in (10, 200):
        searcher, found, asked = search(search="mcts", width=3, search_tokens=tokens, playouts=1, right_at=8.0)
        assert len({request.key for request in asked}) == len(asked)
        for number, paths in enumerate(found):
            assert searcher.tries.tokens[number] <= tokens + 3 * 2 + 3 * 7
            assert all(path.finish in ("stop", "length") for path in paths)
            scores = [path.score for path in paths]
            assert scores == sorted(scores, reverse=True)
            for path in paths:
                ends = [end for end, _ in path.steps]
                assert ends == sorted(set(ends)) and ends[-1] == len(path.ids)
                others = [other for other in paths if other.score >= 8.0]
                for end, is_right in path.steps:
                    later = [other for other in others if other.ids[:end] == path.ids[:end]]
                    assert not is_right or later
        assert max(searcher.tries.tokens) >= tokens
        best.append([paths[0].score for paths in found])
    assert all(more >= less for less, more in zip(*best, strict=True)) and best[0] != best[1]


def test_a_tree_of_one_way_is_all_of_it():
    """With one way from each step and no playouts the tree is a line; it ends before its tokens do."""
    searcher, found, _ = search(search="mcts", width=1, search_tokens=1000, playouts=0)
    assert [len(paths) for paths in found] == [1, 1, 1]
    assert max(searcher.tries.tokens) <= 7


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("search")
    base = tiny_model.write_model(folder / "base", hidden_size=16, vocab_size=263, num_hidden_layers=1)
    (base / "chat_template.jinja").unlink()
    write_tokenizer(base)
    asks = [{"messages": [{"role": "user", "content": f"say {n}"}], "want": "e"} for n in range(3)]
    (folder / "asks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asks))
    (folder / "guide.py").write_text(
        "def letters(row, text):\n    return sum(c.isascii() for c in text) / (len(text) or 1)\n"
        "def nothing(row, text):\n    return None\n"
    )
    given = {"data": [str(folder / "asks.jsonl")], "model": [str(base)]}
    run_stage(TOKENIZE, Tokenize(for_="prompt"), given, folder / "prompts", Options(threads=1))
    return folder


def rollout(work, name, ports, **options):
    cfg = make(Rollout, **{"max_new_tokens": 8} | options)
    given = {"prompts": [str(work / "prompts")], "policy": [str(work / "base")]} | ports
    run_stage(STAGE, cfg, given, work / name, Options(threads=1))
    table = pa.Table.from_batches(list(TableReader(work / name / ROLLOUTS, ROLLOUTS_V1)))
    return table.to_pylist(), load_artifact(work / name).manifest.metrics


def test_searched_answers_are_better_and_say_what_they_cost(work):
    guide = {"guide": [f"{work / 'guide.py'}:letters"]}

    def mean(rows):
        return sum(sum(c.isascii() for c in row["output"]) / (len(row["output"]) or 1) for row in rows) / len(rows)

    plain, _ = rollout(work, "plain", {}, samples=8)
    for method in ("best_of_n", "beam", "dvts", "mcts"):
        options = {"search": method, "beams": 2, "width": 4, "step_tokens": 2, "samples": 1, "search_tokens": 100}
        rows, metrics = rollout(work, method, guide, **options)
        assert len(rows) == 3
        assert mean(rows) > mean(plain)
        assert metrics["search_tokens"] > metrics["sampled_tokens"] > 0
        for row in rows:
            assert len(row["logp"]) == row["trained_tokens"] == row["length"] - row["prompt_length"]
            assert json.loads(row["transcript"])[0]["score"] is not None


def test_steps_of_a_tree_are_labels_for_a_process_reward_model(work):
    guide = {"guide": [f"{work / 'guide.py'}:letters"]}
    options = {"search": "mcts", "width": 3, "step_tokens": 2, "samples": 50, "search_tokens": 120, "right_at": 0.7}
    rows, _ = rollout(work, "labelled", guide, **options)
    labels = [json.loads(row["extra"])["label"] for row in rows]
    assert [len(row["spans"]) for row in rows] == [len(label) for label in labels]
    assert {True, False} == {item for label in labels for item in label}
    assert json.loads(rows[0]["extra"])["want"] == "e"
    run_stage(PACK, Pack(row_tokens=128), {"tokens": [str(work / "labelled")]}, work / "packed", Options(threads=1))
    cfg = make(Train, objective="prm", tuner="full", epochs=1, bins_per_step=1)
    given = {"packed": [str(work / "packed")], "model": [str(work / "base")]}
    run_stage(TRAIN, cfg, given, work / "learned", Options(threads=1))
    given |= {"packed": [str(work / "packed")]}
    cfg = make(Train, objective="prm", epochs=1, bins_per_step=1)
    run_stage(TRAIN, cfg, given, work / "learned-adapter", Options(threads=1))
    for name in ("learned", "learned-adapter"):
        guide = {"prm": [str(work / name)]}
        rows, _ = rollout(work, f"by-{name}", guide, **options | {"playouts": 0, "samples": 1})
        assert len(rows) == 3


def test_a_model_judges_prefixes_as_transformers_reads_them(work):
    torch.manual_seed(0)
    base = transformers.AutoConfig.from_pretrained(work / "base", num_labels=2)
    model = transformers.AutoModelForTokenClassification.from_config(base).float().eval()
    model.save_pretrained(work / "prm")
    guide = ModelGuide([work / "prm"], threads=1)
    prompts = [{"input_ids": [5, 6, 7]}, {"input_ids": [9]}]
    paths = [Path(prompt=0, tree=0, key="0", ids=[1, 2]), Path(prompt=1, tree=0, key="0", ids=[3, 4, 8])]
    found = guide([(prompt, path, "") for prompt, path in zip(prompts, paths, strict=True)])
    for prompt, path, score in zip(prompts, paths, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt["input_ids"] + path.ids])).logits[0, -1]
        assert score == pytest.approx(float(logits.softmax(-1)[1]), abs=1e-5)
    rows, _ = rollout(work, "by-prm", {"prm": [str(work / "prm")]}, search="dvts", step_tokens=3, samples=2)
    assert [row["sample"] for row in rows] == [0, 1] * 3


def test_what_cannot_be_searched_is_said(work):
    with pytest.raises(ConfigError, match="--guide or --prm"):
        rollout(work, "never", {}, search="beam")
    with pytest.raises(ValueError, match="temperature 0 makes equal"):
        make(Rollout, search="beam", temperature=0)
    with pytest.raises(StageError, match="judged none"):
        rollout(work, "never", {"guide": [f"{work / 'guide.py'}:nothing"]}, search="best_of_n")
    with pytest.raises(ArtifactError, match="does not judge steps"):
        rollout(work, "never", {"prm": [str(work / "base")]}, search="beam")
