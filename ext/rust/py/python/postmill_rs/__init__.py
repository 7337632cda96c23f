"""The data path of Postmill on its own. Arrow data comes out through the Arrow C data interface."""

from postmill_rs._native import *  # noqa: F403
from postmill_rs._native import __version__

__all__ = ["__version__"]
