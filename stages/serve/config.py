"""Options of `serve`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.shared.answer_tokens import check_answers
from postmill.stages.spec import Port, Stage

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Serve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answer over HTTP as OpenAI and Anthropic do, from a model and any number of adapters by name."""

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """Port to listen at; 0 takes a free one. The address is printed on stdout once requests are answered."""
    name: str = ""
    """Name of the model in requests. Default: the name of its folder."""
    key_file: str = ""
    """File with keys, one a line, alone or as NAME:KEY. Every route but /health asks for one of them. Needed unless
    --host is this machine's own."""
    admin_key_file: str = ""
    """File with keys, as --key-file, that also open the routes which add and remove adapters. Without it these routes
    do not exist."""
    adapter_dir: str = ""
    """Folder that adapters may be added from while the server runs."""
    no_auth: bool = False
    """Answer without keys on an address that other machines reach."""
    allow_host: list[str] = []
    """Names that the Host header of a request may have; may be given several times. Default: this machine's own names
    when --host is one of them, else any."""
    max_running: Annotated[int, Meta(ge=1)] = 64
    """Requests that take part in a step of generation."""
    max_waiting: Annotated[int, Meta(ge=0)] = 256
    """Requests that may wait for their turn; one more is answered with 429."""
    max_new_tokens: Annotated[int, Meta(ge=1)] = 4096
    """Longest answer; also what a request gets that does not say."""
    max_body_bytes: Annotated[int, Meta(ge=1)] = 8 * 2**20
    """Largest request."""
    max_n: Annotated[int, Meta(ge=1)] = 16
    """Most answers to one request."""
    request_timeout_s: Annotated[float, Meta(gt=0)] = 600.0
    """Longest time for one request, in seconds."""
    drain_s: Annotated[float, Meta(ge=0)] = 30.0
    """After SIGTERM, running requests have this many seconds to finish."""
    cache_tokens: Annotated[int, Meta(ge=0)] = 0
    """Room for keys and values, in tokens; 0 is what a quarter of free memory holds."""
    tool_format: str = "auto"
    """Agent format that finds tool calls in answers, as `tokenize --agent-format` names them; `off` leaves them in the
    text, `auto` goes by the model's chat template."""
    head: Literal["auto", "pool"] = "auto"
    """auto: text, or what the model was trained for: embeddings, classes, relevance, a reward. pool: embeddings of any
    model."""
    answers: list[str] = []
    """Answer /rerank and /score as generative rerankers do: by how likely the first of two tokens, like yes,no, is
    behind both texts. Unset: as the model was trained."""
    pooling: Literal["auto", "last", "mean", "cls"] = "auto"
    """What an embedding is made of: the text's last token, the mean over its tokens, or its first. auto: what the model
    was trained with, and mean for one that was not trained for it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What to compute in: auto is float32 on a CPU and bfloat16 on a GPU."""
    log: Literal["none", "access"] = "access"
    """`access` writes one line of JSON a request to stderr, without what was said."""

    def __post_init__(self) -> None:
        if self.host not in _LOOPBACK and not self.key_file and not self.no_auth:
            raise ValueError(f"host {self.host!r} can be reached by other machines; pass --key-file FILE, or --no-auth")

        check_answers(self.answers, self.head)
        if bool(self.admin_key_file) != bool(self.adapter_dir):
            raise ValueError("admin_key_file and adapter_dir belong together: pass both, or none")

    @property
    def is_loopback(self) -> bool:
        return self.host in _LOOPBACK


STAGE = Stage(
    name="serve",
    version=1,
    config=Serve,
    inputs={
        "served": Port(kinds=("model", "adapter"), help="a model, or an adapter over its base"),
        "adapter": Port(
            kinds=("adapter",),
            flag="--adapter",
            many=True,
            named=True,
            required=False,
            help="NAME=ADAPTER: one more model, by name; may be given several times",
        ),
        "model": Port(
            kinds=("model",),
            flag="-m",
            required=False,
            help="base of the adapter; by default the one it came from",
        ),
    },
    output="",
    implied="postmill.stages.shared.base_model:imply_served",
    example="postmill serve base/ --adapter moss=run/ --port 8000",
    first=("host", "port", "name", "key_file", "max_running", "max_waiting", "max_new_tokens", "drain_s"),
)
