"""Options of `rollout`."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from postmill.stages.rollout.search_options import Search
from postmill.stages.rollout.turns_options import Turns
from postmill.stages.shared.engine.endpoint import Endpoint
from postmill.stages.shared.engine.options import ENGINES, Dtype, Transformers, check_engine
from postmill.stages.spec import SAME_BYTES, Port, Stage


class Rollout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sample answers to prompts: token ids as they were sampled, with their log-probabilities."""

    samples: Annotated[int, Meta(ge=1, le=2**16)] = 8
    """Answers for each prompt."""
    max_new_tokens: Annotated[int, Meta(ge=1)] = 256
    """Longest answer, in tokens."""
    temperature: Annotated[float, Meta(ge=0)] = 1.0
    """0 takes the likeliest token each time; above, each sample has a seed of its own."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that hold this share of probability. Below 1, log-probabilities are no longer
    those of what was sampled from, and learning from them needs --rl.mismatch none."""
    top_k: Annotated[int, Meta(ge=0)] = 0
    """Sample from this many likeliest tokens; 0 is all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Sample from tokens that have at least this share of the likeliest token's probability."""
    regex: str = ""
    """Hold answers to this regular expression, without look-around. With it or a schema, log-probabilities are no
    longer those of what was sampled from, as with --top-p."""
    json_schema: str = ""
    """Hold answers to this JSON Schema, given as text: --json-schema "$(cat schema.json)"."""
    seed: Annotated[int, Meta(ge=0, lt=2**62)] = 0
    """Decides all samples, together with each prompt and the number of the sample."""
    prompts_from: Annotated[int, Meta(ge=0)] = 0
    """Leave out this many prompts from the start: one batch of a longer run."""
    prompts_count: Annotated[int, Meta(ge=0)] = 0
    """Take this many prompts after that, from the start again at the end; 0 takes the rest."""
    batch_size: Annotated[int, Meta(ge=1)] = 64
    """Samples generated at a time."""
    engine: Annotated[Any, ENGINES] = Transformers()
    """What answers: transformers is our own engine; vllm and command start a server for this run."""
    dtype: Dtype = "auto"
    """What to compute in: auto is float32 on a CPU and bfloat16 on a GPU."""
    endpoint: Endpoint = Endpoint()
    """A server to ask in place of the model here, whose tokenizer is used; it has to give back token ids."""
    search: Search = Search()
    """Answers that are looked for step by step, with --guide or --prm."""
    turns: Turns = Turns()
    """Conversations of several answers, with --env or --tools."""
    max_errors: Annotated[float, Meta(ge=0, le=1), SAME_BYTES] = 0.0
    """Fail if more than this share of samples could not be made."""

    def __post_init__(self) -> None:
        check_engine(self.engine, self.endpoint)
        if self.regex and self.json_schema:
            raise ValueError("regex and json_schema both say what answers have to be; give one")
        if self.json_schema and not self.json_schema.lstrip().startswith("{"):
            raise ValueError('json_schema: expected the schema itself, {...}; pass --json-schema "$(cat FILE)"')
        if self.search.search != "none" and self.temperature == 0:
            raise ValueError("search tries several ways to go on, which temperature 0 makes equal; raise --temperature")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"samples {self.samples} at temperature 0 would all be the same; raise --temperature")


STAGE = Stage(
    name="rollout",
    version=2,
    config=Rollout,
    inputs={
        "prompts": Port(kinds=("prompts",), help="prompts, as `tokenize --for prompt` makes them"),
        "policy": Port(
            kinds=("model", "adapter"),
            flag="-m",
            help="what answers: a model or an adapter; a folder, or owner/name on Hugging Face",
        ),
        "model": Port(
            kinds=("model",),
            flag="--base",
            required=False,
            help="the adapter's base; by default the one it came from",
        ),
        "env": Port(
            kinds=("function",),
            flag="--env",
            required=False,
            resolver="postmill.stages.rollout.inputs:resolve",
            help="an environment that answers the model, turn after turn: file.py:Class, or a program that speaks lines"
            " of JSON, with its arguments in quotes",
        ),
        "guide": Port(
            kinds=("function",),
            flag="--guide",
            required=False,
            resolver="postmill.stages.rollout.inputs:resolve",
            help="for --search, a function(row, text) that gives a number to the start of an answer: file.py:function",
        ),
        "prm": Port(
            kinds=("model", "adapter"),
            flag="--prm",
            required=False,
            help="for --search, a model or an adapter that judges steps: of --objective prm or value",
        ),
        "tools": Port(
            kinds=("function",),
            flag="--tools",
            many=True,
            required=False,
            resolver="postmill.stages.rollout.inputs:resolve",
            help="a function that the model may call by its name: file.py:function",
        ),
    },
    output="rollouts",
    implied="postmill.stages.shared.base_model:imply_searched",
    example="postmill rollout prompts/ -m base/ -o rollouts/ --samples 8 --max-new-tokens 64",
)
