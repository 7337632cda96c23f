"""`postmill chat`: talk with a model in the terminal, or through a pipe."""

import sys
from typing import Any

import msgspec

from postmill.cli.tool import Args, need, parse
from postmill.io.digest import digest_bytes
from postmill.io.errors import BAD_DATA, ConfigError, StageError

USAGE = """
Talk with a model: a line of yours, then an answer, and so on until the end of input. Answers go to stdout.

usage: postmill chat MODEL [-m BASE] [--against MODEL|URL] [options]
       postmill chat --url URL [--url-model NAME] [--key-file FILE] [--against MODEL|URL] [options]

  MODEL              a model or an adapter: a folder, or owner/name on Hugging Face
  -m                 the adapter's base; by default the one it came from
  --url              ask a server that speaks OpenAI's API, in place of MODEL
  --url-model        name of the model there (default: the first that it lists)
  --key-file         file whose first line is the key for the server
  --against          a second model, folder or URL, that answers each line too; answers begin with their model's name
  --system           system prompt
  --max-new-tokens   longest answer, in tokens (default: 512)
  --temperature      0 takes the likeliest token each time (default: 0)
  --top-p            sample from the likeliest tokens that hold this share of probability (default: 1)
  --seed             decides all samples (default: 0)

A line `/new` begins another talk, `/undo` takes back the last question and its answer. An answer is printed when it is
whole. Of two models, each hears the same questions and its own answers.
"""
_VALUED = (
    "-m",
    "--url",
    "--url-model",
    "--key-file",
    "--against",
    "--system",
    "--max-new-tokens",
    "--temperature",
    "--top-p",
    "--seed",
)

Message = dict[str, Any]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the flags say."""

    system: str
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


def read_options(args: Args) -> Options:
    """Raises ConfigError (2) naming every flag whose value cannot be."""
    faults: list[str] = []

    def number(flag: str, kind: type, default: float, least: float, most: float) -> Any:
        said = args.options.get(flag)
        try:
            value = default if said is None else kind(said)
        except ValueError:
            value = most + 1
        if not least <= value <= most:
            faults.append(
                f"{flag}: {said!r}, expected a {'number' if kind is float else 'whole number'} {least} to {most}"
            )
        return value

    chat_options = Options(
        system=args.options.get("--system", ""),
        max_new_tokens=number("--max-new-tokens", int, 512, 1, 2**31),
        temperature=number("--temperature", float, 0.0, 0, 100),
        top_p=number("--top-p", float, 1.0, 1e-6, 1),
        seed=number("--seed", int, 0, 0, 2**62),
    )
    if faults:
        raise ConfigError("\n".join(faults))
    return chat_options


class Talk:
    """A conversation with a model: one that is loaded here, or one of a server, which writes its prompts itself."""

    def __init__(self, engine: Any, speaker: Any | None, options: Options) -> None:
        from postmill.stages.shared.engine.protocol import Sampling

        self._engine, self._speaker = engine, speaker
        self._seed = options.seed
        self._opening: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
        self._sampling = Sampling(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            stop_ids=engine.about.stop_ids or (speaker.eos_ids if speaker is not None else frozenset()),
        )
        self.messages = list(self._opening)

    def new(self) -> None:
        """Forget all that was said."""
        self.messages = list(self._opening)

    def undo(self) -> None:
        """Forget the last question and its answer."""
        if len(self.messages) > len(self._opening):
            del self.messages[-2:]

    def answer(self, question: str) -> str:
        """What the model says. Raises StageError (65), with the talk as it was, if the question cannot be asked."""
        from postmill.stages.shared.engine.protocol import Request

        asked: list[Message] = [*self.messages, {"role": "user", "content": question}]
        prompt = [] if self._speaker is None else self._speaker.prompt_ids(asked)
        if isinstance(prompt, str):
            raise StageError(prompt, BAD_DATA)
        messages = asked if self._speaker is None else None
        seed = int(digest_bytes(f"{self._seed}:{len(asked)}".encode()).removeprefix("blake3:")[:15], 16)
        reply = self._engine.answer(
            [Request(key="chat", prompt_ids=prompt, seed=seed, messages=messages)], self._sampling
        )[0]
        if reply.error is not None:
            raise StageError(f"{reply.error}; begin anew with /new, or lower --max-new-tokens", BAD_DATA)
        if self._speaker is None:
            text = str(reply.text)
        else:
            text = self._speaker.text(reply.ids, is_stopped=reply.finish == "stop")
        self.messages = [*asked, {"role": "assistant", "content": text}]
        return text


def _threads() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _folders(name: str, base: list[str]) -> list[Any]:
    """The model, or the base and its adapter. Raises ArtifactError: 66, 77, 78."""
    from postmill.stages.runner import find_inputs
    from postmill.stages.spec import Port, Stage

    ports = {
        "tested": Port(kinds=("model", "adapter"), help="a model or an adapter"),
        "model": Port(kinds=("model",), flag="-m", required=False, help="the adapter's base"),
    }
    imply = "postmill.stages.shared.base_model:imply_base"
    stage = Stage(name="chat", version=1, config=Options, inputs=ports, output="", implied=imply)
    inputs = find_inputs(stage, {"tested": [name], "model": base})
    tested = inputs["tested"][0]
    if tested.kind == "model" and base:
        raise ConfigError(f"-m: {name} is a model, not an adapter, and has no base; leave -m out")
    return [item.path for item in (*inputs["model"], tested)]


def _engine(args: Args) -> tuple[Any, Any]:
    """What answers, and the tokenizer if it is needed here. Raises ConfigError (2), StageError (69) for a server."""
    if args.has("--url"):
        if args.has("-m"):
            raise ConfigError("-m: a server has its own base; leave -m or --url out")
        url, model, key_file = (args.options.get(flag, "") for flag in ("--url", "--url-model", "--key-file"))
        return _served("--url", url, model=model, key_file=key_file), None
    return _loaded(args.words[0], [args.options["-m"]] if args.has("-m") else [])


def _served(flag: str, url: str, *, model: str, key_file: str) -> Any:
    """The server at `url`, which `flag` names."""
    from postmill.stages.shared.engine.endpoint import Endpoint
    from postmill.stages.shared.engine.url import UrlEngine

    try:
        endpoint = Endpoint(url=url, url_model=model, key_file=key_file)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from None
    return UrlEngine(endpoint, concurrency=1)


def _loaded(name: str, base: list[str]) -> tuple[Any, Any]:
    """A model that is loaded here, and its tokenizer."""
    from postmill.stages.shared.engine.local import LocalEngine
    from postmill.stages.shared.engine.text import Speaker

    folders = _folders(name, base)
    return LocalEngine(folders, threads=_threads()), Speaker(folders)


def _talks(args: Args, options: Options) -> dict[str, Talk]:
    """Those who answer, by name; the name is shown where there are two."""
    first = args.options["--url"] if args.has("--url") else args.words[0]
    talks = {_name(first): Talk(*_engine(args), options)}
    if args.has("--against"):
        second = args.options["--against"]
        if second.startswith(("http://", "https://")):
            key_file = args.options.get("--key-file", "") if args.has("--url") else ""
            opened: tuple[Any, Any] = (_served("--against", second, model="", key_file=key_file), None)
        else:
            opened = _loaded(second, [])
        name = _name(second)
        talks[name if name not in talks else f"{name} (2)"] = Talk(*opened, options)
    return talks


def _name(said: str) -> str:
    """A folder by its last part, a server whole."""
    return said if "://" in said else said.rstrip("/").rpartition("/")[2] or said


def run(argv: list[str]) -> int:
    """Raises ConfigError (2), ArtifactError (66, 77, 78), and StageError (65) for a question that cannot be asked."""
    args = parse(argv, USAGE, valued=_VALUED)
    if args is None:
        return 0
    need(args, *((0, 0) if args.has("--url") else (1, 1)), USAGE)
    options = read_options(args)
    talks = _talks(args, options)
    try:
        return _converse(talks, is_terminal=sys.stdin.isatty())
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130


def _converse(talks: dict[str, Talk], *, is_terminal: bool) -> int:
    while True:
        if is_terminal:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return 0
        question = line.strip()
        for name, talk in talks.items():
            if question == "/new":
                talk.new()
            elif question == "/undo":
                talk.undo()
            elif question:
                _answer(talk, question, f"{name}: " if len(talks) > 1 else "", is_terminal=is_terminal)


def _answer(talk: Talk, question: str, begin: str, *, is_terminal: bool) -> None:
    """Ask and print. Raises StageError (65) through a pipe; on a terminal the talk goes on."""
    try:
        answer = talk.answer(question)
    except StageError as error:
        if not is_terminal:
            raise
        sys.stderr.write(f"{begin}{error}\n")
        return
    sys.stdout.write(f"{begin}{answer}\n")
    sys.stdout.flush()
