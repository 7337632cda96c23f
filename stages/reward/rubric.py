"""A model behind a URL grades answers by a rubric.

The rubric is a text of the user's; `stages/shared/judging.py` has what is said around it, and reads the grade. Replies
are kept in a journal, so a run that was stopped pays for no grade twice. A row without a grade has no score and a
reason, and is never 0.
"""

import json
from pathlib import Path

from postmill.io.digest import digest_json
from postmill.io.errors import BAD_DATA, NO_INPUT, ArtifactError
from postmill.stages.progress import Progress
from postmill.stages.protocol import Input, Out
from postmill.stages.reward.row import Answer, Row
from postmill.stages.reward.rubric_options import Judge
from postmill.stages.shared.engine.ask import ask_all
from postmill.stages.shared.engine.endpoint import Endpoint
from postmill.stages.shared.engine.protocol import Reply, Request, Sampling
from postmill.stages.shared.engine.url import UrlEngine
from postmill.stages.shared.judging import ask_for_grade, read_grade

_DETAIL_CHARACTERS = 300


def resolve(port: str, reference: str) -> list[Input]:
    """A rubric, named after its file. Raises ArtifactError (66) for no such file, (65) for an empty one."""
    path = Path(reference)
    if not path.is_file():
        raise ArtifactError(f"--rubric {reference}: no such file", NO_INPUT)
    text = path.read_text("utf-8")
    if not text.strip():
        raise ArtifactError(f"--rubric {reference}: is empty; write what a good answer is like", BAD_DATA)
    return [Input(port, "function", digest_json([text]), path.stem, path)]


def messages_of(rubric: str, row: Row, solution: str, cfg: Judge) -> list[dict[str, str]]:
    """What the judge is asked about a row."""
    said = "\n".join(f"{message.get('role')}: {message.get('content')}" for message in row.messages)
    reference = row.columns.get(solution)
    reference = None if reference is None else str(reference)
    return ask_for_grade(said, row.output, rubric, reference, (cfg.lowest, cfg.highest))


class UrlJudge:
    """The model of `endpoint`, asked about rows."""

    def __init__(self, endpoint: Endpoint, cfg: Judge, out: Out) -> None:
        """Raises ArtifactError (66) for the key's file, StageError (69) where the server cannot be asked."""
        self._engine, self._cfg, self._out = UrlEngine(endpoint, concurrency=cfg.judges), cfg, out

    def grade(self, rubric: Input, rows: list[Row], solution: str) -> list[Answer]:
        """An answer a row, in their order. Raises StageError: (69) if the server goes away, (75) when stopped."""
        assert rubric.path is not None
        text, cfg = rubric.path.read_text("utf-8"), self._cfg
        asked = [messages_of(text, row, solution, cfg) for row in rows]
        answers = [Answer()] * len(rows)
        open_rows = list(range(len(rows)))
        for number in range(cfg.grade_tries):
            requests = [
                Request(key=f"{row:08d}", prompt_ids=[], seed=(rows[row].seed + number) % 2**31, messages=asked[row])
                for row in open_rows
            ]
            replies = ask_all(
                self._engine,
                requests,
                Sampling(max_new_tokens=cfg.grade_tokens, temperature=cfg.grade_temperature),
                out=self._out,
                name=_journal(rubric, number),
                what=f"grades by {rubric.name}",
            )
            for row in open_rows:
                answers[row] = self._answer(replies[f"{row:08d}"])
            open_rows = [row for row in open_rows if answers[row].reason == "no_grade"]
        return answers

    def _answer(self, reply: Reply) -> Answer:
        if reply.error is not None:
            return Answer(reason="refused", detail=reply.error[:_DETAIL_CHARACTERS])
        score = read_grade(reply.text or "", (self._cfg.lowest, self._cfg.highest))
        if score is None:
            return Answer(reason="no_grade", detail=(reply.text or "")[-_DETAIL_CHARACTERS:])
        return Answer(score=score)

    def say_cost(self) -> None:
        """What was asked and paid for, on stderr."""
        Progress.show(f"reward: judge {json.dumps(self._engine.usage)}")


def _journal(rubric: Input, number: int) -> str:
    return f"{rubric.name}-{number}.jsonl"


def forget_replies(rubrics: list[Input], cfg: Judge, out: Out) -> None:
    """Remove the journals, once their grades are in the artifact."""
    if rubrics:
        out.forget(*(_journal(rubric, number) for rubric in rubrics for number in range(cfg.grade_tries)))
