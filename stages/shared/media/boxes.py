"""How families write boxes of objects in pictures, see `BoxMarks` in ext/rust/core/src/media/boxes.rs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


def plain_boxes(space: str) -> dict[str, str]:
    """A box as a list of numbers. space: what they count, `norm1000` or `resized`."""
    return {"space": space, "bbox": "[{x1}, {y1}, {x2}, {y2}]", "point": "[{x1}, {y1}]", "name": "{name}"}


class BoxForm(NamedTuple):
    """What a model writes of objects, and how its numbers become pixels again."""

    space: str
    name: str
    """A name, with `{name}`."""
    patch: int
    """Pixels of a patch's side, where numbers count pixels that the model sees."""

    @classmethod
    def of(cls, folder: Path) -> "BoxForm | None":
        """Of the model in `folder`; None where it writes none. Raises ConfigError (2) for a family without a rule."""
        from postmill.stages.shared.media.families.table import find_family  # which knows this module

        family = find_family(folder, {})
        boxes = family.members.get("boxes") if family else None
        if family is None or boxes is None:
            return None
        return cls(boxes["space"], boxes["name"], int(family.members["image"]["rule"].get("patch", 0)))

    def pixels_of_one(self, size: tuple[int, int], inputs: Mapping[str, Any], index: int) -> tuple[float, float]:
        """Pixels of the upright picture for 1 in the model's numbers, across and down.

        size: the picture's width and height. inputs: what the model reads of the prompt's pictures, of which this is
        number `index`.
        """
        if self.space == "norm1000":
            return size[0] / 1000, size[1] / 1000
        _, rows, columns = inputs["image_grid_thw"][index].tolist()
        return size[0] / (columns * self.patch), size[1] / (rows * self.patch)
