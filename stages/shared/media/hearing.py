"""What a tower makes of sounds, for models whose own forward pass mixes it into the text by itself."""

from typing import Any

import torch
from torch import Tensor


def hear(model: Any, input_features: Tensor, feature_attention_mask: Tensor) -> list[Tensor]:
    """The features of each sound, [F, H], or those of all in one piece. model: Qwen2-Audio or Qwen2.5-Omni's thinker
    without its head.

    Source: `forward` of transformers' modeling_qwen2_audio.py, whose layers are called here.
    """
    if not hasattr(model, "multi_modal_projector"):  # Qwen2.5-Omni, whose tower projects
        heard = model.get_audio_features(input_features, feature_attention_mask, return_dict=True)
        return [heard.last_hidden_state]
    from transformers.masking_utils import create_bidirectional_mask

    tower = model.audio_tower
    windows_D, features_D = tower._get_feat_extract_output_lengths(feature_attention_mask.sum(-1))
    length = (input_features.shape[-1] - 2) // 2 + 1
    is_heard_DT = torch.arange(length, device=windows_D.device)[None] < windows_D[:, None]
    shaped = input_features.new_zeros((*is_heard_DT.shape, 1))
    mask = create_bidirectional_mask(config=tower.config, inputs_embeds=shaped, attention_mask=is_heard_DT.long())
    projected = model.multi_modal_projector(tower(input_features, attention_mask=mask).last_hidden_state)
    return [each[:length] for each, length in zip(projected, features_D.tolist(), strict=True)]
