"""How the options of a tuner become the config of a PEFT method: the one path from a row of the table to an adapter.

A method of PEFT is a struct in `peft_methods/` with a `PeftMethod`; nothing else of it is ours.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from postmill.stages.options import tag

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Start, Tuner

NOTHING: Mapping[str, Any] = MappingProxyType({})
_OURS = ("targets", "modules_to_save")


class PeftMethod(msgspec.Struct, frozen=True):
    """A method of PEFT."""

    config: str
    """Name of its config class."""
    names: dict[str, str] = {}
    """Option -> what PEFT calls it, where that differs."""
    fixed: dict[str, Any] = {}
    """What PEFT is told besides."""
    seed: str = ""
    """PEFT's name for the seed of what is drawn and not trained."""

    def tuner(self, options: Any) -> "Tuner":
        """The functions for the method's struct of options."""
        from postmill.stages.train.tuners.peft_model import peft_tuner

        name = tag(options)
        return peft_tuner(name, lambda base, given: self._make(name, options, base, given))

    def _make(self, name: str, options: Any, base: Any, start: "Start") -> Any:
        import peft

        from postmill.stages.train.tuners.targets import find_targets, of_head, whole_modules

        given = {self.names.get(k, k): v for k, v in msgspec.structs.asdict(options).items() if k not in _OURS}
        if self.seed:
            given[self.seed] = start.seed
        given["target_modules"] = find_targets(base, options.targets, name)
        if hasattr(options, "modules_to_save"):
            given["modules_to_save"] = whole_modules(base, options.modules_to_save, name) or None
        return getattr(peft, self.config)(**of_head(start.head, base), **self.fixed, **given)
