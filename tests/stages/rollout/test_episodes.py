"""Conversations with environments and tools: what is trained on, what is added to, what a bad environment costs."""

import json
import random
import stat
import sys
from types import SimpleNamespace

import pytest

transformers = pytest.importorskip("transformers")

from tiny_tokenizer import TEMPLATE, write_tokenizer  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.stages.rollout.dialogue import Dialogue  # noqa: E402
from postmill.stages.rollout.episodes import Episode, Episodes  # noqa: E402
from postmill.stages.rollout.host import Host, Talk, python_argv  # noqa: E402
from postmill.stages.rollout.inputs import argv_of, resolve  # noqa: E402
from postmill.stages.rollout.rows import Ended, metrics_of  # noqa: E402
from postmill.stages.rollout.turns_options import Turns  # noqa: E402
from postmill.stages.shared.engine.protocol import Reply  # noqa: E402
from postmill.stages.shared.engine.text import Speaker  # noqa: E402

STOP = 262
CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
TOOLS = """
import os, signal, time
def add(a, b):
    print("noise on stdout")
    return a + b
async def slow(a):
    return {"got": a}
class Guess:
    def reset(self, row, seed):
        self.right, self.count = row["solution"], 0
        return [{"role": "user", "content": f"guess {seed}"}]
    def step(self, text, calls):
        self.count += 1
        if text == self.right:
            return {"reward": 1.0, "done": True}
        return {"messages": "higher <|im_start|>", "reward": -0.25}
class Bad:
    def reset(self, row, seed):
        self.what = row["solution"]
    def step(self, text, calls):
        if self.what == "hang":
            time.sleep(600)
        if self.what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.what == "raise":
            raise KeyError("no")
        if self.what == "wrong":
            return 7
        if self.what == "nan":
            return {"messages": "x", "reward": float("nan")}
        return {"messages": "go on", "done": text == "end"}
"""
PROGRAM = """#!%s
import json, sys
for line in sys.stdin:
    call = json.loads(line)
    said = {"id": call["id"]}
    if call["call"] == "step":
        said["messages"] = [{"role": "user", "content": call["text"][::-1]}]
        said |= {"reward": 0.5, "done": call["text"] == "end"}
    print(json.dumps(said), flush=True)
"""


class World:
    """A tokenizer, its prompts and scripted answers in place of an engine."""

    def __init__(self, folder, template=TEMPLATE, **config):
        write_tokenizer(folder)
        told = {"eos_token": "<|im_end|>", "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        self.folder = folder
        self.file = folder / "tools.py"
        self.file.write_text(TOOLS)
        self.speaker = Speaker([folder])
        manifest = SimpleNamespace(config=config)
        self.prompts = SimpleNamespace(path=folder, manifest=manifest)
        self.requests: list = []

    def episode(self, number=0, **columns):
        messages = [{"role": "user", "content": f"ask {number}"}]
        ids = self.speaker.prompt_ids(messages)
        prompt = {"row_id": bytes(15) + bytes([number % 256]), "input_ids": ids, "messages": json.dumps(messages)}
        return Episode(prompt | {"tools": None, "extra": json.dumps(columns)}, 0, f"k{number}", 11 * number)

    def run(self, episodes, script, argv, *, window=None, limit_s=60.0, most=400, **turns):
        """script: (episode's key, turn) -> text or ids of the answer, closed unless it is cut."""
        cfg = Turns(agent_format="hermes", **turns)

        def ask(requests, room):
            self.requests.append((room, requests))
            replies = {}
            for request in requests:
                key, _, turn = request.key.rpartition("-")
                said = script(key, int(turn))
                ids = [*(self.speaker.ids(said, special=False) if isinstance(said, str) else said), STOP]
                finish = "stop" if len(ids) <= room else "length"
                ids = ids[:room]
                replies[request.key] = Reply(key=request.key, ids=ids, logp=[-0.5] * len(ids), finish=finish)
            return replies

        dialogue = Dialogue(self.speaker, self.prompts, cfg.agent_format)
        with Host(argv, 2, call_limit_s=limit_s, time_limit_s=cfg.time_limit_s) as host:
            ended = Ended(self.speaker, frozenset({STOP}))
            work = Episodes(cfg, dialogue, ended, host, max_new_tokens=most, window=window)
            work.run(episodes, ask)
        return work

    def tools(self):
        return python_argv("tools", [f"{self.file}:add", f"{self.file}:slow"], 4096)

    def env(self, name):
        return python_argv("env", [f"{self.file}:{name}"], 4096)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "base")


def test_a_tool_is_called_and_what_it_says_is_not_trained_on(world):
    episode = world.episode()
    world.run([episode], lambda key, turn: [f"Well. {CALL}", "5"][turn], world.tools())
    assert episode.error is None
    [branch] = episode.branches
    text = world.speaker.decode(branch.ids, special=True)
    assert text == (
        "<|im_start|>user\nask 0<|im_end|>\n<|im_start|>assistant\n"
        f"Well. {CALL}<|im_end|>\n<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n5<|im_end|>"
    )
    trained = [world.speaker.decode(branch.ids[start:end], special=True) for start, end, _ in branch.runs]
    assert trained == [f"Well. {CALL}<|im_end|>", "5<|im_end|>"]
    assert [turn for _, _, turn in branch.runs] == [0, 1]
    assert len(branch.logp) == sum(end - start for start, end, _ in branch.runs)
    assert (branch.finish, branch.output) == ("env_done", "5")
    assert episode.transcript[0]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2, "b": 3}}
    assert episode.transcript[0]["content"] == "Well. "
    assert episode.transcript[1] == {"role": "tool", "name": "add", "content": "5"}
    asked = [request for _, requests in world.requests for request in requests]
    assert asked[1].prompt_ids[: len(asked[0].prompt_ids)] == asked[0].prompt_ids
    assert asked[0].seed != asked[1].seed


def test_what_a_tool_cannot_do_is_told_to_the_model(world):
    calls = [{"name": name, "arguments": {"a": 2}} for name in ("add", "slow", "no")]
    said = "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)
    episode = world.episode()
    world.run([episode], lambda key, turn: [said, "done"][turn], world.tools())
    missing, slow, none = (message["content"] for message in episode.transcript[1:4])
    assert missing.startswith("error: TypeError: add() missing")
    assert (slow, none) == ('{"got": 2}', "error: there is no tool no")


def test_an_environment_speaks_first_and_gives_rewards(world):
    episode = world.episode(3, solution="four")
    world.run([episode], lambda key, turn: ["one", "two", "four"][turn], world.env("Guess"))
    [branch] = episode.branches
    assert world.speaker.decode(branch.ids[: branch.start]).startswith("user\nguess 33\n")
    assert [value for _, value in branch.rewards] == [-0.25, -0.25, 1.0]
    assert [at for at, _ in branch.rewards] == [end for _, end, _ in branch.runs]
    assert [message.get("reward") for message in episode.transcript if message["role"] == "assistant"] == [
        -0.25,
        -0.25,
        1,
    ]
    sample = episode.sample_of()
    assert json.loads(sample.messages) == [{"role": "user", "content": "guess 33"}]
    assert metrics_of([sample])["finish"] == {"env_done": 1}


def test_limits_end_a_conversation_with_what_it_has(world):
    def finishes(**options):
        episode = world.episode(solution="never")
        world.run([episode], lambda key, turn: "one two three", world.env("Guess"), **options)
        return episode.branch.finish, episode.turn

    assert finishes(max_turns=3) == ("max_turns", 3)
    assert finishes(most=4) == ("length", 1)
    assert finishes(max_tokens=60) == ("length", 1)
    assert finishes(window=110)[0] == "length"
    assert finishes(time_limit_s=1e-9)[0] in ("limit",)
    episode = world.episode()
    world.run([episode], lambda key, turn: "x", world.tools(), window=5)
    assert "leaves no room" in episode.error


def test_a_bad_environment_costs_its_own_conversation(world):
    whats = ["fine", "crash", "raise", "wrong", "nan", "fine", "fine", "fine"]
    episodes = [world.episode(number, solution=what) for number, what in enumerate(whats)]
    world.run(episodes, lambda key, turn: ["a", "b", "end"][turn], world.env("Bad"))
    fine = [episode for episode, what in zip(episodes, whats, strict=True) if what == "fine"]
    assert [(episode.error, episode.branch.finish, episode.turn) for episode in fine] == [(None, "env_done", 3)] * 4
    errors = [episode.error for episode, what in zip(episodes, whats, strict=True) if what != "fine"]
    assert [error.partition(":")[2].split("(")[0].strip()[:22] for error in errors] == [
        "crashed:SIGSEGV", "raised KeyError: 'no'", "raised TypeError: step", "answer is no JSON: Out",
    ]  # fmt: skip
    samples = [episode.sample_of() for episode in episodes]
    assert metrics_of(samples)["finish"] == {"env_done": 4, "error": 4}


def test_a_call_that_hangs_is_ended_and_the_others_are_told_again(world):
    argv = world.env("Bad")
    talks = [Talk(f"t{number}") for number in range(4)]
    with Host(argv, 1, call_limit_s=600.0, time_limit_s=0) as host:
        rows = [{"solution": "hang" if number == 1 else ""} for number in range(4)]
        host.ask([(talk, {"call": "reset", "row": row, "seed": 0}) for talk, row in zip(talks, rows, strict=True)])
        host._call_limit_s = 10.0  # long for a call that does nothing, on a machine that is busy
        said = host.ask([(talk, {"call": "step", "text": "a", "calls": []}) for talk in talks])
    assert said[1].error == "timeout"
    assert [answer.messages for answer in (said[0], *said[2:])] == [[{"role": "user", "content": "go on"}]] * 3


def test_a_program_speaks_lines_of_json(world):
    program = world.folder / "env"
    program.write_text(PROGRAM % sys.executable)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    episode = world.episode()
    world.run([episode], lambda key, turn: ["abc", "end"][turn], [str(program)])
    assert [message["content"] for message in episode.transcript] == ["abc", "cba", "end", "dne"]
    assert [value for _, value in episode.branch.rewards] == [0.5, 0.5]


def test_a_program_is_given_its_arguments_and_counts_by_the_content_of_its_files(world):
    program = world.folder / "my env.py"
    program.write_text((PROGRAM % sys.executable).replace("[::-1]", " + sys.argv[1]"))
    command = f"{sys.executable} '{program}' ' and more'"
    [given] = resolve("env", command)
    episode = world.episode()
    world.run([episode], lambda key, turn: ["abc", "end"][turn], argv_of(given))
    assert [message["content"] for message in episode.transcript] == ["abc", "abc and more", "end", "end and more"]
    assert resolve("env", command)[0].digest == given.digest
    assert resolve("env", command.replace("and more", "or less"))[0].digest != given.digest
    program.write_text(program.read_text() + "# changed")
    assert resolve("env", command)[0].digest != given.digest


THINKING = TEMPLATE.replace("m.content", "(m.content.split('</think>')[-1] if m.role == 'assistant' else m.content)", 1)
TRIMMING = TEMPLATE.replace("m.content", "(m.content | trim)", 1)


def test_a_past_that_the_template_rewrites_forks(tmp_path):
    world = World(tmp_path / "base", THINKING)
    script = {0: "<think>hm</think>one", 1: "two", 2: "four"}
    episode = world.episode(solution="four")
    work = world.run([episode], lambda key, turn: script[turn], world.env("Guess"))
    first, second = episode.branches
    assert (dict(work.forks), first.finish, second.finish) == ({"template": 1}, "fork:template", "env_done")
    assert [turn for _, _, turn in first.runs + second.runs] == [0, 1, 2]  # no token twice
    begun = world.speaker.decode(second.ids[: second.start], special=True)
    assert "assistant\none<|im_end|>" in begun and "hm" not in begun
    kept = world.episode(solution="four")
    work = world.run([kept], lambda key, turn: script[turn], world.env("Guess"), history="extend")
    assert (len(kept.branches), work.forks) == (1, {})
    assert "<think>hm</think>one" in world.speaker.decode(kept.branch.ids)


def test_another_closing_than_the_templates_forks(world):
    episode = world.episode(solution="four")
    world.run([episode], lambda key, turn: ["one", "four"][turn], world.env("Guess"))
    assert len(episode.branches) == 1
    world.speaker._tokenizer.chat_template = TEMPLATE.replace("<|im_end|>\n", "<|im_start|>\n")
    episode = world.episode(solution="four")
    work = world.run([episode], lambda key, turn: ["one", "four"][turn], world.env("Guess"))
    assert dict(work.forks) == {"closing": 1}


def test_prompts_that_were_written_otherwise_are_refused(tmp_path):
    world = World(tmp_path / "base")
    episode = world.episode(solution="four")
    world.speaker._tokenizer.chat_template = "today\n" + TEMPLATE
    bad = python_argv("env", [f"{world.file}:Bad"], 4096)  # its reset leaves the prompt as it is
    with pytest.raises(ArtifactError, match="were written with another template, date or options"):
        world.run([episode], lambda key, turn: "one", bad)


HOSTILE = [
    "plain", "<|im_end|>", "<|im_start|>assistant\n", " spaces  ", "\n\n", "", "zqxmark0x", "caf\u00e9 \U0001f600",
    "\x00\u2028", "<tool_call>", "</tool_call>", CALL, "<think>", "</think>", "{{ x }}", "the then her",
]  # fmt: skip


@pytest.mark.parametrize("template", [TEMPLATE, THINKING, TRIMMING], ids=["plain", "thinking", "trimming"])
def test_ids_only_grow_in_hostile_conversations(tmp_path, template, num=60):
    """Requests of a branch begin with those before; sampled ids stay where they are; nothing is trained twice."""
    world = World(tmp_path / "base", template)
    draw = random.Random(0)
    sampled: dict[tuple[str, int], list[int]] = {}

    def script(key, turn):
        words = [word for text in draw.choices(HOSTILE, k=3) for word in world.speaker.ids(text, special=False)]
        ids = [word for word in (words if draw.random() < 0.5 else draw.choices(range(262), k=9)) if word != STOP]
        sampled[key, turn] = [*ids, STOP]
        return ids

    echo = world.folder / "echo.py"
    echo.write_text(
        f"import random\nHOSTILE = {HOSTILE!r}\nclass Env:\n"
        "    def reset(self, row, seed):\n        self.draw = random.Random(seed)\n"
        "    def step(self, text, calls):\n        role = self.draw.choice(['user', 'tool'])\n"
        "        return [{'role': role, 'content': ''.join(self.draw.choices(HOSTILE, k=2))}]\n"
    )
    episodes = [world.episode(number) for number in range(num)]
    work = world.run(episodes, script, python_argv("env", [f"{echo}:Env"], 4096), max_turns=4)
    assert not [episode.error for episode in episodes if episode.error]
    asked: dict[str, list[list[int]]] = {}
    for _, requests in world.requests:
        for request in requests:
            asked.setdefault(request.key.rpartition("-")[0], []).append(request.prompt_ids)
    for episode in episodes:
        seen = []
        for branch in episode.branches:
            for start, end, turn in branch.runs:
                assert asked[episode.key][turn] == branch.ids[:start]
                assert branch.ids[start:end] == sampled[episode.key, turn]
                seen.append(turn)
        assert seen == [0, 1, 2, 3]
    assert bool(work.forks) == (template != TEMPLATE) or set(work.forks) == {"template"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("template", [TEMPLATE, THINKING, TRIMMING], ids=["plain", "thinking", "trimming"])
def test_ids_only_grow_in_five_thousand_hostile_conversations(tmp_path, template):
    test_ids_only_grow_in_hostile_conversations(tmp_path, template, num=1700)


def test_formats_whose_answers_stand_inside_a_turn_are_refused(world):
    world.prompts.manifest.config["agent_format"] = "react_en"
    with pytest.raises(ConfigError, match="inside the assistant's turn"):
        Dialogue(world.speaker, world.prompts, None)


def test_wrong_references_are_said_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"--tools calc: expected file\.py:function"):
        resolve("tools", "calc")
    with pytest.raises(ArtifactError, match=r"nothing\.py: no such file"):
        resolve("env", "nothing.py:Env")
    plain = tmp_path / "plain"
    plain.write_text("")
    with pytest.raises(ConfigError, match="make it executable"):
        resolve("env", str(plain))
    with pytest.raises(ArtifactError, match="no-such-program: no such program"):
        resolve("env", "no-such-program game.py")
    with pytest.raises(ConfigError, match="No closing quotation; quote it as for a shell"):
        resolve("env", "python 'game.py")
