"""The model and its head as one module: what a launcher wraps, and all that a loss may ask of a model.

`Forward` has no opinion about losses. It answers an `Ask` (which numbers of the head are wanted) with `Outputs`, and
the loss is computed outside, by an objective. The full logits never exist. Shape letters: T tokens, H hidden size,
V vocabulary, R rows.
"""

import functools
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from postmill.io.errors import USAGE, ConfigError
from postmill.kernels.loss_scale_ce.api import Backend
from postmill.kernels.loss_scale_ce.probe import Deviation, probe
from postmill.stages.shared import attention, classifier
from postmill.stages.shared.asked import Ask, Outputs, joined, part_of
from postmill.stages.shared.batch import Batch
from postmill.stages.shared.context import Context
from postmill.stages.shared.decode import decode, decode_answers, own_answer_logits
from postmill.stages.shared.heads import LM, WITH_LM_HEAD, Head
from postmill.stages.shared.hf import decoder_of
from postmill.stages.shared.inserts import Inserts, prompt_ends
from postmill.stages.shared.lm_head import LmHead
from postmill.stages.shared.media.tower import read_media
from postmill.stages.shared.router import router_balance
from postmill.stages.shared.soft_prompt import SoftPrompt
from postmill.stages.shared.vocab import whole_head

_POSITIONS_AFTER_PAD = {"roberta", "xlm-roberta", "camembert"}
"""Families that count positions from the one after `pad_token_id`."""


class Stage(Protocol):
    """Some of a model's layers in a row, where ranks have some each."""

    is_first: bool
    is_last: bool

    def receive(self, num_tokens: int, like: Tensor) -> Tensor:
        """Hidden states of the stage before, [1, T, H]."""
        ...

    def keep(self, received: Tensor | None, hidden_1TH: Tensor) -> None:
        """What went in and what came out: for the next stage, and for the backward pass."""
        ...


def token_types(ids_1T: Tensor, row_starts: tuple[int, ...]) -> Tensor:
    """[1, T]: BERT's types, 1 for the second text of a row: what follows the first token like the one it ends in."""
    starts = torch.tensor(row_starts, device=ids_1T.device)
    row_T = torch.repeat_interleave(torch.arange(len(starts) - 1, device=ids_1T.device), starts.diff())
    is_border_T = (ids_1T[0] == ids_1T[0][starts[1:] - 1][row_T]).long()
    passed_T = is_border_T.cumsum(0) - is_border_T
    before_R = passed_T[starts[:-1]]
    return (passed_T > before_R[row_T]).long()[None]


class Forward(nn.Module):
    """A model with its head, on a `Batch`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        compute_dtype: torch.dtype,
        backend: Backend,
        head: Head = LM,
        neftune_alpha: float = 0.0,
        router_aux: float = 0.0,
        prompt: SoftPrompt | None = None,
    ) -> None:
        """`model` is transformers' of the class that `head` names, adapters injected or not. prompt: what stands before
        every row."""
        super().__init__()
        self.head = head
        self.model: Any = model
        self.compute_dtype = compute_dtype
        self.lm_head, self._neftune_alpha = LmHead(model, compute_dtype, backend), neftune_alpha
        self._router_aux = router_aux
        config: Any = self.model.config
        self._first_position = config.pad_token_id + 1 if config.model_type in _POSITIONS_AFTER_PAD else 0
        self._has_types = getattr(config, "type_vocab_size", 0) == 2
        # encoders have no cache, and some do not know the word
        self._no_cache = {"use_cache": False} if hasattr(config, "use_cache") else {}
        self._most_tokens = attention.most_tokens(config)
        self._context: Context | None = None
        self._stage: Stage | None = None
        self._each_row = False
        self._shares = False
        self.prompt = prompt
        if prompt is not None and neftune_alpha:
            raise ConfigError("--neftune-alpha: not with vectors before each row; leave it out", USAGE)
        inserts = getattr(model, "inserts", None)
        self.prompt_edits: Inserts | None = inserts if inserts is not None and inserts.reads_prompts else None
        self.is_encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
        if self.is_encoder_decoder and (head.kind != "lm" or neftune_alpha):
            raise ConfigError(
                f"{config.model_type} has an encoder and a decoder, which only losses of tokens fit, without"
                " --neftune-alpha",
                USAGE,
            )

    def compute_each_row(self) -> None:
        """Give the model one row at a time from now on: its layers would carry something of a row into the next."""
        if self.prompt_edits is not None:
            raise ConfigError(
                f"{self.model.config.model_type} is computed row by row, and edits of prompts are not; use"
                " --reft.positions all, or another --tuner",
                USAGE,
            )
        self._each_row = True

    def share_prefixes(self) -> bool:
        """Compute once what rows share from now on, where a batch says how and the model allows it. Returns whether it
        does: what a token becomes has to depend on its row alone, without noise, and rows have to be kept apart by
        `rows_attention`."""
        is_noisy = any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.modules())
        is_causal = all(getattr(module, "is_causal", True) for module in self.modules())
        config = self.model.config.get_text_config()
        is_noisy = is_noisy or bool(getattr(config, "attention_dropout", 0.0))
        self._shares = (
            self.head.kind != "pool"
            and is_causal
            and not (is_noisy or self._neftune_alpha or self._router_aux)
            and not (self.is_encoder_decoder or self._each_row or self._has_types or self.prompt is not None)
            and self.prompt_edits is None
            and getattr(config, "_attn_implementation", "") == attention.ROWS
        )
        return self._shares

    def share_tokens(self, context: Context) -> None:
        """Compute a slice of each batch from now on; what is asked of it still comes out whole, on every rank."""
        context.attach(self.model)
        self._context = context

    def take_stage(self, stage: Stage) -> None:
        """Compute some of the layers from now on; only the last stage's `forward` has answers."""
        self._stage = stage

    def forward(self, batch: Batch, ask: Ask) -> Outputs:
        """What is asked of `batch`."""
        context, num_tokens = self._context, batch.input_ids_1T.shape[1]
        hidden_TH, router_logits = self._hidden(batch)
        if self._stage is not None and not self._stage.is_last:
            return Outputs()
        if context is not None:
            router_logits = tuple(context.gather(logits.flatten(0, -2), num_tokens) for logits in router_logits)
            if self.head.kind != "lm":  # it is small, and looks anywhere
                hidden_TH = context.shared(context.gather(hidden_TH, num_tokens))
        balance = None
        if router_logits and self.training:
            text = self.model.config.get_text_config()
            balance = self._router_aux * ask.router_share * router_balance(router_logits, text.num_experts_per_tok)
        if self.head.kind != "lm":
            return self._of_rows(hidden_TH, batch, ask)._replace(router=balance)
        if context is None:
            found = self.lm_head.numbers(hidden_TH, batch, ask, is_training=self.training)
        else:
            mine, part = context.part(batch), part_of(ask, context)
            found = joined(context, self.lm_head.numbers(hidden_TH, mine, part, is_training=self.training), num_tokens)
        if context is not None and (ask.top_ids_TK is not None or ask.num_top):
            hidden_TH = context.gather(hidden_TH, num_tokens)
        top_logp_TK, top_ids_TK = self.lm_head.top(hidden_TH, batch.mask_T, ask, found.lse_T)
        return Outputs(
            found.loss if ask.linear else None,
            found.logp_T,
            found.entropy_T,
            found.correct_T,
            found.lse_T,
            found.collision_T,
            top_logp_TK,
            top_ids_TK,
            router=balance,
        )

    def _of_rows(self, hidden_TH: Tensor, batch: Batch, ask: Ask) -> Outputs:
        """What a head other than the language model's says of the hidden states of the whole batch."""
        if self.head.kind == "sequence":
            found = classifier.sequence_values(self.model, hidden_TH, batch)
        elif self.head.kind == "answers":
            found = self.lm_head.between(hidden_TH[batch.points_N], self.model.answer_ids)
        elif self.head.kind == "token":
            assert ask.points_N is not None
            found = classifier.token_values(self.model, hidden_TH[ask.points_N])
        else:
            found = classifier.pooled(hidden_TH, batch, self.head.pooling)
        if self._context is not None:
            found = self._context.counted(found)
        return Outputs(pooled_RH=found) if self.head.kind == "pool" else Outputs(values_NC=found)

    def own_logits(self, ids_1T: Tensor) -> Tensor:
        """What the model itself says of one row, to compare with: [1, T, V], [1, C] or [1, T, C] of a classifier, or
        [1, 1] of two answers; the hidden states, [1, T, H], without a head."""
        if self.is_encoder_decoder:
            return own_answer_logits(self.model, ids_1T)
        if self.prompt is not None:
            return self.prompt.own_logits(self.model, ids_1T)
        if self.prompt_edits is not None:  # of a bin whose every token is scored: a prompt of one token
            self.prompt_edits.tell((0, ids_1T.shape[1]), torch.ones(1, dtype=torch.int64, device=ids_1T.device))
        types = {"token_type_ids": token_types(ids_1T, (0, ids_1T.shape[1]))} if self._has_types else {}
        found = self.model(input_ids=ids_1T, **types, **self._no_cache)
        logits: Tensor = found.last_hidden_state if self.head.kind == "pool" else found.logits
        if self.head.kind == "answers":
            yes, no = self.model.answer_ids
            return (logits[:, -1, yes] - logits[:, -1, no])[:, None]
        return logits

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states, [T, H]."""
        hidden_TH, _ = self._hidden(batch)
        return hidden_TH if self._context is None else self._context.gather(hidden_TH, batch.input_ids_1T.shape[1])

    def kernel_deviation(self, batch: Batch) -> Deviation:
        """How far the loss kernel is from plain torch on the first rows of `batch`, in the loss and its gradients."""
        mine = self._part(batch)
        with torch.no_grad():
            hidden_TH, _ = self._hidden(batch)
            head = whole_head(self.lm_head.of(hidden_TH))
        return probe(
            self.lm_head.backend,
            **head,
            targets_T=mine.targets_T,
            token_weights_T=mine.weights_T,
            normaliser=1.0,
        )

    def _part(self, batch: Batch) -> Batch:
        return batch if self._context is None else self._context.part(batch)

    def use_reference(self) -> None:
        """Compute the head's numbers in plain torch from now on."""
        self.lm_head.backend = "reference"

    def _read(self, batch: Batch, mine: Batch) -> tuple[dict[str, Any], Tensor | None]:
        """What the layers read of the slice `mine`: ids, embeddings, or what the stage before sends, which is also
        given by itself."""
        if self._stage is not None and not self._stage.is_first:
            embedding = self.model.get_input_embeddings().weight
            received = self._stage.receive(mine.input_ids_1T.shape[1], embedding)
            return {"inputs_embeds": received}, received
        if self.training and self._neftune_alpha:
            return {"inputs_embeds": self._noisy_embeddings(batch)}, None
        return {"input_ids": mine.input_ids_1T}, None

    def _hidden(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Last hidden states, [T, H], each row for itself; and the routers' logits of each layer if they are used.

        Both of the slice of `batch` that this rank computes. Raises ConfigError (2) for a bin of more tokens than a
        family's layers see whole.
        """
        if batch.row_starts[-1] > self._most_tokens:
            raise ConfigError(
                f"a bin has {batch.row_starts[-1]} tokens, {self.model.config.model_type} layers see at most"
                f" {self._most_tokens} as one; pack with --row-tokens {self._most_tokens}",
                USAGE,
            )
        mine = self._part(batch)
        decoder = decoder_of(self.model) if self.head.kind in WITH_LM_HEAD else self.model.base_model
        inputs, received = self._read(batch, mine)
        positions, media = mine.position_ids_1T + self._first_position, batch.media
        blank: list[Tensor] = []
        if self._has_types:
            types_1T = token_types(batch.input_ids_1T, batch.row_starts)
            inputs["token_type_ids"] = types_1T if self._context is None else self._context.slice(types_1T, 1)
        if self._router_aux:
            inputs["output_router_logits"] = True
        dtype, device_type = self.compute_dtype, mine.input_ids_1T.device.type
        with torch.autocast(device_type, dtype, enabled=dtype == torch.bfloat16):
            if self.is_encoder_decoder:
                return decode_answers(self.model, mine.input_ids_1T[0], mine.mask_T, mine.row_starts), ()
            if media is not None:
                positions = positions if media.position_ids_31T is None else media.position_ids_31T
                seen = read_media(self.model, media, mine.input_ids_1T, inputs)
                inputs, blank = seen.inputs, seen.blank
                decoder = self.model.base_model if seen.through_tower else decoder
            starts = mine.row_starts
            real_T: Tensor | slice = slice(None)
            shared = batch.shared if self._shares and not (self._context or self._stage or media) else None
            if shared is not None:
                inputs = {"input_ids": mine.input_ids_1T[:, shared.token_S]}
                positions, starts, real_T = positions[:, shared.token_S], shared.starts, shared.place_T
            if self.prompt is not None:
                embedding = self.model.get_input_embeddings()
                longer, positions, starts, real_T = self.prompt.before_rows(
                    embedding, mine.input_ids_1T, starts, positions
                )
                inputs = {name: value for name, value in inputs.items() if name != "input_ids"} | longer
            if self.prompt_edits is not None:
                self.prompt_edits.tell(starts, prompt_ends(mine.mask_T, starts))
            found = decode(
                functools.partial(decoder, **self._no_cache),
                inputs | {"position_ids": positions},
                starts,
                each_row=self._each_row,
                parents=() if shared is None else shared.parents,
            )
        if self._stage is not None:
            self._stage.keep(received, found[0].last_hidden_state)
        hidden_TH = torch.cat([part.last_hidden_state[0] for part in found])[real_T]
        for nothing in blank:
            hidden_TH = hidden_TH + nothing
        if not self._router_aux:
            return hidden_TH, ()
        by_layer = zip(*(part.router_logits for part in found), strict=True)
        return hidden_TH, tuple(torch.cat([part.flatten(0, -2) for part in logits]) for logits in by_layer)

    def _noisy_embeddings(self, batch: Batch) -> Tensor:
        """Embeddings plus uniform noise of width alpha / sqrt(row length * H), <https://arxiv.org/abs/2310.05914>."""
        embeddings: Tensor = self.model.get_input_embeddings()(self._part(batch).input_ids_1T)
        lengths = torch.tensor(batch.row_starts, device=embeddings.device).diff()
        length_T = torch.repeat_interleave(lengths, lengths).to(embeddings.dtype)
        width_T1 = self._neftune_alpha / torch.sqrt(length_T * embeddings.shape[-1])[:, None]
        # the noise of all tokens, so that it is the same however they are dealt
        noise_1TH = embeddings.new_empty(1, len(length_T), embeddings.shape[-1]).uniform_(-1, 1) * width_T1
        return embeddings + (noise_1TH if self._context is None else self._context.slice(noise_1TH, 1))
