"""The tuners there are: ways of making a model trainable."""

from postmill.stages.spec import Choice

TUNERS = Choice(
    group="postmill.tuners",
    table={
        "lora": "postmill.stages.train.tuners.lora:Lora",
        "full": "postmill.stages.train.tuners.full:Full",
    },
)
"""What of the model is trained."""
