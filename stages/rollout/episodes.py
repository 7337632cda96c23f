"""Conversations of several turns: the model answers, an environment or tools answer, and so on.

All conversations take their turn together, so that what is asked of the engine is a pure function of the prompts. What
the environment says is appended as tokens that are never trained on; `dialogue.py` says when that cannot be, and the
conversation goes on in a row of its own. Whatever goes wrong in a conversation is an error of its row.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from postmill.io.digest import digest_bytes
from postmill.stages.rollout.dialogue import Dialogue, Messages, Unwritable
from postmill.stages.rollout.host import EnvironmentAnswer, Host, Talk
from postmill.stages.rollout.rows import Branch, Ended, Sample
from postmill.stages.rollout.turns_options import Turns
from postmill.stages.shared.engine.protocol import Reply, Request

Ask = Callable[[Sequence[Request], int], dict[str, Reply]]
"""Replies by key, to requests with at most so many new tokens."""


class Episode:
    """One sample of a prompt."""

    def __init__(self, prompt: dict[str, Any], sample: int, key: str, seed: int) -> None:
        self.prompt, self.sample, self.key, self.seed = prompt, sample, key, seed
        self.talk = Talk(key)
        self.messages: Messages = msgspec.json.decode(prompt["messages"] or b"[]")
        self.tools: Messages | None = msgspec.json.decode(prompt["tools"] or b"null")
        self.said: Messages = []
        """What followed the prompt, with answers as they were sampled: what a template is given."""
        self.transcript: Messages = []
        """The same for people and rewards: calls apart from what is said beside them."""
        self.branches = [Branch(start=len(prompt["input_ids"]), ids=list(prompt["input_ids"]))]
        self.turn = 0
        self.num_calls = 0
        self.error: str | None = None
        self.is_done = False

    @property
    def branch(self) -> Branch:
        return self.branches[-1]

    def end(self, finish: str) -> None:
        """The last branch is whole."""
        self.branch.finish, self.is_done = finish, True

    def fail(self, error: str) -> None:
        """Nothing of this conversation is trained on."""
        self.error = error
        self.end("error")

    def sample_of(self) -> Sample:
        """It, as rows."""
        return Sample(
            prompt=self.prompt,
            number=self.sample,
            seed=self.seed,
            messages=msgspec.json.encode(self.messages).decode(),
            branches=self.branches,
            transcript=self.transcript,
            error=self.error,
        )

    def row(self) -> dict[str, Any]:
        """What the environment is given."""
        columns: dict[str, Any] = msgspec.json.decode(self.prompt["extra"] or b"{}")
        return columns | {"messages": self.messages, "tools": self.tools}


class Episodes:
    """Takes conversations to their end."""

    def __init__(
        self, cfg: Turns, dialogue: Dialogue, ended: Ended, host: Host, *, max_new_tokens: int, window: int | None
    ) -> None:
        """window: tokens that the model reads."""
        self._cfg, self._dialogue, self._ended, self._host = cfg, dialogue, ended, host
        limits = [limit for limit in (cfg.max_tokens, window) if limit]
        self._max_new_tokens, self._max_tokens = max_new_tokens, min(limits, default=None)
        self.forks: Counter[str] = Counter()

    def run(self, episodes: Sequence[Episode], ask: Ask) -> None:
        """Every episode gets its branches and its finish."""
        self._reset(episodes)
        while live := [episode for episode in episodes if not episode.is_done]:
            replies = self._answers(live, ask)
            answered = [episode for episode in live if not episode.is_done]
            actions = [(episode.talk, self._take(episode, replies[_turn_key(episode)])) for episode in answered]
            asked = [(e, action) for e, (_, action) in zip(answered, actions, strict=True) if not e.is_done]
            said = self._host.ask([(episode.talk, action) for episode, action in asked])
            for (episode, _), answer in zip(asked, said, strict=True):
                self._follow(episode, answer)
        self._host.ask([(episode.talk, {"call": "close"}) for episode in episodes if episode.error is None])

    def _reset(self, episodes: Sequence[Episode]) -> None:
        calls = [(e.talk, {"call": "reset", "row": e.row(), "seed": e.seed}) for e in episodes]
        for episode, said in zip(episodes, self._host.ask(calls), strict=True):
            if said.error is not None:
                episode.fail(f"environment: {said.error}")
                continue
            if said.tools is not None or said.messages:
                episode.tools = episode.tools if said.tools is None else said.tools
                episode.messages = said.messages or episode.messages
                try:
                    ids = self._dialogue.start(episode.messages, episode.tools)
                except Unwritable as error:
                    episode.fail(str(error))
                    continue
                episode.branches = [Branch(start=len(ids), ids=ids)]
            elif not episode.messages:
                episode.fail("the prompt is no conversation")

    def _answers(self, live: Sequence[Episode], ask: Ask) -> dict[str, Reply]:
        """An answer to each conversation that has room for one, by key; the others end."""
        by_room: dict[int, list[Request]] = {}
        for episode in live:
            room = self._max_new_tokens
            if self._max_tokens is not None:
                room = min(room, self._max_tokens - len(episode.branch.ids))
            if room < 1:
                self._end_early(episode, "length")
                continue
            seed = _seed(episode.seed, episode.turn)
            request = Request(key=_turn_key(episode), prompt_ids=list(episode.branch.ids), seed=seed)
            by_room.setdefault(room, []).append(request)
        replies: dict[str, Reply] = {}
        for room, requests in sorted(by_room.items()):
            replies |= ask(requests, room)
        return replies

    def _end_early(self, episode: Episode, finish: str) -> None:
        if episode.turn == 0:
            episode.fail(f"the prompt of {len(episode.branch.ids)} tokens leaves no room for an answer")
        else:
            episode.end(finish)

    def _take(self, episode: Episode, reply: Reply) -> dict[str, Any]:
        """Add an answer; what to tell the environment."""
        if reply.error is not None:
            episode.fail(reply.error)
            return {}
        branch, first = episode.branch, len(episode.branch.ids)
        branch.ids += reply.ids
        branch.runs.append((first, len(branch.ids), episode.turn))
        branch.logp += reply.logp
        is_stopped = reply.finish == "stop"
        branch.finish, branch.stop_id = reply.finish, self._ended.stop_id(reply)
        branch.output = text = self._ended.text(reply)
        beside, calls = self._dialogue.calls(text, episode.tools)
        episode.said.append({"role": "assistant", "content": text})
        episode.transcript.append({"role": "assistant", "content": beside if calls else text})
        if calls:
            episode.transcript[-1]["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        episode.num_calls += len(calls)
        if not is_stopped:
            calls = []  # an answer that was cut has no say; the environment may still give a reward
        return {"call": "step", "text": text, "calls": calls, "finish": reply.finish}

    def _follow(self, episode: Episode, said: EnvironmentAnswer) -> None:
        """Add what the environment says, and decide whether the conversation goes on."""
        is_late = bool(self._cfg.time_limit_s) and episode.talk.seconds >= self._cfg.time_limit_s
        if said.error is not None:
            if said.error == "timeout" and is_late:
                episode.end("limit")
            else:
                episode.fail(f"environment: {said.error}")
            return
        branch = episode.branch
        if said.reward is not None:
            branch.rewards.append((len(branch.ids), said.reward))
            episode.transcript[-1]["reward"] = said.reward
        episode.transcript += said.messages
        episode.turn += 1
        if branch.finish != "stop":
            episode.end("length")
        elif said.done:
            episode.end("env_done")
        elif is_late:
            episode.end("limit")
        elif episode.turn >= self._cfg.max_turns:
            episode.end("max_turns")
        else:
            try:
                self._append(episode, said.messages)
            except Unwritable as error:
                episode.fail(str(error))

    def _append(self, episode: Episode, messages: Messages) -> None:
        """Go on behind the answer, or in a branch of its own. Raises Unwritable."""
        branch, cfg = episode.branch, self._cfg
        episode.said += messages
        everything = episode.messages + episode.said
        behind = self._dialogue.follow(messages, episode.tools)
        # an answer that a constraint ended has no token that closes it
        ids = branch.ids + (behind if branch.stop_id is None else behind[1:])
        why = ""
        if not behind or branch.stop_id not in (None, behind[0]):
            why = "closing"
        elif cfg.history == "fork" and not self._dialogue.is_written(ids, everything, episode.tools):
            if episode.turn == 1:
                self._dialogue.check_start(branch.ids[: branch.start], episode.messages, episode.tools)
            why = "template"
        if not why:
            branch.ids = ids
            return
        self.forks[why] += 1
        branch.finish = f"fork:{why}"
        ids = self._dialogue.start(everything, episode.tools)
        episode.branches.append(Branch(start=len(ids), ids=ids))


def _turn_key(episode: Episode) -> str:
    return f"{episode.key}-{episode.turn:03d}"


def _seed(seed: int, turn: int) -> int:
    """A turn's own; the first one's is that of the sample."""
    return (
        seed if turn == 0 else int.from_bytes(bytes.fromhex(digest_bytes(f"{seed}:{turn}".encode())[7:23]), "big") >> 1
    )
