"""Requests as structs, and bodies to them: every fault has a code and the path of the field that is to blame."""

import difflib
import json
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from postmill.stages.serve.errors import ApiError

_DEEPEST = 64

Share = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=0, le=2**31)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Stop = Annotated[str, Meta(max_length=256)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries beside the answer."""

    include_usage: bool = False


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer has to be, in vLLM's words; one of them."""

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Common(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What chat and plain completions share. None is the server's default."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=16)] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    user: str | None = None
    response_format: dict[str, Any] | None = None
    # of vLLM
    top_k: Annotated[int, Meta(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Count | None = None
    stop_token_ids: list[Count] | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Chat(Common, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Completion(Common, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    suffix: str | None = None
    best_of: int | None = None


class Tokenize(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class Detokenize(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Count]


class Embed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/embeddings."""

    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


class Document(msgspec.Struct):
    """A text to be ranked."""

    text: str


class Rerank(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/rerank, as Jina and vLLM have it."""

    model: str
    query: str
    documents: list[str | Document]
    top_n: Count | None = None
    return_documents: bool = True
    use_activation: bool = True
    user: str | None = None


class Rescore(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/score, as vLLM has it."""

    model: str
    text_1: str | list[str]
    text_2: str | list[str]
    use_activation: bool = True


class Classify(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/classify, as vLLM has it."""

    model: str
    input: str | list[Any]
    use_activation: bool = True


class Respond(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/responses."""

    model: str
    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    truncation: str | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    seed: Seed | None = None


class LoadAdapter(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/load_lora_adapter, as vLLM has it."""

    lora_name: Annotated[str, Meta(min_length=1, max_length=256)]
    lora_path: Annotated[str, Meta(min_length=1, max_length=4096)]
    load_inplace: bool = False


class UnloadAdapter(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/unload_lora_adapter, as vLLM has it."""

    lora_name: str
    lora_int_id: int | None = None


class Thinking(msgspec.Struct, kw_only=True):
    """Anthropic's switch for reasoning."""

    type: str
    budget_tokens: int | None = None


class Messages(msgspec.Struct, kw_only=True):
    """POST /v1/messages. Fields that are not here are ignored: clients of Anthropic send new ones each month."""

    model: str
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=16)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None


Wanted = TypeVar("Wanted", bound=msgspec.Struct)


def parse(body: bytes, kind: type[Wanted]) -> Wanted:
    """A body as a request. Raises ApiError (400)."""
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_members, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise ApiError(400, "invalid_json", "The body is not UTF-8.") from None
    except RecursionError:
        raise ApiError(400, "invalid_json", f"The body is nested more than {_DEEPEST} deep.") from None
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"The body is not JSON: {error}") from None
    _check_depth(value)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error), kind) from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _check_depth(value: Any) -> None:
    """Raises ApiError (400) for what is nested too deep, and for text that is no Unicode."""
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not item.isascii() and any("\ud800" <= c <= "\udfff" for c in item):
                raise ApiError(400, "invalid_json", "The body has half a surrogate pair in a text.")
            elif isinstance(item, float) and item in (float("inf"), float("-inf")):
                raise ApiError(400, "invalid_json", "The body has a number that is too large.")
        if not below:
            return
        level = below
    raise ApiError(400, "invalid_json", f"The body is nested more than {_DEEPEST} deep.")


_PLACE = re.compile(r"(.*?)(?: - at `(?:key in )?\$?\.?(.*)`)?", re.DOTALL)


def _explain(text: str, kind: type[msgspec.Struct]) -> ApiError:
    """What msgspec found, with its code and the path of the field."""
    match = _PLACE.fullmatch(text)
    assert match is not None
    what, place = match[1], match[2] or ""
    named = re.search(r"field `([^`]*)`", what)
    if "unknown field" in what and named:
        path = f"{place}.{named[1]}".lstrip(".")
        near = difflib.get_close_matches(named[1], kind.__struct_fields__, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return ApiError(400, "unknown_parameter", f"Unknown parameter: {path!r}.{hint}", path)
    if "missing required field" in what and named:
        path = f"{place}.{named[1]}".lstrip(".")
        return ApiError(400, "missing_required_parameter", f"Missing required parameter: {path!r}.", path)
    is_range = re.match(r"Expected `[^`]*` (<|>|of length|matching|multiple)", what) is not None
    code = "invalid_value" if is_range else "invalid_type"
    return ApiError(400, code, f"Invalid {place or 'body'}: {what[0].lower()}{what[1:]}.", place or None)
