"""What a model reads of pictures and sounds: features of its towers, each distinct one computed once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.stages.shared.media.hearing import hear
from postmill.stages.shared.media.layout import features_of
from postmill.stages.shared.media.pixels import Media, Seen


class MediaInputs(NamedTuple):
    """For the layers of a model."""

    inputs: dict[str, Any]
    """Keywords, those of the text among them."""
    through_tower: bool
    """Whether the module to call is the one with the vision tower before the decoder."""
    blank: list[Tensor]
    """Zeros to be added to what comes out, so that towers that rows here do not need take part in the backward pass."""


def read_media(model: Any, media: Media, ids_1T: Tensor, inputs: dict[str, Any]) -> MediaInputs:
    """`inputs` with what the towers of a transformers model make of the rows' pictures and sounds."""
    blank = [_blank(model, kind, seen) for kind, seen in media.seen.items() if not seen.which_N]
    read = {kind: seen for kind, seen in media.seen.items() if seen.which_N}
    if "audio" in read or (read and model.base_model is model):
        return MediaInputs({"inputs_embeds": _mixed(model, ids_1T, read)}, False, blank)
    if not read and media.blocks is None:
        return MediaInputs(inputs, False, blank)
    more: dict[str, Any] = {} if media.blocks is None else {"blocks": media.blocks}
    if read:
        more["mm_encoder_outputs"] = {kind: _encoded(model, kind, seen) for kind, seen in read.items()}
    return MediaInputs(inputs | more, True, blank)


def _mixed(model: Any, ids_1T: Tensor, read: dict[str, Seen]) -> Tensor:
    """Embeddings of the tokens, those of sounds and pictures as the towers read them, each distinct one once.

    For models whose layer around tower and decoder takes no sounds that were heard before, and for Llama 4, which has
    no such layer that gives hidden states.
    """
    found_1TH: Tensor = model.get_input_embeddings()(ids_1T)
    for kind, seen in read.items():
        if kind == "audio":
            pieces = features_of(hear(model.base_model, **seen.inputs), seen.lengths_D, seen.which_N)
        elif model.base_model is model:
            pieces = features_of(_projected(model, seen), seen.lengths_D, seen.which_N)
        else:
            pieces = _encoded(model, kind, seen).pooler_output
        is_feature_1T1 = (ids_1T == getattr(model.config, f"{kind}_token_id"))[..., None]
        found_1TH = found_1TH.masked_scatter(is_feature_1T1, torch.cat(list(pieces)).to(found_1TH.dtype))
    return found_1TH


def _projected(model: Any, seen: Seen) -> Tensor:
    """[P, F, H]: features of each tile. The processor gives bfloat16, the tower reads what its weights are."""
    projector = model.multi_modal_projector
    pixels = seen.inputs["pixel_values"].to(next(projector.parameters()).dtype)
    found: Tensor = projector(model.get_image_features(pixels, return_dict=True).last_hidden_state)
    return found


def _blank(model: Any, kind: str, seen: Seen) -> Tensor:
    """0, at the cost of a picture: this rank's rows have none, and others wait for what its tower computes."""
    if kind == "audio":
        pieces = hear(model.base_model, **seen.inputs)
    elif model.base_model is model:
        pieces = [_projected(model, seen)]
    else:
        found = model.base_model.get_image_features(**seen.inputs, return_dict=True)
        layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
        pieces = [piece for layer in layers for piece in layer]
    return torch.stack([piece.sum() for piece in pieces]).sum() * 0


def _encoded(model: Any, kind: str, seen: Seen) -> Any:
    """What the vision tower gives for each picture of the rows, each distinct one computed once.

    The tower is called by itself, for it does not know where the rows of a bin end.
    """
    encode = getattr(model.base_model, f"get_{kind}_features")
    found = encode(**seen.inputs, return_dict=True)
    pieces = features_of(found.pooler_output, seen.lengths_D, seen.which_N)
    is_one = isinstance(found.pooler_output, Tensor)  # whose first two sizes models multiply to count features
    found.pooler_output = torch.cat(pieces)[None] if is_one else pieces
    if getattr(found, "deepstack_features", None) is not None:
        found.deepstack_features = [
            features_of(layer, seen.lengths_D, seen.which_N) for layer in found.deepstack_features
        ]
    return found
