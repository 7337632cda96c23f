"""`postmill loop RECIPE`: sample, reward, pack, train, and again with the new weights."""

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from postmill.cli.chain import Step, find_recipe, read_steps
from postmill.cli.flags import Given, parse_recipe, resolve
from postmill.cli.run import settings_of
from postmill.cli.tool import parse
from postmill.io.errors import ConfigError
from postmill.stages.train.objectives.value_options import Value

USAGE = """
Sample answers, reward them and train on them, round after round, each with the weights of the one before.

usage: postmill loop RECIPE [DATA...] [-m MODEL] -o FOLDER [options]

  postmill loop grpo questions.jsonl -m HuggingFaceTB/SmolLM2-135M-Instruct -o out/
  postmill loop grpo.toml -o out/ --rounds 200 --set train.lr=1e-4
  postmill loop grpo.toml -o out/ --follow all --set loop.lag=1
  postmill status out/

A recipe is one of `postmill run` with a section [loop]. Sections before the first rollout are run once; from that to
the train after it is a round (with a critic: score before the reward, and a train of objective value after the other);
sections that [loop] names in `measure` are run now and then; the others at the end.

  -o FOLDER        where outputs go: FOLDER/rounds/00012/rollout, .../reward, .../pack, .../train
  -m MODEL         the model, for every stage that needs one
  --rounds N       rounds in all, whatever the recipe says
  --set KEY=VALUE  set an option of a section (train.lr=2e-4, loop.prompts=32), or model, data
  --follow all     sample, reward and train in three processes side by side; with loop.lag=1 one samples while the
                   other trains. The same bytes as without. A process that is killed is started again
  --follow PART    be one of them, and wait for the others: rollout, reward or train
  --threads N      threads of a stage (default: all cores)
  --dry-run        print the commands of the first round; do nothing
  --quiet          no progress (-q)

The same command goes on where it was stopped or killed, to the same bytes. It prints the folder of the last weights.
"""
PARTS = ("rollout", "reward", "train")
"""The processes of a loop."""
_SHORT = {"-o": "--output", "-m": "--model", "-q": "--quiet"}


class Loop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section [loop] of a recipe."""

    rounds: Annotated[int, Meta(ge=1)] = 100
    """Rounds in all."""
    prompts: Annotated[int, Meta(ge=1)] = 16
    """Prompts of a round, in the order of their table and from its start again at the end."""
    updates: Annotated[int, Meta(ge=1)] = 1
    """Updates from the samples of a round, for each of train's epochs (1 unless the recipe says more)."""
    warmup: Annotated[int, Meta(ge=0)] = 0
    """Rounds over which the learning rate rises to that of train."""
    cooldown: Annotated[int, Meta(ge=0)] = 0
    """Rounds at the end over which the learning rate falls towards 0."""
    measure: list[str] = []
    """Sections to run on the newest weights before the first round, every `measure_every` rounds, and at the end."""
    measure_every: Annotated[int, Meta(ge=1)] = 25
    """See `measure`."""
    lag: Annotated[int, Meta(ge=0, le=64)] = 0
    """Rounds by which the weights that sample are behind those that are trained. 0 is strictly on-policy."""
    keep: Annotated[int, Meta(ge=2)] = 2
    """Newest weights to keep, with their optimizer's state; samples and rewards of all rounds stay."""
    reload: bool = False
    """With --follow, load models anew in each round. By default the process that samples and the one that trains hold
    theirs between rounds, where only an adapter changes."""
    seed: Annotated[int, Meta(ge=0, lt=2**62)] = 0
    """Decides the seeds of every round."""

    def rate(self, number: int) -> float:
        """The learning rate of round `number`, from 0, as a share of train's."""
        return min(1.0, (number + 1) / max(self.warmup, 1), (self.rounds - number) / max(self.cooldown, 1))


class Plan(msgspec.Struct, frozen=True):
    """The sections of a recipe by what the loop does with them."""

    loop: Loop
    before: list[Step]
    rollout: Step
    scores: list[Step]
    """What other models say of the samples, between rollout and reward."""
    reward: Step
    pack: Step
    train: Step
    measures: list[Step]
    after: list[Step]
    folder: Path
    critic: Step | None = None
    """Trained after the policy, on the returns of the round."""

    @property
    def rounds(self) -> list[Step]:
        """The sections of a round, in their order."""
        last = [] if self.critic is None else [self.critic]
        return [self.rollout, *self.scores, self.reward, self.pack, self.train, *last]

    @property
    def values(self) -> Step | None:
        """The section that asks the critic of the round before; None without a critic."""
        found = [step for step in self.scores if [str(step.output)] == self.reward.inputs.get("values")]
        return found[0] if found and self.critic is not None else None


def run(argv: list[str]) -> int:
    """Run all rounds. Returns 0; errors are raised with their exit code, 75 after a signal."""
    rest, settings = settings_of(argv)
    valued = ("--output", "--model", "--rounds", "--threads", "--follow")
    args = parse([_SHORT.get(word, word) for word in rest], USAGE, switches=("--dry-run", "--quiet"), valued=valued)
    if args is None:
        return 0
    if not args.words:
        raise ConfigError("usage: postmill loop RECIPE [DATA...] [-m MODEL] -o FOLDER [options]")
    if args.words[1:]:
        settings["data"] = args.words[1:]
    if args.has("--model"):
        settings["model"] = [args.options["--model"]]
    if args.has("--rounds"):
        settings["loop.rounds"] = [args.options["--rounds"]]
    output = Path(args.options["--output"]) if args.has("--output") else None
    plan = read_plan(find_recipe(args.words[0]), settings, output)
    if args.has("--dry-run"):
        sys.stdout.write("".join(f"{step.command}\n" for step in [*plan.before, *plan.rounds, *plan.after]))
        return 0
    threads = args.options.get("--threads", "0")
    if not threads.isdecimal():
        raise ConfigError(f"--threads {threads}: expected a number from 0 up")
    part = args.options.get("--follow", "")
    if part and plan.critic is not None:
        raise ConfigError("--follow: a critic is trained in turn with the policy; leave --follow out")
    if part == "all":
        from postmill.cli.follow import follow_all

        return follow_all(argv, plan.folder)
    if part and part not in PARTS:
        raise ConfigError(f"--follow {part}: expected all, or one of {', '.join(PARTS)}")
    from postmill.cli.rounds import Rounds
    from postmill.stages.progress import Progress

    with Progress.install(quiet=args.has("--quiet")):
        rounds = Rounds(plan, threads=int(threads), part=part)
        last = rounds.follow() if part else rounds.run()
    sys.stdout.write(f"{last}\n")
    return 0


def read_plan(path: Path, settings: dict[str, list[str]], output: Path | None) -> Plan:
    """The sections of a recipe. Raises ConfigError (2) for a recipe that makes no rounds."""
    said = _said_of_loop(path, settings)
    loop: Loop = resolve(Loop, said, f"{path}: loop")
    steps = read_steps(path, settings, output, besides=("loop",))
    names = [step.name for step in steps]
    for name in loop.measure:
        if name not in names:
            raise ConfigError(f"{path}: [loop] measure: {name}: no such section; there are {', '.join(names)}")
    kinds = [step.stage.name if step.name not in loop.measure else "" for step in steps]
    if "rollout" not in kinds or "train" not in kinds[kinds.index("rollout") :]:
        raise ConfigError(f"{path}: a loop needs a section of rollout and one of train after it")
    first = kinds.index("rollout")
    end = kinds.index("train", first) + 1
    if kinds[end : end + 1] == ["train"] and isinstance(steps[end].config.objective, Value):
        end += 1
    inside = steps[first:end]
    scores = [step for step in inside if step.stage.name == "score"]
    critic = inside[-1] if kinds[first:end].count("train") > 1 else None
    wanted = ["rollout", *("score" for _ in scores), "reward", "pack", "train", *(["train"] if critic else [])]
    if [step.stage.name for step in inside] != wanted:
        alternatives = ", ".join(step.name for step in inside)
        raise ConfigError(
            f"{path}: a round is rollout, any score, reward, pack, train, and for a critic one more train, of objective"
            f" value; between its ends stand {alternatives}"
        )
    rollout, reward, pack, train = (step for step in inside if step not in (*scores, critic))
    _check_train(path, train)
    plan = Plan(
        loop=loop,
        before=[step for step in steps[:first] if step.name not in loop.measure],
        rollout=rollout,
        scores=scores,
        reward=reward,
        pack=pack,
        train=train,
        critic=critic,
        measures=[step for step in steps if step.name in loop.measure],
        after=[step for step in steps[end:] if step.name not in loop.measure],
        folder=inside[0].output.parent,
    )
    if critic is not None and plan.values is None:
        raise ConfigError(
            f"{path}: {reward.name}: does not use what the critic {critic.name} says; add a section of score before it,"
            ' and values = "THAT SECTION"'
        )
    return plan


def _said_of_loop(path: Path, settings: dict[str, list[str]]) -> dict[str, list[Given]]:
    section: Any = parse_recipe(path).get("loop")
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: no section [loop]; run it with `postmill run`, or add one: [loop] rounds = 100")
    said = {key: [Given(value, f"{path}: loop.{key}", False)] for key, value in section.items()}
    for key, values in settings.items():
        head, _, option = key.partition(".")
        if head == "loop":
            said[option.replace("-", "_")] = [Given(value, f"--set {key}", True) for value in values]
    return said


def _check_train(path: Path, step: Step) -> None:
    """Raises ConfigError (2) for options of train that the rounds decide."""
    for flag, why in {
        "--schedule": "a round is a few steps; [loop] warmup and cooldown say how the rate goes",
        "--steps": "say it as [loop] rounds and updates",
        "--bins-per-step": "say it as [loop] updates",
        "--batch.bins-per-step": "say it as [loop] updates",
    }.items():
        if flag in step.options and step.options[step.options.index(flag) + 1] != "constant":
            raise ConfigError(f"{path}: {step.name}: {flag[2:]}: cannot be said in a loop: {why}")
