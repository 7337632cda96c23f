"""How families write boxes of objects in pictures, see `BoxMarks` in ext/rust/core/src/media/boxes.rs."""


def plain_boxes(space: str) -> dict[str, str]:
    """A box as a list of numbers. space: what they count, `norm1000` or `resized`."""
    return {"space": space, "bbox": "[{x1}, {y1}, {x2}, {y2}]", "point": "[{x1}, {y1}]", "name": "{name}"}
