"""The model and its head as one module: what a launcher wraps, and all that a loss may ask of a model.

`Forward` has no opinion about losses. It answers an `Ask` (which numbers of the head are wanted) with `Outputs`, and
the loss is computed outside, by an objective. The full logits never exist. Shape letters: T tokens, H hidden size,
V vocabulary, R rows.
"""

import functools
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from postmill.io.errors import USAGE, ConfigError
from postmill.kernels.loss_scale_ce.api import Backend, loss_scale_ce
from postmill.kernels.loss_scale_ce.probe import Deviation, probe
from postmill.kernels.loss_scale_ce.terms import LossOutput
from postmill.kernels.loss_scale_ce.vocab_parallel import loss_scale_ce_vocab_parallel
from postmill.stages.shared import attention, classifier, top
from postmill.stages.shared.batch import Batch
from postmill.stages.shared.context import Context
from postmill.stages.shared.decode import decode, decode_answers, own_answer_logits
from postmill.stages.shared.heads import LM, Head
from postmill.stages.shared.inserts import Inserts, prompt_ends
from postmill.stages.shared.media.tower import read_media
from postmill.stages.shared.router import router_balance
from postmill.stages.shared.soft_prompt import SoftPrompt
from postmill.stages.shared.stats import Stat
from postmill.stages.shared.vocab import is_slice, sliced_head, whole_head

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


class Linear(NamedTuple):
    """A loss whose weights are known before the forward pass: sum of weights_T * -log-prob / normaliser."""

    weights_T: Tensor
    normaliser: float
    label_smoothing: float = 0.0
    """Used in training only."""


class Ask(NamedTuple):
    """What is wanted of a batch."""

    stats: frozenset[Stat] = frozenset()
    """Numbers of the lm head, at the tokens of `Batch.mask_T`."""
    linear: Linear | None = None
    """The fused loss. Alone, without `stats`, it is the cheap path."""
    temperature: float = 1.0
    """What the logits are divided by, after the soft cap."""
    top_ids_TK: Tensor | None = None
    """int64 [T, K]: entries of the vocabulary whose log-probs are wanted; `stats` has lse then."""
    num_top: int = 0
    """How many of each token's likeliest successors are wanted, without gradients."""
    points_N: Tensor | None = None
    """int64: tokens that a token head reads."""
    router_share: float = 0.0
    """The batch's share of the step's tokens: the weight of its routers' balancing loss."""


class Outputs(NamedTuple):
    """The answers; None where nothing was asked. Differentiable but for `correct_T` and `collision_T`.

    Those of tokens are [T], 0 where `Batch.mask_T` is not set.
    """

    loss: Tensor | None = None
    """The linear loss."""
    logp_T: Tensor | None = None
    entropy_T: Tensor | None = None
    correct_T: Tensor | None = None
    lse_T: Tensor | None = None
    collision_T: Tensor | None = None
    """log sum_v p_v^2."""
    top_logp_TK: Tensor | None = None
    """float32: of the entries that were asked for, or of the likeliest ones."""
    top_ids_TK: Tensor | None = None
    """int64: which the likeliest ones are."""
    values_NC: Tensor | None = None
    """float32: what a classifier says of each row, or of each token that was asked for."""
    pooled_RH: Tensor | None = None
    """float32: the vector of each row, not normalised."""
    router: Tensor | None = None
    """The routers' balancing loss times its coefficient and share; to be added to the loss."""


class HeadScale(NamedTuple):
    """What lies between the head's matrix product and the softmax."""

    logit_scale: float = 1.0
    softcap: float | None = None


def head_scale(config: Any) -> HeadScale:
    """From a model's config: the softcap of Gemma, RecurrentGemma and xLSTM, factors of Cohere, Granite, T5."""
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    if getattr(config, "scale_decoder_outputs", False):
        scale *= float(config.d_model) ** -0.5
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    softcap = next((cap for name in caps if (cap := getattr(text, name, None))), None)
    return HeadScale(scale, float(softcap) if softcap else None)


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
        self._backend, self._neftune_alpha = backend, neftune_alpha
        self._scale = head_scale(self.model.config)
        self._router_aux = router_aux
        config: Any = self.model.config
        self._first_position = config.pad_token_id + 1 if config.model_type in _POSITIONS_AFTER_PAD else 0
        self._has_types = getattr(config, "type_vocab_size", 0) == 2
        # encoders have no cache, and some do not know the word
        self._no_cache = {"use_cache": False} if hasattr(config, "use_cache") else {}
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
            found = self._lm_head(hidden_TH, batch, ask)
        else:
            found = _joined(context, self._lm_head(hidden_TH, context.part(batch), _part_of(ask, context)), num_tokens)
        top_logp_TK, top_ids_TK = self._top(hidden_TH, batch, ask, found.lse_T)
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
        elif self.head.kind == "token":
            assert ask.points_N is not None
            found = classifier.token_values(self.model, hidden_TH[ask.points_N])
        else:
            found = classifier.pooled(hidden_TH, batch, self.head.pooling)
        if self._context is not None:
            found = self._context.counted(found)
        return Outputs(pooled_RH=found) if self.head.kind == "pool" else Outputs(values_NC=found)

    def own_logits(self, ids_1T: Tensor) -> Tensor:
        """What the model itself says of one row, to compare with: [1, T, V], [1, C] or [1, T, C] of a classifier; the
        hidden states, [1, T, H], without a head."""
        if self.is_encoder_decoder:
            return own_answer_logits(self.model, ids_1T)
        if self.prompt is not None:
            return self.prompt.own_logits(self.model, ids_1T)
        if self.prompt_edits is not None:  # of a bin whose every token is scored: a prompt of one token
            self.prompt_edits.tell((0, ids_1T.shape[1]), torch.ones(1, dtype=torch.int64, device=ids_1T.device))
        types = {"token_type_ids": token_types(ids_1T, (0, ids_1T.shape[1]))} if self._has_types else {}
        found = self.model(input_ids=ids_1T, **types, **self._no_cache)
        logits: Tensor = found.last_hidden_state if self.head.kind == "pool" else found.logits
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
            head = whole_head(self._head_of(hidden_TH))
        return probe(
            self._backend,
            **head,
            targets_T=mine.targets_T,
            token_weights_T=mine.weights_T,
            normaliser=1.0,
        )

    def _part(self, batch: Batch) -> Batch:
        return batch if self._context is None else self._context.part(batch)

    def use_reference(self) -> None:
        """Compute the head's numbers in plain torch from now on."""
        self._backend = "reference"

    def _lm_head(self, hidden_TH: Tensor, batch: Batch, ask: Ask) -> LossOutput:
        linear, stats = ask.linear, ask.stats
        if linear is None:
            linear = Linear(torch.zeros_like(batch.weights_T), 1.0)
        options: dict[str, Any] = {
            "targets_T": batch.targets_T,
            "token_weights_T": linear.weights_T,
            "normaliser": linear.normaliser,
            "label_smoothing": linear.label_smoothing if self.training else 0.0,
            "temperature": ask.temperature,
            "active_T": batch.mask_T if stats else None,
            "backend": self._backend,
            "return_logp": "logp" in stats,
            "return_entropy": "entropy" in stats,
            "return_correct": "correct" in stats,
            "return_lse": "lse" in stats,
        }
        head = self._head_of(hidden_TH)
        if is_slice(head["weight_VH"]) and "collision" not in stats:
            return loss_scale_ce_vocab_parallel(**sliced_head(head), **options)
        return loss_scale_ce(**whole_head(head), **options, return_collision="collision" in stats)

    def _top(
        self, hidden_TH: Tensor, batch: Batch, ask: Ask, lse_T: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Log-probs of some entries of the vocabulary at scored tokens, and which the likeliest are."""
        if ask.top_ids_TK is None and not ask.num_top:
            return None, None
        if self._context is not None:
            hidden_TH = self._context.gather(hidden_TH, len(batch.mask_T))
        at_N = batch.mask_T.nonzero().squeeze(-1)
        head = top.HeadOf(**self._head_of(hidden_TH[at_N]))
        if ask.top_ids_TK is not None:
            assert lse_T is not None
            logp_NK = top.of_entries(head, ask.top_ids_TK[at_N], lse_T[at_N], ask.temperature)
            return logp_NK.new_zeros(ask.top_ids_TK.shape).index_copy(0, at_N, logp_NK), None
        logp_NK, ids_NK = top.likeliest(head, ask.num_top, ask.temperature)
        empty_TK = logp_NK.new_zeros(len(hidden_TH), ask.num_top)
        return empty_TK.index_copy(0, at_N, logp_NK), empty_TK.long().index_copy(0, at_N, ids_NK)

    def _head_of(self, hidden_TH: Tensor) -> dict[str, Any]:
        """What the loss kernel is given of the head."""
        head, dtype = self.model.get_output_embeddings(), self.compute_dtype
        bias = getattr(head, "bias", None)
        # peft's layer of trained tokens, on a head that is tied: its own weight is the base's
        trained = getattr(head, "get_merged_weights", None)
        weight_VH = trained(head.active_adapters) if trained else head.weight
        return {
            "hidden_TH": hidden_TH.to(dtype),
            "weight_VH": weight_VH.to(dtype),
            "bias_V": None if bias is None else bias.to(dtype),
            "logit_scale": self._scale.logit_scale,
            "softcap": self._scale.softcap,
        }

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

        Both of the slice of `batch` that this rank computes.
        """
        mine = self._part(batch)
        decoder = self.model.get_decoder() if self.head.kind == "lm" else self.model.base_model
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


def _part_of(ask: Ask, context: Context) -> Ask:
    """What is asked of this rank's slice."""
    linear = ask.linear
    return ask if linear is None else ask._replace(linear=linear._replace(weights_T=context.slice(linear.weights_T)))


def _joined(context: Context, found: LossOutput, num_tokens: int) -> LossOutput:
    """What the ranks found for their slices, as one rank would have found it."""
    of_tokens = {
        name: context.gather(value, num_tokens)
        for name in ("logp_T", "entropy_T", "correct_T", "lse_T", "collision_T")
        if (value := getattr(found, name)) is not None
    }
    return found._replace(loss=context.total(found.loss), **of_tokens)
