"""Which methods of PEFT can be merged, and how: one line each. Those that cannot are named with the reason."""

from collections.abc import Callable

import msgspec

from postmill.stages.merge.methods.lora import lora
from postmill.stages.merge.methods.module import Edits, Module
from postmill.stages.merge.methods.tokens import tokens


class Method(msgspec.Struct, frozen=True):
    """`prefix`: how names of the method's tensors begin; `rule`: edits of one module from them."""

    prefix: str
    rule: Callable[[Module], Edits]


METHODS = {
    "LORA": Method("lora_", lora),
    "TRAINABLE_TOKENS": Method("trainable_tokens_", tokens),
}
