"""What a tower makes of sounds, for models whose own forward pass mixes it into the text by itself."""

from typing import Any

import torch
from torch import Tensor


def hear(model: Any, input_features: Tensor, feature_attention_mask: Tensor) -> list[Tensor]:
    """The features of each sound, [F, H]. model: Qwen2-Audio without its head.

    Source: `forward` of transformers' modeling_qwen2_audio.py, whose layers are called here.
    """
    from transformers.masking_utils import create_bidirectional_mask

    tower = model.audio_tower
    windows_D, features_D = tower._get_feat_extract_output_lengths(feature_attention_mask.sum(-1))
    length = (input_features.shape[-1] - 2) // 2 + 1
    is_heard_DT = torch.arange(length, device=windows_D.device)[None] < windows_D[:, None]
    shaped = input_features.new_zeros((*is_heard_DT.shape, 1))
    mask = create_bidirectional_mask(config=tower.config, inputs_embeds=shaped, attention_mask=is_heard_DT.long())
    heard = model.multi_modal_projector(tower(input_features, attention_mask=mask).last_hidden_state)
    return [each[:length] for each, length in zip(heard, features_D.tolist(), strict=True)]
