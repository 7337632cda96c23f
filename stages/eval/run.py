"""Ask, record, score: answers and scores are tables of their own, so that scoring can be done again without asking."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from postmill.io.errors import BAD_DATA, FAILED, MISMATCH, USAGE, ArtifactError, ConfigError, StageError
from postmill.io.media import read_media
from postmill.io.schemas import EVAL_ITEMS_V1, EVAL_SCORES_V1
from postmill.io.table import TableReader, TableWriter
from postmill.stages.eval.answers import Answer, seed_of
from postmill.stages.eval.config import Eval
from postmill.stages.eval.harness.run import run_harness
from postmill.stages.eval.questions import Question, read_questions
from postmill.stages.eval.report import Side, compare, markdown, summarize, terminal
from postmill.stages.eval.scoring import score
from postmill.stages.eval.tasks.run import run_task
from postmill.stages.progress import Progress
from postmill.stages.protocol import Input, Inputs, Out, Result
from postmill.stages.shared.engine.ask import ask_all
from postmill.stages.shared.engine.options import Wanted, open_engine
from postmill.stages.shared.engine.protocol import Engine, Request, Sampling
from postmill.stages.shared.engine.text import Speaker
from postmill.stages.shared.engine.url import UrlEngine
from postmill.stages.shared.media.decode import decode
from postmill.stages.shared.media.prompt import to_parts

ITEMS, SCORES, REPORT = "items.arrow", "scores.arrow", "report.md"
BOXES = "boxes.json"
"""For each question whose answer is a box: pixels of its picture for 1 in the model's numbers, across and down."""
Scales = dict[str, tuple[float, float]]


def run(cfg: Eval, inputs: Inputs, out: Out) -> Result:
    """Raises ArtifactError (65) for bad questions; StageError (65) over --max-errors, (1) under --min-accuracy."""
    if cfg.harness:
        return run_harness(cfg, inputs, out)
    if cfg.task or inputs["task_file"]:
        return run_task(cfg, inputs, out)
    questions = read_questions(cfg, inputs["ask"][0].path if inputs["ask"] else None)
    base = inputs["model"][0] if inputs["model"] else None
    versions: dict[str, str] = {}
    out.stop.graceful = True
    sides: dict[str, Side] = {}
    digests: dict[str, str] = {}
    if bool(inputs["tested"]) == bool(cfg.endpoint.url):
        raise ConfigError("eval: give a model, an adapter or an eval artifact, or --url, one of them")
    if cfg.endpoint.url:
        sides["tested"], digests["weights"] = _ask_url(cfg, questions, out)
    for port, prefix in (("before", "before_"), ("tested", "")):
        for tested in inputs[port]:
            sides[port], used = _side(cfg, questions, tested, base, out, prefix)
            versions |= used
    before, after = sides.get("before"), sides["tested"]
    out.ledger.keep(len(questions))
    metrics = summarize(questions, after)
    if before:
        metrics["before"] = summarize(questions, before)
        metrics["change"] = compare(questions, before, after)
    (out.dir / REPORT).write_text(markdown(questions, after, before), encoding="utf-8")
    Progress.show(terminal(questions, after, before))
    _gate(cfg, metrics, after)
    out.forget(*(_journal(name) for name in ("", "before_")))
    return Result(metrics=metrics, versions=versions, digests=digests)


def _gate(cfg: Eval, metrics: dict[str, Any], side: Side) -> None:
    if metrics["num_errors"] > cfg.max_errors * metrics["num_items"]:
        first = next(reply for reply in side.replies.values() if reply.error is not None)
        raise StageError(
            f"{metrics['num_errors']} of {metrics['num_items']} questions could not be asked, more than --max-errors"
            f" {cfg.max_errors:.2%}; the first is {first.item_id}: {first.error}",
            BAD_DATA,
        )
    if metrics["accuracy"] is not None and metrics["accuracy"] < cfg.min_accuracy:
        raise StageError(
            f"accuracy {metrics['accuracy']:.4f} ({metrics['num_right']} of {metrics['num_scored']}) is under"
            f" --min-accuracy {cfg.min_accuracy}",
            FAILED,
        )


def _side(  # noqa: PLR0917  every one of them is needed, and named at the one call
    cfg: Eval, questions: list[Question], tested: Input, base: Input | None, out: Out, prefix: str
) -> tuple[Side, dict[str, str]]:
    """Answers of one model, from it or from the artifact that has them, written with scores; and versions used."""
    versions: dict[str, str] = {}
    if tested.kind == "eval":
        replies, scales = _read_replies(tested, questions), _read_scales(tested, questions)
    else:
        assert tested.path is not None
        asked = [base, tested] if tested.kind == "adapter" and base else [tested]
        wanted = Wanted.of(asked, dtype=cfg.dtype, batch_size=cfg.batch_size, threads=out.threads)
        with open_engine(cfg.engine, cfg.endpoint, wanted) as engine:
            replies, scales = _ask(cfg, questions, engine, wanted.folders, out, prefix)
            versions = engine.about.versions
    scores = {q.item_id: score(q, replies[q.item_id].output, scales.get(q.item_id)) for q in questions}
    side = Side(replies, scores)
    _write(out, prefix, questions, side)
    if scales:
        (out.dir / f"{prefix}{BOXES}").write_bytes(msgspec.json.encode(scales, order="sorted"))
    return side, versions


def _ask_url(cfg: Eval, questions: list[Question], out: Out) -> tuple[Side, str]:
    """Answers of a server, which renders the conversation by its own template; and what it says its weights are."""
    if any(question.pictures or question.sounds for question in questions):
        raise ConfigError("--endpoint: pictures and sounds are not sent to servers yet; give the model's folder", USAGE)
    engine = UrlEngine(cfg.endpoint, concurrency=cfg.batch_size)
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, top_k=cfg.top_k, top_p=cfg.top_p
    )
    requests = [
        Request(
            key=question.item_id, prompt_ids=[], seed=seed_of(cfg.seed, question.item_id), messages=question.messages
        )
        for question in questions
    ]
    replies = ask_all(engine, requests, sampling, out=out, name=_journal(""), what="answers")
    answers = {
        key: Answer(item_id=key, error=reply.error)
        if reply.error is not None
        else Answer(item_id=key, output=reply.text, finish_reason=reply.finish)
        for key, reply in replies.items()
    }
    side = Side(answers, {q.item_id: score(q, answers[q.item_id].output) for q in questions})
    _write(out, "", questions, side)
    Progress.show(f"eval: {json.dumps(engine.usage)}")
    return side, engine.loaded.digest


def _journal(prefix: str) -> str:
    return f"{prefix}replies.jsonl"


def _ask(  # noqa: PLR0917  every one of them is needed
    cfg: Eval, questions: list[Question], engine: Engine, folders: list[Path], out: Out, prefix: str
) -> tuple[dict[str, Answer], Scales]:
    """The answer to every question, taking over what an earlier run of the same work got; and what boxes count."""
    speaker = Speaker(folders)
    scales: Scales = {}
    stop_ids = engine.about.stop_ids or speaker.eos_ids
    prompts: dict[str, list[int] | str] = {}
    requests = []
    for question in questions:
        prompt, inputs = _prompt(speaker, question, scales)
        prompts[question.item_id] = prompt
        if isinstance(prompt, list):
            read: Callable[[], dict[str, Any]] | None = functools.partial(dict, inputs) if inputs else None
            requests.append(
                Request(key=question.item_id, prompt_ids=prompt, seed=seed_of(cfg.seed, question.item_id), inputs=read)
            )
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        stop_ids=stop_ids,
    )
    name = _journal(prefix)

    what = f"answers {prefix.rstrip('_')}".strip()
    replies = ask_all(engine, requests, sampling, out=out, name=name, what=what)
    answers: dict[str, Answer] = {}
    for question in questions:
        prompt, key = prompts[question.item_id], question.item_id
        if isinstance(prompt, str):
            answers[key] = Answer(item_id=key, error=prompt)
        elif replies[key].error is not None:
            answers[key] = Answer(item_id=key, error=replies[key].error)
        else:
            reply = replies[key]
            text = speaker.text(reply.ids, is_stopped=reply.finish == "stop")
            answers[key] = Answer(
                item_id=key, prompt_ids=prompt, output=text, output_ids=reply.ids, finish_reason=reply.finish
            )
    return answers, scales


def _prompt(speaker: Speaker, question: Question, scales: Scales) -> tuple[list[int] | str, dict[str, Any]]:
    """Ids up to where the answer begins, or why they cannot be had; and what the model reads of its pictures.

    `scales` gets what the numbers of the answer's box count.
    """
    form = speaker.boxes if question.names or question.boxed is not None else None
    if question.boxed is not None and form is None:
        return "the model's family writes no boxes; ask one that does", {}
    if not question.pictures and not question.sounds and not speaker.reads_pictures:
        return speaker.prompt_ids(question.named("{name}")), {}
    try:
        pictures = [decode(read_media(path), str(path)) for path in question.pictures]
        sounds = [speaker.hear(read_media(path), str(path)) for path in question.sounds]
    except ArtifactError as error:
        return str(error), {}
    messages = question.named(form.name if form else "{name}")
    prompt = speaker.picture_prompt(to_parts(messages, pictures, sounds))
    if isinstance(prompt, str):
        return prompt, {}
    if form and question.boxed is not None:
        picture = pictures[question.boxed]
        scales[question.item_id] = form.pixels_of_one(picture.size, prompt[1], question.boxed)
    return prompt


def _write(out: Out, prefix: str, questions: list[Question], side: Side) -> None:
    replies = [side.replies[question.item_id] for question in questions]
    scores = [side.scores[question.item_id] for question in questions]
    ids = [question.item_id for question in questions]
    _table(
        out.dir / f"{prefix}{ITEMS}",
        EVAL_ITEMS_V1,
        item_id=ids,
        group=[question.group for question in questions],
        prompt=[question.prompt() for question in questions],
        prompt_ids=[reply.prompt_ids for reply in replies],
        output=[reply.output for reply in replies],
        output_ids=[reply.output_ids for reply in replies],
        finish_reason=[reply.finish_reason for reply in replies],
        error=[reply.error for reply in replies],
    )
    _table(
        out.dir / f"{prefix}{SCORES}",
        EVAL_SCORES_V1,
        item_id=ids,
        rule=[question.rule for question in questions],
        expected=[question.answers for question in questions],
        score=[None if s.ok is None else float(s.ok) if s.value is None else s.value for s in scores],
        ok=[s.ok for s in scores],
        reason=[s.reason for s in scores],
    )


def _read_scales(tested: Input, questions: list[Question]) -> Scales:
    """What numbers of boxes count, as the model was asked. Raises ArtifactError (78) where it was not."""
    assert tested.artifact is not None
    file = tested.artifact.file(BOXES)
    found = msgspec.json.decode(file.read_bytes(), type=Scales) if file.is_file() else {}
    for question in questions:
        if question.boxed is not None and question.item_id not in found:
            raise ArtifactError(
                f"{tested.path}: question {question.item_id!r} was not asked for a box there; ask the model again",
                MISMATCH,
            )
    return found


def _table(path: Path, schema: pa.Schema, **columns: list[Any]) -> None:
    writer = TableWriter(path, schema)
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    writer.write(pa.RecordBatch.from_arrays(arrays, schema=schema))
    writer.close()


def _read_replies(tested: Input, questions: list[Question]) -> dict[str, Answer]:
    """Answers of an earlier eval. Raises ArtifactError (78) unless it asked these very questions in these words."""
    assert tested.artifact is not None
    rows = [row for batch in TableReader(tested.artifact.file(ITEMS), EVAL_ITEMS_V1) for row in batch.to_pylist()]
    by_item = {row["item_id"]: row for row in rows}
    for question in questions:
        row = by_item.get(question.item_id)
        if row is None or row["prompt"] != question.prompt():
            why = "was not asked" if row is None else "was asked in other words"
            raise ArtifactError(
                f"{tested.path}: question {question.item_id!r} {why} there; ask the model again", MISMATCH
            )
    keys = Answer.__struct_fields__
    return {q.item_id: Answer(**{key: by_item[q.item_id][key] for key in keys}) for q in questions}
