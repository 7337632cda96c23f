"""Rollout: the prompts of a batch, each answered several times; ids and log-probabilities as they were sampled.

Nothing is encoded again: a row is the prompt's ids followed by the sampled ones, and its spans cover what was sampled.
With an environment or tools, what they say stands between answers. A sample that could not be made is a row with an
error and no spans, never missing.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from postmill.io.errors import BAD_DATA, MISMATCH, USAGE, ArtifactError, ConfigError, StageError
from postmill.io.manifest import Artifact
from postmill.io.media import MEDIA, has_media, medium_of
from postmill.io.model_folder import tokenizer_digest
from postmill.io.rollouts import PROMPTS
from postmill.io.schemas import PROMPTS_V1
from postmill.io.table import TableReader
from postmill.stages.protocol import Inputs, Out, Result
from postmill.stages.rollout.config import Rollout
from postmill.stages.rollout.dialogue import Dialogue
from postmill.stages.rollout.episodes import Episode, Episodes
from postmill.stages.rollout.guides import FunctionGuide, ModelGuide
from postmill.stages.rollout.host import Host, python_argv
from postmill.stages.rollout.inputs import argv_of
from postmill.stages.rollout.rows import Branch, Ended, Sample, digest16, metrics_of, write_samples
from postmill.stages.rollout.search import Searcher
from postmill.stages.rollout.tries import Guide
from postmill.stages.shared.base_model import all_stop_ids
from postmill.stages.shared.engine.ask import ask_all
from postmill.stages.shared.engine.local import LocalEngine
from postmill.stages.shared.engine.options import Wanted, open_engine
from postmill.stages.shared.engine.protocol import Constraint, Engine, Reply, Request, Sampling
from postmill.stages.shared.engine.text import Speaker

_COLUMNS = ["row_id", "source", "line", "input_ids", "channel", "extra", "messages", "tools"]
_KEPT = ("tokenizer", "template")
_JOURNAL = "replies.jsonl"


def run(cfg: Rollout, inputs: Inputs, out: Out) -> Result:
    """Make `rollouts.arrow`, a row a sample, those of a prompt together.

    Raises ArtifactError (65) for prompts that are none, (78) for another tokenizer; StageError (65) over --max-errors,
    (75) when stopped.
    """
    out.stop.graceful = True
    artifact = inputs["prompts"][0].artifact
    assert artifact is not None
    folders = [item.path for port in ("model", "policy") for item in inputs[port] if item.path is not None]
    _check_tokenizer(artifact, folders)
    prompts = _read_prompts(cfg, artifact)

    wanted = Wanted.of(
        [*inputs["model"], *inputs["policy"]], dtype=cfg.dtype, batch_size=cfg.batch_size, threads=out.threads
    )
    with open_engine(cfg.engine, cfg.endpoint, wanted, out.kept) as engine:
        return _rollouts(cfg, inputs, prompts, folders, engine, out)


def _rollouts(  # noqa: PLR0917  every one of them is needed
    cfg: Rollout, inputs: Inputs, prompts: list[dict[str, Any]], folders: list[Path], engine: Engine, out: Out
) -> Result:
    """Ask for every sample and write the table."""
    artifact = inputs["prompts"][0].artifact
    assert artifact is not None
    speaker = Speaker(folders)
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        min_p=cfg.min_p,
        stop_ids=engine.about.stop_ids or frozenset(all_stop_ids(folders)) or speaker.eos_ids,
        constraint=_constraint(cfg, engine),
    )
    more: dict[str, Any] = {}
    model = (engine, Ended(speaker, sampling.stop_ids), sampling)
    is_searched = cfg.search.search != "none"
    if (is_searched or inputs["env"] or inputs["tools"]) and any(prompt.get(MEDIA) for prompt in prompts):
        raise ConfigError("--search, --env, --tools: prompts with pictures are answered once; leave them out", USAGE)
    if is_searched:
        samples, more = _search(cfg, inputs, prompts, model, out)
    elif inputs["env"] or inputs["tools"]:
        samples, more = _talk(cfg, inputs, prompts, model, out)
    else:
        samples = _answer(cfg, prompts, _read_pictures(prompts, folders[0]), model, out)
    _check_errors(cfg, samples)
    num_rows = write_samples(samples, out)
    out.forget(_JOURNAL)
    return Result(
        metrics=_metrics(cfg, artifact, engine) | metrics_of(samples) | {"rows": num_rows} | more,
        digests={name: digest for name, digest in artifact.manifest.digests.items() if name in _KEPT}
        | {"weights": engine.loaded.digest},
        versions=engine.about.versions,
    )


def _constraint(cfg: Rollout, engine: Engine) -> Constraint | None:
    """What answers are held to. Raises ConfigError (2) for what no answer can be, or without the library."""
    if not cfg.regex and not cfg.json_schema:
        return None
    kind: Literal["regex", "json_schema"] = "regex" if cfg.regex else "json_schema"
    constraint = Constraint(kind=kind, source=cfg.regex or cfg.json_schema)
    if isinstance(engine, LocalEngine):
        fault = engine.constraint_fault(constraint)
        if fault:
            raise ConfigError(f"rollout: {fault}", USAGE)
    return constraint


def _check_tokenizer(prompts: Artifact, folders: list[Path]) -> None:
    wanted = prompts.manifest.digests.get("tokenizer")
    holders = [path for path in folders if (path / "tokenizer.json").is_file()]
    found = {tokenizer_digest(path) for path in holders}
    if wanted is not None and holders and wanted not in found:
        raise ArtifactError(
            f"{prompts.path}: its prompts were made with tokenizer {wanted[:23]}, {holders[-1]} has another; make them"
            " with this model",
            MISMATCH,
        )


def _read_prompts(cfg: Rollout, artifact: Artifact) -> list[dict[str, Any]]:
    """The prompts of this run, in order. Raises ArtifactError (65) if there are none, ConfigError (2) if too few."""
    rows: list[dict[str, Any]] = []
    for batch in TableReader(artifact.file(PROMPTS), PROMPTS_V1):
        media = [MEDIA] if has_media(batch.schema) else []
        rows += batch.select(_COLUMNS + media).to_pylist()
    if cfg.endpoint.url and any(row.get(MEDIA) for row in rows):
        raise ConfigError(
            f"{artifact.path}: prompts with pictures are not sent to servers; leave --endpoint.url out, to ask the"
            " model here",
            USAGE,
        )
    if not rows:
        raise ArtifactError(f"{artifact.path}: no prompts", BAD_DATA)
    if cfg.prompts_count > len(rows):
        raise ConfigError(
            f"--prompts-count {cfg.prompts_count}: {artifact.path} has {len(rows)} prompts, and one that is asked twice"
            " gets the same answers; take fewer, or add prompts",
            USAGE,
        )
    if not cfg.prompts_count:
        return rows[cfg.prompts_from :]
    return [rows[(cfg.prompts_from + number) % len(rows)] for number in range(cfg.prompts_count)]


def _key(prompt: dict[str, Any], sample: int) -> str:
    return f"{prompt['row_id'].hex()}-{sample:05d}"


def seed_of(cfg: Rollout, prompt: dict[str, Any], sample: int) -> int:
    """A seed of the sample's own: of the run's seed, the prompt and the number of the sample."""
    return int.from_bytes(digest16(cfg.seed, prompt["row_id"].hex(), sample)[:8], "big") >> 1


_Model = tuple[Engine, Ended, Sampling]


_Pixels = Callable[[], dict[str, Any]]


def _read_pictures(prompts: list[dict[str, Any]], folder: Path) -> list[_Pixels | None]:
    """For each prompt what makes its pixels when it is read, shared by its samples; None for prompts without any."""
    if MEDIA not in prompts[0]:
        return [None] * len(prompts)
    from postmill.stages.shared.media.pixels import Pixels  # which loads torch

    pixels = Pixels(folder)
    found: list[_Pixels | None] = []
    for prompt in prompts:
        pictures = [medium_of(item) for item in prompt[MEDIA]]
        # a model that sees its prompts both ways is told where they end
        needs = pictures or pixels.layout.both_ways == "prompt"
        found.append(functools.partial(pixels.of_prompt, prompt["input_ids"], pictures) if needs else None)
    return found


def _answer(
    cfg: Rollout, prompts: list[dict[str, Any]], pixels: list[_Pixels | None], model: _Model, out: Out
) -> list[Sample]:
    """Each prompt answered `samples` times."""
    engine, ended, sampling = model
    asked = [(prompt, number) for prompt in prompts for number in range(cfg.samples)]
    inputs = [made for made in pixels for _ in range(cfg.samples)]
    requests = [
        Request(key=_key(prompt, n), prompt_ids=prompt["input_ids"], seed=seed_of(cfg, prompt, n), inputs=made)
        for (prompt, n), made in zip(asked, inputs, strict=True)
    ]
    replies = ask_all(engine, requests, sampling, out=out, name=_JOURNAL, what="samples")
    return [
        _sample(prompt, number, seed_of(cfg, prompt, number), replies[_key(prompt, number)], ended)
        for prompt, number in asked
    ]


def _sample(prompt: dict[str, Any], number: int, seed: int, reply: Reply, ended: Ended) -> Sample:
    start, end = len(prompt["input_ids"]), len(prompt["input_ids"]) + len(reply.ids)
    text = ended.text(reply) if reply.error is None else None
    branch = Branch(
        start=start,
        ids=prompt["input_ids"] + reply.ids,
        runs=[(start, end, 0)] if reply.ids else [],
        logp=reply.logp,
        finish=reply.finish,
        stop_id=ended.stop_id(reply),
        output=text,
    )
    answer = [{"role": "assistant", "content": text}] if text is not None else []
    return Sample(
        prompt=prompt,
        number=number,
        seed=seed,
        messages=prompt["messages"],
        branches=[branch],
        transcript=answer,
        error=reply.error,
    )


def _talk(
    cfg: Rollout, inputs: Inputs, prompts: list[dict[str, Any]], model: _Model, out: Out
) -> tuple[list[Sample], dict[str, Any]]:
    """Each prompt talked through `samples` times, and what to say of that."""
    engine, ended, sampling = model
    artifact = inputs["prompts"][0].artifact
    assert artifact is not None
    dialogue = Dialogue(ended.speaker, artifact, cfg.turns.agent_format)
    if inputs["tools"] and not dialogue.format:
        raise ConfigError("--tools: the chat template writes no calls that are known; say --agent-format hermes", USAGE)

    def ask(requests: Sequence[Request], most: int) -> dict[str, Reply]:
        limited = msgspec.structs.replace(sampling, max_new_tokens=most)
        return ask_all(engine, list(requests), limited, out=out, name=_JOURNAL, what="answers")

    episodes = [
        Episode(prompt, number, _key(prompt, number), seed_of(cfg, prompt, number))
        for prompt in prompts
        for number in range(cfg.samples)
    ]
    turns = cfg.turns
    host = Host(
        _program(inputs, turns.env_memory_mb),
        min(out.threads, len(episodes)),
        call_limit_s=turns.call_limit_s,
        time_limit_s=turns.time_limit_s,
    )
    with host:
        work = Episodes(turns, dialogue, ended, host, max_new_tokens=cfg.max_new_tokens, window=engine.about.max_tokens)
        work.run(episodes, ask)
    good = [episode for episode in episodes if episode.error is None]
    return [episode.sample_of() for episode in episodes], {
        "turns": sum(episode.turn for episode in good) / max(len(good), 1),
        "calls": sum(episode.num_calls for episode in good),
        "forks": dict(sorted(work.forks.items())),
    }


def _search(
    cfg: Rollout, inputs: Inputs, prompts: list[dict[str, Any]], model: _Model, out: Out
) -> tuple[list[Sample], dict[str, Any]]:
    """The best answers to each prompt, and what looking for them cost. Raises ConfigError (2) without one guide."""
    engine, ended, sampling = model
    if bool(inputs["guide"]) == bool(inputs["prm"]) or inputs["env"] or inputs["tools"]:
        raise ConfigError("--search needs what judges beginnings of answers: --guide or --prm, and nothing else", USAGE)

    def ask(requests: Sequence[Request], most: int, is_step: bool) -> dict[str, Reply]:
        stop = (cfg.search.step_text,) if is_step and cfg.search.step_text else ()
        limited = msgspec.structs.replace(sampling, max_new_tokens=most, stop=stop)
        return ask_all(engine, list(requests), limited, out=out, name=_JOURNAL, what="steps")

    with contextlib.ExitStack() as stack:
        guide: Guide
        if inputs["prm"]:
            folders = [item.path for item in inputs["prm"] if item.path is not None]
            guide = ModelGuide(folders, threads=out.threads)
        else:
            item, turns = inputs["guide"][0], cfg.turns
            reference = f"{item.path}:{item.name.rpartition(':')[2]}"
            argv = python_argv("guide", [reference], turns.env_memory_mb)
            guide = FunctionGuide(
                stack.enter_context(Host(argv, out.threads, call_limit_s=turns.call_limit_s, time_limit_s=0))
            )
        searcher = Searcher(cfg.search, ended, guide, max_new_tokens=cfg.max_new_tokens, seed=cfg.seed)
        samples = searcher.samples(prompts, searcher.run(prompts, ask), cfg.samples)
    tries = searcher.tries
    if tries.num_judged and tries.num_judged == tries.num_unjudged:
        raise StageError("--guide: judged none of the answers; it has to return a number", BAD_DATA)
    return samples, {
        "search_tokens": searcher.sampled_tokens,
        "judged": tries.num_judged,
        "unjudged": tries.num_unjudged,
    }


def _program(inputs: Inputs, memory_mb: int) -> list[str]:
    """What to start for --env or --tools. Raises ConfigError (2) for both."""
    env, tools = inputs["env"], inputs["tools"]
    if env and tools:
        raise ConfigError("--tools: an environment has tools of its own; leave out --env or --tools", USAGE)
    given = env or tools
    references = [f"{item.path}:{item.name.rpartition(':')[2]}" for item in given]
    if env and (argv := argv_of(env[0])) is not None:
        return argv
    return python_argv("env" if env else "tools", references, memory_mb)


def _check_errors(cfg: Rollout, samples: Sequence[Sample]) -> None:
    failed = [sample for sample in samples if sample.error is not None]
    if len(failed) > cfg.max_errors * len(samples):
        first = failed[0]
        raise StageError(
            f"{len(failed)} of {len(samples)} samples could not be made, more than --max-errors {cfg.max_errors:.2%};"
            f" the first is {_key(first.prompt, first.number)}: {first.error}",
            BAD_DATA,
        )


def _metrics(cfg: Rollout, prompts: Artifact, engine: Engine) -> dict[str, Any]:
    return {
        "sources": prompts.manifest.metrics.get("sources", []),
        "weights": [engine.loaded.digest],
        "proof": engine.loaded.proof,
        "engine": engine.about.kind,
        "logp_kind": "tempered",
        "temperature": cfg.temperature,
        "truncated": bool(cfg.top_k or cfg.top_p < 1 or cfg.min_p or cfg.regex or cfg.json_schema),
    }
