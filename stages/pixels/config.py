"""Options of `pixels`."""

import msgspec

from postmill.stages.spec import Port, Stage


class Pixels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make what a model reads of the pictures, sounds and videos of token rows, once for all runs that read them."""


STAGE = Stage(
    name="pixels",
    version=1,
    config=Pixels,
    inputs={
        "tokens": Port(kinds=("tokens", "prompts", "rollouts", "packed"), many=True, help="rows with pictures"),
        "model": Port(
            kinds=("model",), flag="-m", help="the model whose processor makes them: a folder, or owner/name"
        ),
    },
    output="pixels",
    example="postmill pixels tokens/ -m Qwen2.5-VL/ -o pixels/",
)
