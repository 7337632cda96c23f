"""The methods there are: ways of choosing codes and scales."""

from postmill.stages.spec import Choice

METHODS = Choice(
    group="postmill.quantizers",
    table={
        "rtn": "postmill.stages.quantize.methods.rtn:Rtn",
        "hqq": "postmill.stages.quantize.methods.hqq:Hqq",
        "gptq": "postmill.stages.quantize.methods.gptq:Gptq",
        "awq": "postmill.stages.quantize.methods.awq:Awq",
        "smoothquant": "postmill.stages.quantize.methods.smoothquant:Smoothquant",
    },
)
"""How a weight's codes are chosen. A method is a struct of options with `needs_rows` and `encode`; and
`scales` if it scales inputs before."""
