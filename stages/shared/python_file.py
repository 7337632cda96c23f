"""Python files of people's own: a reward, a loss, an environment."""

import importlib.util
import sys
from types import ModuleType


def load_file(path: str, name: str) -> ModuleType:
    """The file as a module called `name`. What it raises travels."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look their module up
    spec.loader.exec_module(module)
    return module
