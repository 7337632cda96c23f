"""Small networks between the layers of a frozen model: bottleneck adapters, SC-Tuners, Res-Tuning's bypass, LoReFT.

They change hidden states and no weight, so PEFT has none of them, and none can be merged. Their files are an adapter's
(`adapter_config.json`, `adapter_model.safetensors`); `attach` puts them into any decoder that transformers has loaded,
where they work in `generate` as well. Letters: T tokens, H hidden size, R rank.

    y = f(x) + up(gelu(down(f(x))))         bottleneck, f attention or MLP, <https://arxiv.org/abs/1902.00751>
    y = f(x) + up(gelu(down(x)))            scedit, f a layer: what its skip connections carry is edited,
                                            <https://arxiv.org/abs/2312.11392>
    b = b + V(b) + H(f(x)), y_last = f + b  res-tuning: a bypass beside the layers, through which alone gradients flow,
                                            <https://arxiv.org/abs/2310.19859>
    y = h + R^T (W h + c - R h)             reft, at some tokens of the prompt, <https://arxiv.org/abs/2404.03592>

All but LoReFT begin as the model itself: `up` is zero at first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from postmill.io.errors import BAD_DATA, MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.model_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from postmill.stages.shared.hf import decoder_of

Site = Literal["attention", "mlp"]
_NAMES: dict[Site, tuple[str, ...]] = {
    "attention": ("self_attn", "attn", "attention", "self_attention", "linear_attn", "mixer", "temporal_block"),
    "mlp": ("mlp", "feed_forward", "mlp_block", "block_sparse_moe", "ffn"),
}
_PREFIX = "inserts."


class Bottleneck(msgspec.Struct, frozen=True, tag="BOTTLENECK", tag_field="peft_type"):
    """Adapters after attention, the MLP or both."""

    length: int
    sites: list[Site]


class Scedit(msgspec.Struct, frozen=True, tag="SCEDIT", tag_field="peft_type"):
    """A tuner on each layer's skip connections."""

    length: int


class ResTuning(msgspec.Struct, frozen=True, tag="RES_TUNING", tag_field="peft_type"):
    """A bypass beside all layers."""

    length: int


class Reft(msgspec.Struct, frozen=True, tag="REFT", tag_field="peft_type"):
    """LoReFT. positions: (first, last) tokens of the prompt, or None for every token."""

    rank: int
    layers: list[int]
    positions: tuple[int, int] | None
    share: bool


Kind = Bottleneck | Scedit | ResTuning | Reft


class Narrow(nn.Module):
    """up(gelu(down(h))): H -> length -> H, zero at first."""

    def __init__(self, size: int, length: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, length), nn.Linear(length, size)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Of the shape and dtype of `hidden`."""
        inner = nn.functional.gelu(self.down(hidden.to(self.down.weight.dtype)))
        found: Tensor = self.up(inner).to(hidden.dtype)
        return found


class Intervention(nn.Module):
    """R^T (W h + c - R h): what LoReFT adds. R has orthonormal rows: they are those of the Q of a trained matrix's QR.

    torch's `orthogonal`, which pyreft uses, keeps signs in the diagonal of what is trained and cuts them to integers:
    one step of weight decay makes a 1 a 0, and R loses a row.
    """

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.source = nn.Linear(size, rank)
        self.rotation = nn.Parameter(nn.init.orthogonal_(torch.empty(size, rank)))

    def rotation_HR(self) -> Tensor:
        """R transposed, in the dtype of the weights."""
        with torch.autocast(self.rotation.device.type, enabled=False):
            q_HR, upper_RR = torch.linalg.qr(self.rotation.float())
            # of the two signs of each direction that of what is trained, so that an orthonormal matrix is its own Q
            found: Tensor = (q_HR * upper_RR.diagonal().sign()).to(self.rotation.dtype)
            return found

    def forward(self, hidden: Tensor) -> Tensor:
        """Of the shape and dtype of `hidden`."""
        rotation_HR = self.rotation_HR()
        wide = hidden.to(self.source.weight.dtype)
        found: Tensor = (self.source(wide) - wide @ rotation_HR) @ rotation_HR.T
        return found.to(hidden.dtype)


class Beside(nn.Module):
    """What is put at one module: the networks, and the hooks that use them."""

    narrow: Narrow
    horizontal: Narrow
    vertical: Narrow
    first: Intervention
    last: Intervention
    is_last: bool

    def __init__(self, whole: "Inserts", **parts: nn.Module) -> None:
        super().__init__()
        self._whole = [whole]  # a list, since a part that holds the whole would be its own part
        for name, part in parts.items():
            self.add_module(name, part)

    @staticmethod
    def _with(found: Any, hidden: Tensor) -> Any:
        return (hidden, *found[1:]) if isinstance(found, tuple) else hidden

    @staticmethod
    def _of(found: Any) -> Tensor:
        hidden: Tensor = found[0] if isinstance(found, tuple) else found
        return hidden

    def after(self, _: nn.Module, __: Any, found: Any) -> Any:
        """Hook of a bottleneck."""
        hidden = self._of(found)
        return self._with(found, hidden + self.narrow(hidden))

    def along(self, _: nn.Module, given: tuple[Any, ...], keywords: Mapping[str, Any], found: Any) -> Any:
        """Hook of an SC-Tuner."""
        carried = given[0] if given else keywords["hidden_states"]
        return self._with(found, self._of(found) + self.narrow(carried))

    def past(self, _: nn.Module, __: Any, found: Any) -> Any:
        """Hook of the bypass; nothing of the model's own pass is kept for gradients."""
        whole, hidden = self._whole[0], self._of(found)
        seen = self.horizontal(hidden.detach())
        bypass = seen if whole.bypass is None else whole.bypass + self.vertical(whole.bypass) + seen
        whole.bypass = bypass
        if not self.is_last:
            return found
        whole.bypass = None
        return self._with(found, hidden + bypass)

    def at_places(self, _: nn.Module, __: Any, found: Any) -> Any:
        """Hook of LoReFT."""
        hidden = self._of(found)
        places = self._whole[0].places
        if places is None:  # every token
            return self._with(found, hidden + self.last(hidden))
        flat = hidden.flatten(0, -2)
        for part, index in self._parts(places):
            if len(index):
                flat = flat.index_add(0, index, part(flat[index]))
        return self._with(found, flat.view(hidden.shape))

    def _parts(self, places: tuple[Tensor, Tensor]) -> list[tuple[Intervention, Tensor]]:
        if hasattr(self, "first"):
            return list(zip((self.first, self.last), places, strict=True))
        both: Tensor = torch.cat(places).unique()  # type: ignore[no-untyped-call]
        return [(self.last, both)]


class Inserts(nn.Module):
    """All inserts of a model; a part of it, under the name `inserts`."""

    def __init__(self, config: Kind, size: int) -> None:
        super().__init__()
        self.config, self.size = config, size
        self.at = nn.ModuleDict()
        self.bypass: Tensor | None = None
        self.places: tuple[Tensor, Tensor] | None = None
        self._told: tuple[Tensor, Tensor] | None = None

    @property
    def reads_prompts(self) -> bool:
        """Whether a token's number in its prompt decides what happens to it."""
        return isinstance(self.config, Reft) and self.config.positions is not None

    def tell(self, row_starts: tuple[int, ...], ends: Tensor) -> None:
        """Where prompts lie in the next pass, whose rows lie end to end. ends: int64 [rows], past each prompt."""
        starts = torch.tensor(row_starts, device=ends.device)
        row_T = torch.repeat_interleave(torch.arange(len(ends), device=ends.device), starts.diff())
        number_T = torch.arange(row_starts[-1], device=ends.device) - starts[row_T]
        self._told = self._places(number_T, (ends - starts[:-1])[row_T])

    def before_pass(self, _: nn.Module, given: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Hook of the decoder: what was told; otherwise each sequence of a batch is a prompt, and tokens after a cache
        are none."""
        if self._told is not None:
            self.places, self._told = self._told, None
            return
        ids = given[0] if given else keywords.get("input_ids")
        ids = keywords["inputs_embeds"][..., 0] if ids is None else ids
        cache = keywords.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            empty = torch.zeros(0, dtype=torch.int64, device=ids.device)
            self.places = (empty, empty)
            return
        mask = keywords.get("attention_mask")
        real = torch.ones_like(ids) if mask is None or mask.ndim != 2 else mask.long()
        number, length = real.cumsum(1) - 1, real.sum(1, keepdim=True).expand_as(real)
        self.places = self._places(torch.where(real > 0, number, length).flatten(), length.flatten())

    def _places(self, number_T: Tensor, length_T: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the first and of the last intervention, from each token's number in its row and its prompt's
        length."""
        assert isinstance(self.config, Reft) and self.config.positions is not None
        first, last = self.config.positions
        is_prompt = number_T < length_T
        at_first = is_prompt & (number_T < first)
        at_last = is_prompt & (number_T >= length_T - last)
        return at_first.nonzero().squeeze(-1), at_last.nonzero().squeeze(-1)


def insert(model: Any, config: Kind) -> Inserts:
    """Put new networks into `model`, drawn from torch's generator, and freeze the rest of it.

    Raises ConfigError (2) for a model without layers, or layers without the parts that are asked for.
    """
    decoder = decoder_of(model)
    layers = next((child for child in decoder.children() if isinstance(child, nn.ModuleList)), None)
    if layers is None or getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(f"{type(model).__name__}: has no single list of layers to put anything between", USAGE)
    model.requires_grad_(False)
    whole = Inserts(config, model.config.get_text_config().hidden_size)
    if isinstance(config, Reft):
        _put_reft(whole, config, layers)
        if whole.reads_prompts:
            decoder.register_forward_pre_hook(whole.before_pass, with_kwargs=True)
    else:
        for number, layer in enumerate(layers):
            _put_narrow(whole, config, number, layer, is_last=number + 1 == len(layers))
    model.inserts = whole
    return whole


def _put_narrow(
    whole: Inserts, config: Bottleneck | Scedit | ResTuning, number: int, layer: Any, is_last: bool
) -> None:
    def new() -> Narrow:
        return Narrow(whole.size, config.length)

    if isinstance(config, Bottleneck):
        for site in config.sites:
            beside = Beside(whole, narrow=new())
            _part_of(layer, site).register_forward_hook(beside.after)
            whole.at[f"{number}-{site}"] = beside
        return
    if isinstance(config, Scedit):
        beside = Beside(whole, narrow=new())
        layer.register_forward_hook(beside.along, with_kwargs=True)
    else:
        parts = {"horizontal": new()} | ({"vertical": new()} if number else {})
        beside = Beside(whole, **parts)
        beside.is_last = is_last
        layer.register_forward_hook(beside.past)
    whole.at[str(number)] = beside


def _put_reft(whole: Inserts, config: Reft, layers: nn.ModuleList) -> None:
    for number in config.layers or range(len(layers)):
        if not 0 <= number < len(layers):
            raise ConfigError(f"--reft.layers {number}: the model has layers 0 to {len(layers) - 1}", USAGE)
        names = ["last"] if config.share or config.positions is None else ["first", "last"]
        beside = Beside(whole, **{name: Intervention(whole.size, config.rank) for name in names})
        layers[number].register_forward_hook(beside.at_places)
        whole.at[str(number)] = beside


def _part_of(layer: nn.Module, site: Site) -> nn.Module:
    found = next((child for name, child in layer.named_children() if name in _NAMES[site]), None)
    if found is None:
        there = ", ".join(name for name, _ in layer.named_children())
        raise ConfigError(f"{type(layer).__name__}: has no part that is known as {site}; it has {there}", USAGE)
    return found


def prompt_ends(mask_T: Tensor, row_starts: tuple[int, ...]) -> Tensor:
    """int64 [rows]: past each row's prompt, which ends at the first token whose successor is scored."""
    scored = mask_T.nonzero().squeeze(-1)
    starts = torch.tensor(row_starts, device=mask_T.device)
    at = torch.searchsorted(scored, starts[:-1])
    first = torch.cat([scored, starts[-1:]])[at]
    return torch.minimum(first + 1, starts[1:])


def insert_tensors(model: Any) -> dict[str, Tensor]:
    """What an adapter's file holds, by name; the model's own tensors, no copies."""
    state: Mapping[str, Tensor] = model.inserts.state_dict(keep_vars=True)
    return {f"{_PREFIX}{name}": tensor for name, tensor in state.items()}


def read_config(folder: Path) -> Kind:
    """The config of an adapter of ours. Raises ArtifactError (65) for a damaged one."""
    path = folder / ADAPTER_CONFIG
    try:
        config: Kind = msgspec.json.decode(path.read_bytes(), type=Kind)
        return config
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{path}: {error}; expected what postmill train wrote", BAD_DATA) from None


def attach(model: Any, folder: Path) -> Any:
    """`model` with the adapter in `folder` in it. Raises ArtifactError (78) for one that is for another model."""
    whole = insert(model, read_config(folder))
    load_inserts(model, folder)
    whole.to(next(model.parameters()).dtype)
    return model.eval()


def load_inserts(model: Any, folder: Path) -> None:
    """Put the tensors of `folder` into a model that has inserts of that shape. Raises ArtifactError (78)."""
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    mine = insert_tensors(model)
    other = [
        n for n in sorted({*tensors, *mine}) if n not in tensors or n not in mine or tensors[n].shape != mine[n].shape
    ]
    if other:
        raise ArtifactError(f"{folder}: does not fit the model: {len(other)} tensors differ, like {other[0]}", MISMATCH)
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])
