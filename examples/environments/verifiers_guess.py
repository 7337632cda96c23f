"""A taskset for `verifiers_env.py`: guess a number from 1 to 9 in three tries, each told whether it is higher."""

import verifiers.v1 as vf
from openai import AsyncOpenAI

TRIES = 3


class Number(vf.TaskData):
    """A game."""

    number: int


class Guess(vf.Task[Number]):
    """How a game is judged."""

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        """1 for the number at the first try, a third less for each try more."""
        tries = trace.num_turns
        return (TRIES + 1 - tries) / TRIES if trace.last_reply.strip() == str(self.data.number) else 0.0


class Guesses(vf.Taskset[Guess]):
    """Nine games."""

    def load(self) -> list[Guess]:
        """Game n is about n + 1."""
        asked = "Guess a number from 1 to 9."
        return [Guess(Number(prompt=asked, number=number), self.config.task) for number in range(1, 10)]


class GuessConfig(vf.EnvConfig):
    """Who plays."""

    agent: vf.AgentConfig = vf.AgentConfig()


class GuessEnv(vf.Env[GuessConfig]):
    """Up to three tries."""

    async def run(self, task: Guess, agents: vf.Agents) -> None:
        """Answer each wrong try."""
        async with agents.agent.interaction(task) as game:
            said = await game.turn()
            for _ in range(TRIES - 1):
                if said.terminated or said.last_reply == str(task.data.number):
                    return
                said = await game.turn("Higher." if said.last_reply < str(task.data.number) else "Lower.")


class ChatHarness(vf.Harness[vf.HarnessConfig]):
    """Asks the endpoint once a turn, in this process."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data) -> vf.ProgramResult:  # noqa: PLR0917
        """One answer."""
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else []
        if not messages:
            messages = [{"role": one.role, "content": one.content} for one in prompt]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as client:
            await client.chat.completions.create(model=ctx.model, messages=messages)
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


__all__ = ["ChatHarness", "GuessEnv", "Guesses"]
