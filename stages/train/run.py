"""Train: check that data and model fit, then load, take steps, save. What can be refused is, before torch loads."""

from postmill.io.packed import PackedReader
from postmill.stages.protocol import Input, Inputs, Out, Result
from postmill.stages.train.config import Train
from postmill.stages.train.plan import Steps, check_data, check_request


def run(cfg: Train, inputs: Inputs, out: Out) -> Result:
    """Make an adapter or a model. Raises ConfigError (2), ArtifactError (65, 66, 78), StageError (1, 75, 79)."""
    # a signal while the model loads is heard before the first step
    out.stop.graceful = True
    check_request(cfg)
    model = inputs["model"][0]
    reader = _open(inputs["packed"][0], model)
    Steps(cfg, reader, num_ranks=1).check()
    valid = _open(inputs["valid"][0], model) if inputs["valid"] else None

    from postmill.stages.train.loop import train

    return train(cfg, reader, valid, model, out)


def _open(packed: Input, model: Input) -> PackedReader:
    assert packed.path is not None
    reader = PackedReader(packed.path)
    check_data(packed, reader, model)
    return reader
