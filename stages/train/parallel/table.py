"""The layouts there are, and which one a run has."""

from accelerate import Accelerator

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.train.config import Parallel
from postmill.stages.train.parallel.layout import Layout
from postmill.stages.train.parallel.replicated import Replicated


def choose(form: Parallel, accelerator: Accelerator) -> Layout:
    """The layout of `form`. Raises ConfigError (2) for one that these ranks cannot have."""
    if not form.cuts_model:
        return Replicated(accelerator)
    if accelerator.num_processes == 1:
        given = (
            f"--shard {form.shard}"
            if form.shard != "none"
            else f"--tp {form.tp} --cp {form.cp} --ep {form.ep} --pp {form.pp}"
        )
        raise ConfigError(f"{given}: one rank shares with nobody; start several (postmill launch --ranks 2 ...)", USAGE)
    from postmill.stages.train.parallel.meshed import Meshed

    return Meshed(accelerator, form)
