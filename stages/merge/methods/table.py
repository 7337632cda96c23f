"""Which methods of PEFT can be merged, and how: one line each. Those that cannot are named with the reason."""

from collections.abc import Callable

import msgspec

from postmill.stages.merge.methods.bases import pvera, randlora, vblora, vera
from postmill.stages.merge.methods.lora import lora
from postmill.stages.merge.methods.low_rank import adalora, delora, gralora, hira, loha, lokr
from postmill.stages.merge.methods.module import Edits, Module
from postmill.stages.merge.methods.rotations import boft, hra, oft, road
from postmill.stages.merge.methods.scaling import ia3, ln_tuning
from postmill.stages.merge.methods.structured import bone, c3a, fourierft, miss, shira
from postmill.stages.merge.methods.tokens import tokens


class Method(msgspec.Struct, frozen=True):
    """`prefix`: how names of the method's tensors begin; `rule`: edits of one module from them.

    shared: tensors that all modules have in common.
    """

    prefix: str
    rule: Callable[[Module], Edits]
    shared: frozenset[str] = frozenset()


METHODS = {
    "LORA": Method("lora_", lora),
    "ADALORA": Method("lora_", adalora),
    "IA3": Method("ia3_", ia3),
    "LOHA": Method("hada_", loha),
    "LOKR": Method("lokr_", lokr),
    "OFT": Method("oft_", oft),
    "BOFT": Method("boft_", boft),
    "HRA": Method("hra_", hra),
    "ROAD": Method("road_", road),
    "VERA": Method("vera_", vera, frozenset({"vera_A", "vera_B"})),
    "PVERA": Method("pvera_", pvera, frozenset({"pvera_A", "pvera_B"})),
    "RANDLORA": Method("randlora_", randlora, frozenset({"randlora_A", "randlora_B"})),
    "VBLORA": Method("vblora_", vblora, frozenset({"vblora_vector_bank"})),
    "FOURIERFT": Method("fourierft_", fourierft),
    "C3A": Method("c3a_", c3a),
    "MISS": Method("miss_", miss),
    "BONE": Method("bone_", bone),
    "SHIRA": Method("shira_", shira),
    "HIRA": Method("hira_", hira),
    "DELORA": Method("delora_", delora),
    "GRALORA": Method("gralora_", gralora),
    "LN_TUNING": Method("ln_tuning_layers", ln_tuning),
    "TRAINABLE_TOKENS": Method("trainable_tokens_", tokens),
}

_TOKENS = "it puts vectors before the prompt and changes no weight"
_BETWEEN = "it puts small networks between the layers and changes no weight"
NO_WEIGHTS = {
    "PROMPT_TUNING": _TOKENS,
    "MULTITASK_PROMPT_TUNING": _TOKENS,
    "P_TUNING": _TOKENS,
    "CPT": _TOKENS,
    "PREFIX_TUNING": "it puts keys and values into attention and changes no weight",
    "CARTRIDGE": "it puts keys and values into attention and changes no weight",
    "BOTTLENECK": _BETWEEN,
    "SCEDIT": _BETWEEN,
    "RES_TUNING": _BETWEEN,
    "REFT": "it edits hidden states between the layers and changes no weight",
    "ADAPTION_PROMPT": "it adds gated attention to learned prompts and changes no weight",
    "XLORA": "it chooses among adapters for each token",
    "POLY": "it chooses among adapters for each task",
    "LILY": "it chooses among experts for each token",
}
"""Methods whose effect is in no weight, with what they do instead."""
