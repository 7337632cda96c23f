"""The rounds of a loop, in one process: each stage is run as on the command line, and makes its artifact.

There is no state but artifacts. A round is done when its weights are there; one that was broken off is begun again, and
what is up to date in it is not made again. So a loop that is killed at any moment ends with the bytes of one that never
was. Strictly on-policy: a round samples with the weights of the round before, and its train refuses others.
"""

import contextlib
import gc
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import numpy as np

from postmill.cli.chain import Step
from postmill.cli.follow import PARENT
from postmill.cli.loop import Plan
from postmill.cli.loop_record import OwnStatus, Record, of_rewards, of_samples, of_training, text_of
from postmill.cli.others import Others
from postmill.io.commit import remove_artifact
from postmill.io.digest import digest_bytes
from postmill.io.errors import MISMATCH, STOPPED, StageError
from postmill.io.json_file import write_json
from postmill.io.manifest import MANIFEST, Artifact, load_artifact
from postmill.io.rewards import RewardsReader
from postmill.stages.kept import Kept
from postmill.stages.options import changed
from postmill.stages.progress import Progress
from postmill.stages.runner import Options, run_stage
from postmill.stages.shared.child_limits import end_with_parent

_LONGEST_PAUSE_S = 0.5


class Rounds:
    """Runs a plan."""

    def __init__(self, plan: Plan, *, threads: int, part: str = "") -> None:
        """part: of `loop.PARTS`, the process that this is; empty for all in one."""
        self._plan, self._options, self._part = plan, Options(threads=threads), part
        self._kept = Kept() if part and not plan.loop.reload else None
        self._holding = msgspec.structs.replace(self._options, kept=self._kept)
        self._folder = plan.folder
        self._others = Others(plan.folder, part)
        self._own = OwnStatus(plan.folder, part, plan.loop.rounds)
        self._record = Record(plan.folder)
        self._held: dict[str, str] = {}
        """What rounds were sampled with: digests of what the engine held, and of the weights' files it was given."""

    def run(self) -> Path:
        """All rounds that are not done. Returns the folder of what was made last."""
        with self._own, self._models():
            return self._run_train()

    def _run_train(self) -> Path:
        plan = self._plan
        for step in plan.before:
            self._stage(step)
        start = self._next_round()
        lines, self._record.seconds = self._record.read(start), {}
        for number in range(start, plan.loop.rounds):
            self._own.round = number
            measured = self._measure(number) if number % plan.loop.measure_every == 0 else {}
            lines.append(self._one(number) | measured)
            self._record.write(lines)
            self._prune(number)
        lines[-1] |= self._measure(plan.loop.rounds)
        self._record.write(lines)
        last = self._weights(plan.loop.rounds) or Path()
        for step in plan.after:
            self._stage(self._placed(step, {str(plan.train.output): str(last)}, step.output))
            last = step.output
        return last

    def follow(self) -> Path:
        """One process's share of all rounds. What the others make is waited for: an artifact is whole or not there.

        Raises StageError: (75) when told to stop while waiting, (69) if another process of the loop failed or is lost.
        """
        rollout, reward = self._plan.rollout, self._plan.reward
        if PARENT in os.environ:
            end_with_parent()
            if os.getppid() != int(os.environ[PARENT]):
                raise StageError("the process that started this part of the loop is gone", STOPPED)
        with self._own, self._models(), _heard():
            if self._part == "train":
                return self._run_train()
            for step in self._plan.before:
                self._wait(step.output / MANIFEST)
            for number in range(self._next_round(), self._plan.loop.rounds):
                self._own.round = number
                if self._part == "rollout":
                    version = max(0, number - self._plan.loop.lag)
                    self._wait(self._place(version - 1) / "done" if version else self._folder)
                    self._sample(number)
                else:
                    self._wait(self._place(number) / rollout.name / MANIFEST)
                    self._reward(number)
        return self._place(self._plan.loop.rounds - 1) / (rollout if self._part == "rollout" else reward).name

    def _wait(self, path: Path) -> None:
        """Until `path` is there. Raises StageError (69) where it can no longer come: see `Others`."""
        pause = 0.02
        while not path.exists():
            if pause >= _LONGEST_PAUSE_S:
                self._own.say("", "waiting", waiting_for=path)
                self._others.check(path)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _sample(self, number: int) -> Artifact:
        """The rollouts of a round, by the weights of `lag` rounds before."""
        rollout, loop, folder = self._plan.rollout, self._plan.loop, self._place(number)
        weights = self._weights(max(0, number - loop.lag))
        sampled = self._stage(
            self._placed(
                rollout,
                self._folders(number),
                folder / rollout.name,
                weights=weights,
                prompts_from=number * loop.prompts,
                prompts_count=loop.prompts,
                seed=_seed(loop.seed, number),
            )
        )
        self._check_engine(sampled, weights)
        return sampled

    def _reward(self, number: int) -> Artifact:
        """What other models say of the samples of a round, the critic once there is one; and their rewards."""
        reward, critic = self._plan.reward, self._made_before(number, self._plan.critic)
        folders, place = self._folders(number), self._place(number)
        for step in self._plan.scores:
            placed = self._placed(step, folders, place / step.name)
            if step is not self._plan.values:
                self._stage(placed)
            elif critic is not None:
                self._stage(_with_critic(placed, critic))
            else:
                reward = msgspec.structs.replace(
                    reward, inputs={p: v for p, v in reward.inputs.items() if p != "values"}
                )
        return self._stage(self._placed(reward, folders, place / reward.name))

    def _folders(self, number: int) -> dict[str, str]:
        """What sections make in a round, by what they make in the recipe."""
        return {str(step.output): str(self._place(number) / step.name) for step in self._plan.rounds}

    def _one(self, number: int) -> dict[str, Any]:
        """A round; returns its line of the record."""
        rollout, reward, pack, train = self._plan.rollout, self._plan.reward, self._plan.pack, self._plan.train
        loop, folder, folders = self._plan.loop, self._place(number), self._folders(number)
        weights, seed = self._weights(number), _seed(loop.seed, number)
        if self._part:
            self._wait(folder / reward.name / MANIFEST)
            sampled, rewarded = load_artifact(folder / rollout.name), load_artifact(folder / reward.name)
        else:
            sampled = self._sample(number)
            rewarded = self._reward(number)
        line = {"step": number + 1} | of_samples(sampled) | of_rewards(rewarded)
        live = ~np.isnan(RewardsReader([rewarded.path], [sampled]).advantage)
        if not live.any():
            Progress.say("loop", f"round {number + 1}: no sample has an advantage, so there is no update", always=True)
            write_json(folder / "skipped.json", {"reason": "no_advantage"})
            return line | {"skipped": True}
        packed = self._stage(self._placed(pack, folders, folder / pack.name))
        epochs = train.config.epochs if "--epochs" in train.options else 1
        trained = self._stage(
            self._placed(
                train,
                folders,
                folder / train.name,
                weights=weights,
                seed=seed,
                keep_state=True,
                save_every=0,
                schedule="constant",
                epochs=epochs,
                bins_per_step=-(-int(packed.manifest.metrics["bins"]) // loop.updates),
                lr=train.config.peak_lr * loop.rate(number),
                **({"mu_start": number * loop.updates * epochs} if train.inputs.get("demonstrations") else {}),
            )
        )
        line |= of_training(trained) | self._learn_values(number)
        seconds = sum(self._record.seconds.values())
        Progress.say("loop", f"round {number + 1}/{loop.rounds}: {text_of(line)}, {seconds:.1f} s", always=True)
        return line

    def _learn_values(self, number: int) -> dict[str, Any]:
        """Train the critic on the round's returns, from what it was before; what the record has of that."""
        critic = self._plan.critic
        if critic is None:
            return {}
        before = self._made_before(number, critic)
        step = self._placed(
            critic,
            self._folders(number),
            self._place(number) / critic.name,
            seed=_seed(self._plan.loop.seed, number),
            keep_state=True,
            save_every=0,
        )
        trained = self._stage(step if before is None else _with_critic(step, before))
        return {f"{critic.name}.loss": of_training(trained)["loss"]}

    def _measure(self, number: int) -> dict[str, Any]:
        """Run the sections of `measure` on the weights before round `number`."""
        weights, folder = self._weights(number), self._folder / "measured" / f"{number:05d}"
        folders = {str(step.output): str(folder / step.name) for step in self._plan.measures}
        measured: dict[str, Any] = {}
        for step in self._plan.measures:
            made = self._stage(self._placed(step, folders, folder / step.name, weights=weights))
            metrics = made.manifest.metrics
            if made.manifest.kind == "rewards":
                measured[step.name] = metrics["reward_mean"]
                measured |= {f"{step.name}.pass_at_{k}": value for k, value in metrics["pass_at"].items() if k != "1"}
            elif made.manifest.kind == "rollouts":
                measured |= {f"{step.name}.length": metrics["mean_length"], f"{step.name}.nats": -metrics["mean_logp"]}
        if measured:
            said = ", ".join(f"{name} {value:.4g}" for name, value in measured.items() if value is not None)
            Progress.say("loop", f"before round {number + 1}: {said}", always=True)
        return measured

    def _placed(
        self, step: Step, folders: dict[str, str], output: Path, *, weights: Path | None = None, **options: Any
    ) -> Step:
        """A section with this round's inputs, output, weights and options."""
        inputs = {port: [_moved(text, folders) for text in texts] for port, texts in step.inputs.items()}
        if weights is not None:
            port = {"rollout": "policy", "train": "from"}.get(step.stage.name)
            if port:
                inputs[port] = [str(weights)]
        config = changed(step.config, **options) if options else step.config
        return msgspec.structs.replace(step, inputs=inputs, output=output, config=config)

    def _stage(self, step: Step) -> Artifact:
        """Make what the step makes, unless it is there."""
        self._own.say(step.name)
        started = time.monotonic()
        step.output.parent.mkdir(parents=True, exist_ok=True)
        # what is measured now and then leaves the memory to the part's own work
        is_own = step.name in (self._plan.rollout.name, self._plan.train.name)
        options = self._holding if is_own else self._options
        try:
            run_stage(step.stage, step.config, step.inputs, step.output, options)
        except Exception as error:
            error.args = (f"{step.name}: {error}", *error.args[1:])
            raise
        finally:
            if step.stage.name in ("rollout", "score", "train"):
                self._free_models()
        self._record.seconds[step.name] = round(time.monotonic() - started, 2)
        return load_artifact(step.output)

    def _free_models(self) -> None:
        """A model that is no longer used goes before the next one is loaded."""
        gc.collect()
        if not gc.get_freeze_count():
            gc.freeze()  # modules are loaded by now and stay: looking through them took 0.2 s each time

    def _check_engine(self, sampled: Artifact, weights: Path | None) -> None:
        """Raise StageError (78) if other weights left the same tensors in the engine: it did not load them."""
        [held] = sampled.manifest.metrics["weights"]
        files = load_artifact(weights).manifest.files if weights else []
        wanted = " ".join(file.digest for file in files if file.path.endswith(".safetensors") and "/" not in file.path)
        if self._held.setdefault(held, wanted) != wanted:
            raise StageError(
                f"{sampled.path}: the engine held the tensors {held[:23]} of a round before, not those of {weights};"
                " its samples are not of these weights",
                MISMATCH,
            )

    def _place(self, number: int) -> Path:
        return self._folder / "rounds" / f"{number:05d}"

    def _weights(self, number: int) -> Path | None:
        """The weights that round `number` begins with; None where it is those of the recipe."""
        return self._made_before(number, self._plan.train)

    def _made_before(self, number: int, step: Step | None) -> Path | None:
        """What a section of the rounds made last before round `number`; None where there is no such thing."""
        if step is None:
            return None
        for before in range(number - 1, -1, -1):
            path = self._place(before) / step.name
            if (path / MANIFEST).is_file():
                return path
        return None

    def _next_round(self) -> int:
        """The last round that is done, which is looked at again: it may be of other options."""
        number = 0
        while number < self._plan.loop.rounds and self._is_done(number):
            number += 1
        return max(0, number - 1)

    def _is_done(self, number: int) -> bool:
        place = self._place(number)
        last = self._plan.rounds[-1]
        return (place / "done").is_file() or (place / last.name / MANIFEST).is_file()

    def _prune(self, number: int) -> None:
        """Mark the round as done, and remove weights that no round needs."""
        (self._place(number) / "done").touch()
        for step in (self._plan.train, self._plan.critic):
            names = [step.name] if step is not None else []
            places = [self._place(n) / name for name in names for n in range(number, -1, -1)]
            kept = [path for path in places if (path / MANIFEST).is_file()]
            for path in kept[max(self._plan.loop.keep, self._plan.loop.lag + 2) :]:
                remove_artifact(path)
                shutil.rmtree(path.parent / f"{path.name}.checkpoints", ignore_errors=True)

    @contextlib.contextmanager
    def _models(self) -> Iterator[None]:
        """What is held between rounds goes at their end: a server ends before its loop does."""
        try:
            yield
        finally:
            if self._kept is not None:
                self._kept.close()


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """SIGTERM and SIGINT end a wait as they end a stage: with 75."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StageError(f"stopped by {signal.Signals(number).name}; run the same command again to go on", STOPPED)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_critic(step: Step, critic: Path) -> Step:
    """A section that trains the critic on, or asks it: a model, or an adapter of one."""
    port = "from" if step.stage.name == "train" else load_artifact(critic).manifest.kind
    return msgspec.structs.replace(step, inputs=step.inputs | {port: [str(critic)]})


def _moved(text: str, folders: dict[str, str]) -> str:
    """An input that names what a section of the recipe makes, as what it makes in this round."""
    label, equals, path = text.rpartition("=")
    return f"{label}{equals}{folders.get(path, path)}"


def _seed(seed: int, number: int) -> int:
    return int(digest_bytes(f"loop:{seed}:{number}".encode())[7:22], 16)
