"""A padded group of an encoder-decoder: prompts are read by the encoder, the decoder writes the answers.

Where the encoder hears a sound (Whisper), the prompt is what the decoder begins with.

Letters: B rows, T tokens, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from postmill.stages.shared.decode import start_token
from postmill.stages.shared.engine.live import Live


class AnswerGroup:
    """Requests whose prompts were read together; see `padded.Group`."""

    def __init__(self, model: Any, device: str, lives: list[Live]) -> None:
        self._model, self._device = model, device
        self.lives = lives
        """Of the rows; a request that is over stays until the next pass."""
        self.over: set[str] = set()
        prompts = [live.request.prompt_ids for live in lives]
        self._cache: Any = None
        self._mask_BT: Tensor | None = None
        if lives[0].request.inputs is not None:  # all rows are one prompt, see `padded.PaddedRows.step`
            heard = {name: value.to(device) for name, value in lives[0].request.inputs().items()}
            self._memory = model.get_encoder()(**heard)
            self._memory.last_hidden_state = self._memory.last_hidden_state.expand(len(lives), -1, -1)
            self.logits_BV = self._next(prompts)
            return
        width = max(map(len, prompts))
        ids_BT = torch.zeros((len(prompts), width), dtype=torch.long)
        mask_BT = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_BT[row, : len(prompt)] = torch.tensor(prompt)
            mask_BT[row, : len(prompt)] = 1
        self._mask_BT = mask_BT.to(device)
        self._memory = model.get_encoder()(input_ids=ids_BT.to(device), attention_mask=self._mask_BT)
        self.logits_BV = self._next([[start_token(model)]] * len(lives))

    def _next(self, tokens: list[list[int]]) -> Tensor:
        """Logits after the decoder has read more tokens of each row, of each as many."""
        result = self._model(
            encoder_outputs=self._memory,
            attention_mask=self._mask_BT,
            decoder_input_ids=torch.tensor(tokens, device=self._device),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = result.past_key_values
        logits_BV: Tensor = result.logits[:, -1]
        return logits_BV

    def advance(self) -> Tensor:
        """Logits after the last token of each row that is left."""
        going = [at for at, live in enumerate(self.lives) if live.request.key not in self.over]
        if len(going) < len(self.lives):
            keep_B = torch.tensor(going, device=self._device)
            self._cache.batch_select_indices(keep_B)
            self._mask_BT = None if self._mask_BT is None else self._mask_BT[keep_B]
            self._memory.last_hidden_state = self._memory.last_hidden_state[keep_B]
            self.lives = [self.lives[at] for at in going]
        return self._next([[live.answer[-1]] for live in self.lives])
