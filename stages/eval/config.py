"""What `postmill eval` can be told."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from postmill.stages.shared.engine.endpoint import Endpoint
from postmill.stages.shared.engine.options import ENGINES, Dtype, Transformers, check_engine
from postmill.stages.spec import SAME_BYTES, Port, Stage

Rule = Literal["exact", "contains", "contains_all", "regex", "choice", "agent", "iou", "anls", "wer"]


class Eval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask a model questions, and score what it answers."""

    task: str = ""
    """A benchmark, whose rows come with --data; its numbers are those of lm-eval. --task-file describes another one."""
    fewshot: Annotated[int, Meta(ge=0)] | None = None
    """Solved rows before each row of the task. Default: the task's own."""
    limit: Annotated[int, Meta(ge=0)] = 0
    """Ask the first rows of the task only; 0 is all."""
    prompt: Literal["raw", "chat"] = "raw"
    """How a task that asks for a text asks: raw is the text alone, as lm-eval does; chat makes a user's message of it,
    in the model's chat template."""
    samples: Annotated[int, Meta(ge=1)] = 1
    """Answers to each row of a task that runs code, like humaneval: pass@1, and pass@10 and pass@100 where there are as
    many. More than one needs --temperature."""
    sandbox: Literal["strong", "weak"] = "strong"
    """Where a task runs code that the model wrote. strong: no files, no network, limits. weak: limits alone, for
    machines without user namespaces; programs can read your files."""
    program_time_s: Annotated[float, Meta(gt=0)] = 10.0
    """Longest time for one program, in seconds."""
    harness: Literal["", "lm-eval", "evalscope", "inspect"] = ""
    """Let this harness ask --task, by its own rules and with its own rows: it asks a server of the model, and its log
    becomes the result. Several tasks are separated by commas."""
    harness_python: Annotated[str, SAME_BYTES] = ""
    """The Python that has the harness, as ~/inspect/bin/python. Default: the one that runs this."""
    harness_argument: list[str] = []
    """A word to add to the harness's command line; may be given several times."""
    question: list[str] = []
    """A question to ask; may be given several times, beside or instead of --ask."""
    system: str = ""
    """System prompt for questions that bring none."""
    engine: Annotated[Any, ENGINES] = Transformers()
    """What answers: transformers is our own engine; vllm and command start a server for this run."""
    max_new_tokens: Annotated[int, Meta(ge=1)] = 128
    """Longest answer."""
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    """0 takes the likeliest token each time; above, each question samples from a seed of its own."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that hold this share of probability."""
    top_k: Annotated[int, Meta(ge=0)] = 0
    """Sample from this many likeliest tokens; 0 is all."""
    seed: Annotated[int, Meta(ge=0, lt=2**62)] = 0
    """Seed of sampling."""
    batch_size: Annotated[int, Meta(ge=1)] = 16
    """Questions generated at a time."""
    dtype: Dtype = "auto"
    """What to compute in: auto is float32 on a CPU and bfloat16 on a GPU."""
    score: Rule = "contains"
    """How to compare an answer where the question does not say."""
    endpoint: Endpoint = Endpoint()
    """A server to ask in place of a model here; it renders the conversation itself."""
    max_errors: Annotated[float, Meta(ge=0, le=1), SAME_BYTES] = 0.0
    """Fail if more than this share of questions could not be asked; a wrong answer is no error."""
    min_accuracy: Annotated[float, Meta(ge=0, le=1), SAME_BYTES] = 0.0
    """Fail if a smaller share of the scored answers is right."""

    def __post_init__(self) -> None:
        check_engine(self.engine, self.endpoint)
        if self.harness and not self.task:
            raise ValueError("harness needs task: the name of one of its tasks, or several with commas between them")
        if not self.harness and (self.harness_python or self.harness_argument):
            raise ValueError("harness_python and harness_argument need harness")
        if self.task and not self.harness and not isinstance(self.engine, Transformers):
            raise ValueError("task reads log-probs of prompts, which only --engine transformers tells")
        if self.task and self.question:
            raise ValueError("task and question exclude each other")


_TESTED = ("model", "adapter", "eval")

STAGE = Stage(
    name="eval",
    version=2,
    config=Eval,
    inputs={
        "tested": Port(
            kinds=_TESTED, required=False, help="a model, an adapter, or an eval artifact whose answers to score again"
        ),
        "ask": Port(kinds=("file",), flag="--ask", required=False, help="questions, one JSON object a line"),
        "data": Port(
            kinds=("file",),
            flag="--data",
            many=True,
            named=True,
            required=False,
            help="SPLIT=FILE: rows of the task, as jsonl, json, csv or parquet; may be given several times",
        ),
        "task_file": Port(
            kinds=("file",),
            flag="--task-file",
            required=False,
            help="a task of your own, described as the built-in ones are",
        ),
        "before": Port(kinds=_TESTED, flag="--before", required=False, help="what to compare with, like the base"),
        "model": Port(
            kinds=("model",),
            flag="-m",
            required=False,
            help="the adapter's base model, a folder or owner/name; default: the one it was trained on",
        ),
    },
    output="eval",
    implied="postmill.stages.shared.base_model:imply_base",
    example="postmill eval tuned/ --ask questions.jsonl --before base/ -o answers/",
)
