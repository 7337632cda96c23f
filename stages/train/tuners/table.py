"""The tuners there are: ways of making a model trainable."""

from postmill.stages.spec import Choice

TUNERS = Choice(
    group="postmill.tuners",
    table={
        "lora": "postmill.stages.train.tuners.lora:Lora",
        "adalora": "postmill.stages.train.tuners.adalora:Adalora",
        "full": "postmill.stages.train.tuners.full:Full",
        "loha": "postmill.stages.train.tuners.peft_methods.low_rank:Loha",
        "lokr": "postmill.stages.train.tuners.peft_methods.low_rank:Lokr",
        "delora": "postmill.stages.train.tuners.peft_methods.low_rank:Delora",
        "gralora": "postmill.stages.train.tuners.peft_methods.low_rank:Gralora",
        "hira": "postmill.stages.train.tuners.peft_methods.low_rank:Hira",
        "glora": "postmill.stages.train.tuners.peft_methods.low_rank:Glora",
        "deft": "postmill.stages.train.tuners.peft_methods.low_rank:Deft",
        "peanut": "postmill.stages.train.tuners.peft_methods.low_rank:Peanut",
        "psoft": "postmill.stages.train.tuners.peft_methods.low_rank:Psoft",
        "osf": "postmill.stages.train.tuners.peft_methods.low_rank:Osf",
        "oft": "postmill.stages.train.tuners.peft_methods.rotations:Oft",
        "boft": "postmill.stages.train.tuners.peft_methods.rotations:Boft",
        "hra": "postmill.stages.train.tuners.peft_methods.rotations:Hra",
        "road": "postmill.stages.train.tuners.peft_methods.rotations:Road",
        "vera": "postmill.stages.train.tuners.peft_methods.shared_bases:Vera",
        "pvera": "postmill.stages.train.tuners.peft_methods.shared_bases:Pvera",
        "randlora": "postmill.stages.train.tuners.peft_methods.shared_bases:Randlora",
        "vblora": "postmill.stages.train.tuners.peft_methods.shared_bases:Vblora",
        "fourierft": "postmill.stages.train.tuners.peft_methods.shared_bases:Fourierft",
        "waveft": "postmill.stages.train.tuners.peft_methods.shared_bases:Waveft",
        "c3a": "postmill.stages.train.tuners.peft_methods.shared_bases:C3a",
        "unilora": "postmill.stages.train.tuners.peft_methods.shared_bases:Unilora",
        "tinylora": "postmill.stages.train.tuners.peft_methods.shared_bases:Tinylora",
        "frod": "postmill.stages.train.tuners.peft_methods.shared_bases:Frod",
        "ia3": "postmill.stages.train.tuners.peft_methods.direct:Ia3",
        "miss": "postmill.stages.train.tuners.peft_methods.direct:Miss",
        "shira": "postmill.stages.train.tuners.peft_methods.direct:Shira",
        "supertuning": "postmill.stages.train.tuners.peft_methods.direct:Supertuning",
        "ln-tuning": "postmill.stages.train.tuners.peft_methods.direct:LnTuning",
        "beft": "postmill.stages.train.tuners.peft_methods.direct:Beft",
        "trainable-tokens": "postmill.stages.train.tuners.peft_methods.direct:TrainableTokens",
    },
)
"""What of the model is trained."""
