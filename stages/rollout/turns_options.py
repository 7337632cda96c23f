"""Options of conversations of several turns."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Turns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Conversations of several answers, with --env or --tools."""

    max_turns: Annotated[int, Meta(ge=1)] = 8
    """Most answers in one conversation, with --env or --tools."""
    max_tokens: Annotated[int, Meta(ge=0)] = 0
    """Longest conversation in tokens, its prompt and what it was told included; 0 is what the model reads."""
    agent_format: str | None = None
    """How the model writes calls: hermes, llama3, ... (docs/agent-formats.md). Default: that of the prompts, or what
    the chat template writes."""
    history: Literal["fork", "extend"] = "fork"
    """Where the template writes the past of a conversation otherwise than it was sampled (it drops thinking): `fork`
    goes on in a row of its own with the past as the template has it, `extend` goes on with the past as it was."""
    call_limit_s: Annotated[float, Meta(gt=0)] = 60.0
    """Longest time that an environment or a tool may take for one call."""
    time_limit_s: Annotated[float, Meta(ge=0)] = 0.0
    """Longest time for all calls of one conversation together, which then ends with what it has; 0 is none."""
    env_memory_mb: Annotated[int, Meta(ge=64)] = 4096
    """Most memory that a process with a Python environment or tools may map."""
