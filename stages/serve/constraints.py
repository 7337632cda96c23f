"""What a request says of the form of its answer, to what the engine holds answers to.

OpenAI's `response_format`, vLLM's `structured_outputs` and its older `guided_...` fields say the same thing.
"""

import json
from typing import Any

from postmill.stages.serve.errors import ApiError, invalid, unsupported
from postmill.stages.serve.fields import Common, StructuredOutputs
from postmill.stages.serve.service import Service
from postmill.stages.shared.agent_formats.parser import THINK
from postmill.stages.shared.engine.protocol import Constraint

_ANY_OBJECT = '{"type": "object"}'


async def read_constraint(
    service: Service,
    body: Common,
    *,
    is_reasoning: bool = False,
    calls: tuple[Constraint, str] | None = None,
) -> Constraint | None:
    """The form of the answer, checked; is_reasoning: it begins once the reasoning that the prompt opened is closed.
    calls: the form of tool calls, and the field that asks for it.

    Raises ApiError (400): `invalid_schema` for what no answer can be held to.
    """
    constraints = _said(body) + ([] if calls is None else [calls])
    if not constraints:
        return None
    if len(constraints) > 1:
        (_, first), (_, second) = constraints[:2]
        raise invalid(second, f"{second} and {first} both say what the answer has to be; give one.")
    constraint, param = constraints[0]
    if body.ignore_eos:
        raise invalid("ignore_eos", f"ignore_eos and {param} exclude each other.")
    await check_constraint(service, constraint, param)
    return Constraint(kind=constraint.kind, source=constraint.source, after=_after(service) if is_reasoning else None)


async def check_constraint(service: Service, constraint: Constraint, param: str) -> None:
    """Raises ApiError (400) for what no answer can be held to. It is compiled apart from the loop."""
    fault = await service.in_thread(lambda: service.worker.constraint_fault(constraint))
    if fault.startswith("grammars need"):
        raise unsupported(param, f"{param}: {fault}.")
    if fault:
        code = "schema_too_complex" if "larger than" in fault or "TooComplex" in fault else "invalid_schema"
        raise ApiError(400, code, f"{param}: {fault}.", param)


def _after(service: Service) -> int:
    """The token that closes reasoning. Raises ApiError (400) for a model that has none."""
    ids = service.speaker.ids(THINK[1], special=False)
    if len(ids) != 1:
        raise unsupported("response_format", "This model's reasoning does not end with one token; turn it off.")
    return ids[0]


def _said(body: Common) -> list[tuple[Constraint, str]]:
    """All forms that are asked for, with the fields that ask."""
    constraints: list[tuple[Constraint, str]] = []
    if body.response_format is not None:
        form = _response_format(body.response_format)
        constraints += [] if form is None else [(form, "response_format")]
    old = StructuredOutputs(
        json=body.guided_json, regex=body.guided_regex, choice=body.guided_choice, grammar=body.guided_grammar
    )
    for fields, prefix in ((body.structured_outputs or StructuredOutputs(), "structured_outputs."), (old, "guided_")):
        if fields.json is not None:
            text = fields.json if isinstance(fields.json, str) else json.dumps(fields.json)
            constraints.append((Constraint(kind="json_schema", source=text), f"{prefix}json"))
        if fields.json_object:
            constraints.append((Constraint(kind="json_schema", source=_ANY_OBJECT), f"{prefix}json_object"))
        if fields.regex is not None:
            constraints.append((Constraint(kind="regex", source=fields.regex), f"{prefix}regex"))
        if fields.choice is not None:
            constraints.append((Constraint(kind="choice", source=json.dumps(fields.choice)), f"{prefix}choice"))
        if fields.grammar is not None:
            constraints.append((Constraint(kind="grammar", source=fields.grammar), f"{prefix}grammar"))
    return constraints


def _response_format(form: dict[str, Any]) -> Constraint | None:
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint(kind="json_schema", source=_ANY_OBJECT)
    if kind != "json_schema":
        raise invalid(
            "response_format.type", f"response_format.type: {kind!r}: expected text, json_object, json_schema."
        )
    named = form.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        place = "response_format.json_schema.schema"
        raise ApiError(400, "missing_required_parameter", f"Missing required parameter: {place!r}.", place)
    return Constraint(kind="json_schema", source=json.dumps(schema))
