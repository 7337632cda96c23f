"""The training loop.

A step sums the gradients of its micro-batches, each already divided by the step's normaliser, which the plan knows
beforehand; so accumulation and ranks never change what is learned. Everything random is drawn from (seed, step, bin),
so the state of a run is its weights, AdamW's moments and a step number.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json
from postmill.io.manifest import Artifact
from postmill.io.packed import PackedReader
from postmill.io.pixels import PixelsReader
from postmill.stages.progress import Meter
from postmill.stages.protocol import Input, Out, Result
from postmill.stages.shared import attention
from postmill.stages.shared.forward import Forward
from postmill.stages.shared.hf import quiet_libraries
from postmill.stages.shared.media.pixels import Pixels
from postmill.stages.shared.router import router_coefficient
from postmill.stages.train import checkpoint, liger, model, save, verdict
from postmill.stages.train.begin import fix_numerics, launched, resume
from postmill.stages.train.checkpoint import METRICS, SAMPLES, Position
from postmill.stages.train.columns import BatchSource
from postmill.stages.train.config import Train
from postmill.stages.train.demonstrations import Demonstrations, Share
from postmill.stages.train.finish import finish
from postmill.stages.train.held import Held, keep, take
from postmill.stages.train.look import Look
from postmill.stages.train.mismatch import check_mismatch
from postmill.stages.train.objectives.interface import Objective
from postmill.stages.train.objectives.own import build_objective
from postmill.stages.train.optimizer import (
    Ema,
    Learner,
    averaged,
    named_factors,
    release,
    set_factors,
    set_lr,
    state_tensors,
)
from postmill.stages.train.origin import check_loaded
from postmill.stages.train.own_scores import start_scores
from postmill.stages.train.parallel.layout import Layout
from postmill.stages.train.plan import Data, Steps
from postmill.stages.train.probe import check
from postmill.stages.train.profiling import Profiler
from postmill.stages.train.record import Record, line_of, measured, say
from postmill.stages.train.row_losses import KEPT as ROW_LOSSES
from postmill.stages.train.row_losses import RowLosses
from postmill.stages.train.run_state import RunState, is_due
from postmill.stages.train.samples import Samples
from postmill.stages.train.step import accumulate, validate
from postmill.stages.train.survey import Channels, read_channels
from postmill.stages.train.tied import share_gradient
from postmill.stages.train.tuners.interface import Start, Tuner


class Ready(NamedTuple):
    """What steps are taken with. `forward` is the model as its layout wants it called."""

    run: RunState
    steps: Steps
    data: Data
    objective: Objective
    forward: Any
    source: BatchSource
    valid: BatchSource | None
    channels: Channels | None
    given: Input
    """What the first step started from."""
    demonstrations: Demonstrations | None


def train(
    cfg: Train,
    data: Data,
    valid: Data | None,
    base: Input,
    out: Out,
    *,
    start: Input | None = None,
    own_loss: Sequence[Input] = (),
    prompts: Input | None = None,
    stored: Sequence[Input] = (),
    demonstrations: Data | None = None,
) -> Result:
    """Take all steps, from the newest checkpoint on, and save. See `run`.

    start: what the first one starts with. stored: pixels that were made before. demonstrations: what is learned beside
    the objective.
    """
    objective = build_objective(cfg.objective, own_loss)
    accelerator, layout = launched(cfg)
    try:
        pixels = _pixels_of(cfg, base, [data, valid, demonstrations], stored, num_ranks=accelerator.num_processes)
        data = data._replace(pixels=pixels)
        valid, demonstrations = (other and other._replace(pixels=pixels) for other in (valid, demonstrations))
        steps = Steps(cfg, data.reader, layout.num_data, data.rewards)
        resumed = resume(out, accelerator)
        conditions = fix_numerics(cfg, out, accelerator, layout, resumed)
        tuner, dtype = cfg.tuner.build(), model.compute_dtype(cfg, accelerator.device)
        begun = resumed[0].path if resumed else start.path if start else None
        look = Look(cfg, objective, data, steps, accelerator.device)
        held = take(out.kept, cfg, tuner, base, begun)
        if held:
            net, forward = held
        else:
            net = _load(cfg, tuner, base, accelerator, dtype=dtype, begun=begun, look=look)
            forward = _forward(cfg, net, objective, dtype)
        sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
        wrapped = layout.wrap(forward) if held else _wrapped(cfg, forward, layout, data.reader)
        learner = _learner(cfg, tuner, net, model.trainable(net), layout)
        checkpoint.restore_optimizer(begun, learner)
        shares = cfg.compute.shared_prefixes and forward.share_prefixes()
        own = start_scores(
            data, objective.needs, wrapped, layout, resumed=resumed and resumed[0], num_steps=steps.total, shares=shares
        )
        is_main = accelerator.is_main_process
        run = RunState(
            cfg=cfg,
            tuner=tuner,
            out=out,
            learner=learner,
            record=Record(out.checkpoints if is_main else None, _kept(resumed, METRICS) or b""),
            conditions=conditions,
            base=base.name,
            accelerator=accelerator,
            own=own,
            rows=RowLosses(_kept(resumed, ROW_LOSSES)) if cfg.measure.row_losses else None,
            samples=_samples(cfg, prompts, base, out, resumed),
            profiler=Profiler(cfg.measure.profiled if is_main else None, out.checkpoints),
            saved=resumed[1].step if resumed else 0,
        )
        ready = Ready(
            run=run,
            steps=steps,
            data=data,
            objective=objective,
            forward=wrapped,
            source=BatchSource(
                data.reader, objective.needs, {**data.scores, **own}, data.rewards, data.pixels, shares=shares
            ),
            valid=valid
            and BatchSource(valid.reader, objective.needs, valid.scores, pixels=valid.pixels, shares=shares),
            channels=read_channels(data.reader) if cfg.measure.channel_loss else None,
            given=start or base,
            demonstrations=demonstrations and Demonstrations(cfg, demonstrations, layout.num_data),
        )
        _take_steps(ready)
        result = _finished(ready, base, start, sizes)
        keep(out.kept, cfg, tuner, base, Held(net, forward), num_ranks=accelerator.num_processes)
        return result
    finally:
        layout.close()


def _take_steps(ready: Ready) -> None:
    """Until all are taken or the run is over before that. Raises StageError (75) when stopped, (79) if it diverges."""
    run, total = ready.run, ready.steps.total
    meter = Meter(total, run.saved)
    for number in range(run.saved, total):
        if verdict.is_over(run.record.lines, run.cfg.measure):
            break
        if _stop_requested(run.out, run.accelerator):
            raise run.stopped(step=number)
        _take_step(ready, number, meter)
        run.keep(step=number + 1)


def _take_step(ready: Ready, number: int, meter: Meter) -> None:
    """Step `number`, counted from 0: its gradient, the update, and what is said of it."""
    run, steps = ready.run, ready.steps
    cfg, layout = run.cfg, run.learner.layout
    step, lr, last = steps[number], cfg.lr_at(number, steps.total), number + 1 == steps.total
    _begin(run, number)
    shown = ready.demonstrations
    gradient = accumulate(
        cfg,
        ready.forward,
        ready.objective if shown is None else Share(ready.objective, 1 - shown.share(number)),
        ready.source,
        step,
        layout=layout,
        channels=ready.channels,
        row_losses=run.rows is not None,
        past=run.record.lines,
        upcoming=steps[number + 1] if ready.data.pixels and not last else None,
    )
    if shown is not None:
        gradient = shown.add(gradient, ready.forward, layout, number)
    run.tuner.before_update(run.learner.net)
    norm = layout.clip(run.learner.parameters.values(), cfg.clip or math.inf)
    loss, grad_norm = run.finite(ready.data.reader, step, gradient, norm)
    check_mismatch(cfg, ready.data, ready.given, step, gradient)
    _update(run.learner, run.tuner, number, lr)

    run.watch(number, gradient, last=last)
    line = line_of(step, loss, lr, grad_norm) | measured(gradient, ready.channels)
    if ready.valid is not None and (last or is_due(number, cfg.measure.valid_every)):
        line |= _validated(cfg, ready.forward, ready.objective, ready.valid, run.learner)
    say(line, meter, run.record.add(line, gradient.data_seconds), always=last)


def _finished(ready: Ready, base: Input, start: Input | None, sizes: dict[str, int]) -> Result:
    """Save what was learned. sizes: of all parameters, before a layout cut them."""
    run = ready.run
    cfg, layout, is_main = run.cfg, run.learner.layout, run.accelerator.is_main_process
    state = state_tensors(run.learner, keep=is_main) if cfg.checkpoints.keep_state else {}
    release(run.learner)
    kept = model.stored_dtype(cfg, base.path) if cfg.tuner.makes == "model" and base.path else None
    weights = save.whole_weights(run.tuner.tensors(run.learner.net), layout, keep=is_main, dtype=kept)
    layout.close()
    if not is_main:
        return Result()
    return finish(
        cfg,
        ready.data.reader,
        base,
        run.out,
        tuner=run.tuner,
        net=run.learner.net,
        sizes=sizes,
        weights=weights,
        run=run,
        steps=ready.steps,
        state=state,
        start=start,
    )


def _kept(found: tuple[Artifact, Position] | None, name: str) -> bytes | None:
    """What a checkpoint holds of a record that not every run has."""
    return found[0].file(name).read_bytes() if found else None


def _samples(
    cfg: Train, prompts: Input | None, base: Input, out: Out, found: tuple[Artifact, Position] | None
) -> Samples | None:
    """What answers while it is trained; on rank 0."""
    if prompts is None or out.rank:
        return None
    assert prompts.path is not None and base.path is not None
    before = _kept(found, SAMPLES)
    return Samples(prompts.path, base.path, max_tokens=cfg.measure.sample_tokens, before=before, folder=out.checkpoints)


def _pixels_of(
    cfg: Train, base: Input, sets: Sequence[Data | None], stored: Sequence[Input], *, num_ranks: int
) -> Pixels | None:
    """What makes pixels of the pictures in `sets`, if rows can have any. Raises ConfigError (2)."""
    if not any(data.reader.token_rows.have_pictures for data in sets if data):
        if stored:
            raise ConfigError("--pixels: the rows have no pictures; leave it out", USAGE)
        return None
    if cfg.neftune_alpha:
        raise ConfigError("--neftune-alpha: noise on rows with pictures is not supported; leave it out", USAGE)
    if cfg.parallel.cp > 1:
        raise ConfigError("--cp: rows with pictures are computed by one rank each; leave it out", USAGE)
    if cfg.objective.needs.partner_columns or cfg.objective.needs.head.kind != "lm":
        raise ConfigError("--objective: it cannot see pictures yet; pack rows without them", USAGE)
    assert base.path is not None
    kept = PixelsReader([given.path for given in stored if given.path]) if stored else None
    return Pixels(base.path, num_ranks=num_ranks, stored=kept)


def _load(
    cfg: Train,
    tuner: Tuner,
    base: Input,
    accelerator: Accelerator,
    *,
    dtype: torch.dtype,
    begun: Path | None,
    look: Look,
) -> Any:
    """The model to train, with the weights in the folder `begun` if there is one.

    Raises ConfigError (2) for a kernel that cannot run here.
    """
    device = accelerator.device
    assert base.path is not None
    if tuner.one_rank and accelerator.num_processes > 1:
        raise ConfigError("--tuner: what it trains changes during the run; use one process, or another tuner", USAGE)
    kernel = attention.choose(cfg.compute.attention, device, dtype, deterministic=cfg.compute.deterministic)
    if cfg.compute.liger:
        liger.check(load_json(base.path / "config.json"), device)
    net = tuner.start(
        Start(
            base=base.path,
            load=model.loader(kernel, cfg),
            dtype=dtype,
            seed=cfg.seed,
            checkpoint=begun,
            head=cfg.objective.needs.head,
            num_steps=look.steps.total,
            loss=look.loss,
        )
    )
    if begun and cfg.tuner.makes == "adapter":
        check_loaded(tuner.tensors(net), begun)
    if cfg.compute.gradient_checkpointing:
        with quiet_libraries():
            model.causal_lm(net).gradient_checkpointing_enable({"use_reentrant": False})
    if accelerator.num_processes == 1:
        share_gradient(model.causal_lm(net))
    return net if cfg.parallel.cuts_model else net.to(device)


def _forward(cfg: Train, net: Any, objective: Objective, dtype: torch.dtype) -> Forward:
    """The model as what `objective` reads of it, ready to train."""
    return Forward(
        model.causal_lm(net),
        compute_dtype=dtype,
        backend=cfg.compute.loss_kernel,
        head=objective.needs.head,
        neftune_alpha=cfg.neftune_alpha,
        router_aux=router_coefficient(net.config, cfg.router_aux),
        prompt=model.soft_prompt(net),
    ).train()


def _wrapped(cfg: Train, forward: Forward, layout: Layout, reader: PackedReader) -> Any:
    """What to call, looked at first: a model that comes apart in `wrap` or later on the CPU, while it is whole."""
    is_whole = cfg.parallel.pp > 1 or cfg.parallel.is_zero
    wrapped: Any = None if is_whole else layout.wrap(forward)
    check(
        forward,
        reader,
        forward.compute_dtype,
        torch.device("cpu") if is_whole else layout.device,
        loss_kernel=cfg.compute.loss_kernel,
        cut=cfg.parallel.cuts_model,
    )
    return layout.wrap(forward) if is_whole else wrapped


def _learner(cfg: Train, tuner: Tuner, net: Any, parameters: dict[str, Tensor], layout: Layout) -> Learner:
    """The optimizer over what is trained, each parameter at its rate. Raises ConfigError (2) for unused --lr-groups."""
    held = {name: parameter for name, parameter in parameters.items() if not parameter.is_meta}
    optimizer = cfg.optimizer.make(held, cfg.peak_lr)
    groups = named_factors(cfg.lr_groups, parameters)
    factors = {p: groups.get(name, 1.0) * tuner.lr_factor(name) for name, p in parameters.items()}
    if set(factors.values()) != {1.0}:
        set_factors(optimizer, factors)
    ema = Ema(cfg.ema, parameters.values()) if cfg.ema else None
    return Learner.of(net, parameters, optimizer, layout)._replace(ema=ema, is_partial=tuner.one_rank)


def _begin(run: RunState, number: int) -> None:
    """Forget the last gradient and settle what step `number` trains."""
    run.profiler.before(number)
    # of the model, not of the optimizer: of what a layout gave that one, gradients may be buffers
    run.learner.net.zero_grad(set_to_none=True)
    run.tuner.before_step(run.learner.net, run.learner.optimizer, number)


def _update(learner: Learner, tuner: Tuner, number: int, lr: float) -> None:
    """Take step `number` at rate `lr`."""
    set_lr(learner.optimizer, lr)
    learner.layout.step(learner.optimizer)
    if learner.ema is not None:
        learner.ema.update()
    tuner.after_update(learner.net, number)


def _stop_requested(out: Out, accelerator: Accelerator) -> bool:
    """Whether any rank was asked to stop; all ranks get the same answer."""
    if accelerator.num_processes == 1:
        return out.stop.requested
    flag = torch.tensor(int(out.stop.requested), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


def _validated(
    cfg: Train, forward: Any, objective: Objective, source: BatchSource, learner: Learner
) -> dict[str, float]:
    """`valid_loss`, and `valid_` with whatever the objective measures, of what was learned so far."""
    with averaged(learner):
        found = validate(cfg, forward, objective, source, learner.layout)
    return {f"valid_{name}": value for name, value in found.items()}
