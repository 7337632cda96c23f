"""`postmill estimate`: what a run of train would need, before it is started. Weights are not read."""

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.flags import resolve
from postmill.cli.stage_command import parse as parse_stage
from postmill.io.errors import ConfigError, StageError
from postmill.io.packed import PackedReader
from postmill.stages.train.config import STAGE, Train
from postmill.stages.train.cost.advice import changes_that_fit, rank_layouts
from postmill.stages.train.cost.machines import KINDS
from postmill.stages.train.cost.memory import GIB, Part, Setting, disk_bytes, rank_parts, shards_of, total
from postmill.stages.train.cost.shape import Shape, read_shape
from postmill.stages.train.cost.speed import Plan, step_speed

USAGE = """Say what a run of train would need: memory of a rank by use, disk, time, and what would make it fit.

usage: postmill estimate [PACKED] -m MODEL [--ranks N] [--kind KIND] [--memory GIB] [train's options] [--json]
       postmill estimate PACKED -m MODEL --probe [train's options]
       postmill estimate -m MODEL --gpus N --kind KIND [train's options]

  PACKED          a packed artifact: how long bins are, and how many
  -m              a model folder, or only its config.json; weights are not read
  --ranks n       ranks of the run (default 1), eight to a machine
  --kind          h100, h100-500w, h200, a800, a100, or cpu (default)
  --memory n      GiB that a rank has (default: those of --kind, or of this machine)
  --bin-tokens n  length of a bin without PACKED (default 2048)
  --gpus n        rank the layouts of so many GPUs by speed
  --probe         take two steps here, and say what they needed beside what was estimated
  --json          one object on stdout

example:
  postmill estimate packed/ -m base/ --tuner full --kind h100 --ranks 8
  postmill estimate -m base/ --tuner full --gpus 64 --kind h100 --bin-tokens 8192 --bins-per-step 64
"""
_VALUED = ("--ranks", "--kind", "--memory", "--bin-tokens", "--gpus")
_SWITCHES = ("--probe", "--json")


class Asked(msgspec.Struct):
    """What was asked for."""

    own: dict[str, str]
    rest: list[str]
    cfg: Train
    shape: Shape
    model: str
    packed: str
    kind: str
    bin_tokens: int
    trained_share: float
    num_bins: int

    def number(self, name: str, default: int) -> int:
        text = self.own.get(name, str(default))
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(f"{name} {text!r}: expected a number from 1 up")
        return int(text)


def run(argv: list[str]) -> int:
    """0. Raises ConfigError (2), ArtifactError (65, 66), StageError (the code of a probe that failed)."""
    if not argv or "-h" in argv or "--help" in argv:
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    asked = read(argv)
    estimate = layouts(asked) if "--gpus" in asked.own else needs(asked)
    if "--json" in asked.own:
        sys.stdout.write(json.dumps(estimate, indent=2) + "\n")
    else:
        sys.stdout.write(told(estimate))
    return 0


def read(argv: list[str]) -> Asked:
    """Our own options out of argv; the others are train's."""
    own, rest, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        name, has_value, value = word.partition("=")
        if name in _SWITCHES:
            own[name] = ""
        elif name in _VALUED:
            if not has_value and not words:
                raise ConfigError(f"{name}: needs a value")
            own[name] = value if has_value else words.pop(0)
        else:
            rest.append(word)
    call = parse_stage(STAGE, rest)
    cfg = resolve(STAGE.config, call.said, STAGE.name)
    kind = own.get("--kind", "cpu")
    if kind != "cpu" and kind not in KINDS:
        raise ConfigError(f"--kind {kind}: expected one of cpu, {', '.join(KINDS)}")
    if len(call.inputs["model"]) != 1:
        raise ConfigError("estimate: pass one model, -m FOLDER or -m config.json")
    packed = call.inputs["packed"][0] if call.inputs["packed"] else ""
    if "--probe" in own and not packed:
        raise ConfigError("--probe: needs a packed artifact to take steps on")
    model = call.inputs["model"][0]
    asked = Asked(own, rest, cfg, read_shape(Path(model)), model, packed, kind, 2048, 1.0, 0)
    asked.bin_tokens = asked.number("--bin-tokens", 2048)
    if packed:
        plan = PackedReader(Path(packed)).plan
        asked.bin_tokens, asked.num_bins = int(plan.length.max()), len(plan.length)
        asked.trained_share = float(plan.trained_tokens.sum() / plan.length.sum())
    return asked


def needs(asked: Asked) -> dict[str, Any]:
    """Memory, disk, time, and advice."""
    ranks = asked.number("--ranks", 1)
    on_gpu = asked.kind != "cpu"
    setting = Setting(on_gpu, asked.bin_tokens, asked.trained_share, ranks, min(ranks, 8))
    parts = rank_parts(asked.cfg, asked.shape, setting)
    memory = _memory(asked)
    of_rank = total(parts)
    estimate: dict[str, Any] = {
        "parameters": asked.shape.weights,
        "memory": [_row(part) for part in [*parts, of_rank]],
        "limit": memory,
        "fits": of_rank.high <= memory,
        "disk": [_row(part) for part in disk_bytes(asked.cfg, asked.shape)],
    }
    if of_rank.high > memory:
        advice = changes_that_fit(asked.cfg, asked.shape, setting, memory)
        estimate["changes"] = [{"flags": c.flags, "cost": c.cost, "needs": _row(c.needs)} for c in advice]
    if on_gpu:
        estimate["time"] = _time(asked, setting)
    if "--probe" in asked.own:
        estimate["probe"] = probe(asked)
    return estimate


def _time(asked: Asked, setting: Setting) -> dict[str, Any]:
    form, cfg = asked.cfg.parallel, asked.cfg
    shards, data = shards_of(form, setting)
    if cfg.batch.bins_per_step % data:
        raise ConfigError(f"--bins-per-step {cfg.batch.bins_per_step}: not a multiple of {data} data ranks")
    plan = Plan(
        setting.ranks,
        cfg.batch.bins_per_step * asked.bin_tokens,
        asked.bin_tokens,
        tp=form.tp,
        cp=form.cp,
        micro_rows=cfg.batch.micro_bins,
        checkpointing=cfg.compute.gradient_checkpointing,
        sharded=shards > 1,
        state_sharded=shards > 1,
    )
    speed = step_speed(asked.shape, KINDS[asked.kind], plan)
    times = {"step_seconds": speed.seconds, "tokens_per_second": speed.tokens_per_gpu * setting.ranks}
    steps = _num_steps(asked)
    return times | ({"steps": steps, "seconds": steps * speed.seconds} if steps else {})


def _num_steps(asked: Asked) -> int:
    if asked.cfg.steps or not asked.num_bins:
        return asked.cfg.steps
    return asked.cfg.epochs * -(-asked.num_bins // asked.cfg.batch.bins_per_step)


def _memory(asked: Asked) -> float:
    if "--memory" in asked.own:
        try:
            return float(asked.own["--memory"]) * GIB
        except ValueError:
            raise ConfigError(f"--memory {asked.own['--memory']!r}: expected GiB, as 24") from None
    if asked.kind != "cpu":
        return KINDS[asked.kind].memory
    import os

    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / asked.number("--ranks", 1)


def layouts(asked: Asked) -> dict[str, Any]:
    """The fastest layouts of --gpus. Raises ConfigError (2) if there is no GPU kind."""
    if asked.kind == "cpu":
        raise ConfigError("--gpus: pass --kind, the kind of GPU")
    gpus = asked.number("--gpus", 8)
    ranked = rank_layouts(asked.cfg, asked.shape, KINDS[asked.kind], gpus, asked.bin_tokens)
    return {
        "parameters": asked.shape.weights,
        "layouts": [
            {
                "flags": one.flags,
                "step_seconds": one.speed.seconds,
                "tokens_per_second": one.speed.tokens_per_gpu * gpus,
                "needs": _row(one.needs),
            }
            for one in ranked[:8]
        ],
        "tuned": KINDS[asked.kind].tuned,
    }


_PROBE = """
import json, sys, resource
from postmill.cli.main import dispatch
code = dispatch("train", sys.argv[1:])
import torch
gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
print(json.dumps({"code": code, "gpu": gpu, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def probe(asked: Asked) -> dict[str, Any]:
    """Two steps of the run itself in a process of their own, with a checkpoint."""
    with tempfile.TemporaryDirectory(prefix="postmill-probe-") as folder:
        out = Path(folder) / "run"
        argv = [*asked.rest, "-o", str(out), "--steps", "2", "--save-every", "2", "--quiet"]
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", _PROBE, *argv], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise StageError("--probe: the two steps failed; what they said is above", done.returncode)
        said = json.loads(done.stdout.splitlines()[-1])
        lines = [json.loads(line) for line in (out / "timing.jsonl").read_text().splitlines()]
    seconds = float(lines[-1]["seconds"])
    steps = _num_steps(asked)
    return {
        "peak": said["gpu"] or said["peak"],
        "step_seconds": seconds,
        "start_seconds": time.monotonic() - started - sum(float(line["seconds"]) for line in lines),
        **({"steps": steps, "seconds": steps * seconds} if steps else {}),
    }


def _row(part: Part) -> dict[str, Any]:
    return {"name": part.name, "low": part.low, "expected": part.expected, "high": part.high}


def _size(num_bytes: float) -> str:
    unit, name = (GIB, "GiB") if num_bytes >= GIB else (2**20, "MiB")
    return f"{num_bytes / unit:,.1f} {name}"


def _duration(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.2g} seconds" if math.isfinite(seconds) else "-"


def _table(title: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"{title:<36}{'low':>12}{'expected':>12}{'high':>12}"]
    return lines + [
        f"  {r['name']:<34}{_size(r['low']):>12}{_size(r['expected']):>12}{_size(r['high']):>12}" for r in rows
    ]


def told(estimate: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{estimate['parameters']:,} weights", ""]
    if "layouts" in estimate:
        return "\n".join(lines + _told_layouts(estimate)) + "\n"
    lines += [*_table("memory of a rank", estimate["memory"]), "", *_table("disk", estimate["disk"]), ""]
    limit = _size(estimate["limit"])
    lines.append(f"fits in {limit}" if estimate["fits"] else f"may not fit in {limit}")
    if "changes" in estimate:
        lines += [f"  {c['flags']}: {_size(c['needs']['expected'])}; {c['cost']}" for c in estimate["changes"]]
        if not estimate["changes"]:
            lines.append("  no change of one or two options is enough; take more ranks, or shorter bins")
    for name, title in (("time", "estimated, give or take a fifth"), ("probe", "measured here")):
        if name in estimate:
            one = estimate[name]
            line = f"{title}: a step takes {_duration(one['step_seconds'])}"
            line += f", {one['steps']:,} steps {_duration(one['seconds'])}" if "seconds" in one else ""
            lines.append(line + (f"; {_size(one['peak'])} at most" if "peak" in one else ""))
    return "\n".join(lines) + "\n"


def _told_layouts(estimate: dict[str, Any]) -> list[str]:
    if not estimate["layouts"]:
        return ["no layout of these GPUs holds the model; take more, or --tuner lora"]
    lines = [f"{'layout':<52}{'tokens/s':>12}{'step':>14}{'GPU memory':>14}"]
    for one in estimate["layouts"]:
        needed = _size(one["needs"]["expected"])
        lines.append(
            f"{one['flags']:<52}{one['tokens_per_second']:>12,.0f}{_duration(one['step_seconds']):>14}{needed:>14}"
        )
    if not estimate["tuned"]:
        lines.append("the speed of this kind of GPU is that of a kind that was measured, and less sure")
    return lines
