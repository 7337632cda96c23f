"""Types of the native module, built from ext/rust/py."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str

# pack.rs
def pack_rows(
    lengths: NDArray[np.uint32], groups: NDArray[np.uint32] | None, capacity: int, strategy: str
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]: ...
def bin_order(seed: int, epoch: int, num_bins: int) -> NDArray[np.uint32]: ...
def deal_bins(
    costs: NDArray[np.float64], num_ranks: int, bins_per_rank: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...

# rows.rs
CHUNK_BYTES: int
MAX_LINE_BYTES: int

def scan_lines(
    data: bytes, first_line: int = 1, max_line_bytes: int = ...
) -> tuple[list[tuple[int, int, int, bool]], bool, bool]: ...
def count_records(data: bytes, at_file_start: bool) -> tuple[int, int]: ...
def chunk_bounds(data: bytes, offset: int, chunk_bytes: int, whole: bool) -> list[tuple[int, int]]: ...
def record_hashes(data: bytes, at_file_start: bool, seed: int) -> NDArray[np.uint64]: ...
def normalize_lines(
    data: bytes,
    file: str,
    columns: list[tuple[str, str]] = ...,
    model_name: str | None = None,
    model_author: str | None = None,
    drop: list[str] = ...,
) -> list[str]: ...
def is_column(name: str) -> bool: ...
def batch_to_lines(batch: Any) -> bytes: ...

class JsonSplitter:
    def __init__(self) -> None: ...
    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...

# error.rs
class NativeError(ValueError):
    code: int

# template.rs
class AgentFormat:
    """An agent format, from the members of its file as a JSON text."""

    def __init__(self, name: str, text: str) -> None: ...
    def write(self, messages: str, tools: str = "") -> str: ...

# encode.rs
def loss_scale_files(spec: str) -> list[str]: ...

class LossScale:
    def __init__(self, spec: str, rules: str = "spans", files: list[tuple[str, str]] = ...) -> None: ...
    def segments(self, text: str, query: str = "") -> list[tuple[str, float]]: ...
    @property
    def is_binary(self) -> bool: ...

class ChatEncoder:
    def __init__(
        self,
        tokenizer_json: bytes,
        *,
        bos: str | None = None,
        eos: str | None = None,
        extra_special: list[str] = ...,
        template: str | None = None,
        tools_template: str | None = None,
        template_name: str = "chat template",
        special_texts: list[tuple[str, str]] = ...,
        date: tuple[int, ...] | None = None,
        loss_scale: str = "default",
        loss_rules: str = "spans",
        rule_files: list[tuple[str, str]] = ...,
        segments: str = "whole",
        max_length: int | None = None,
        truncation: str = "drop",
        special_text: str = "keep",
        unwritten: str = "error",
        thinking: str = "template",
        system: str | None = None,
        template_kwargs: str = "{}",
        columns: list[tuple[str, str]] = ...,
        model_name: str | None = None,
        model_author: str | None = None,
        skip_bad_rows: bool = False,
        max_line_bytes: int = 0,
        engine: str = "auto",
        purpose: str = "train",
        drop: list[str] = ...,
        agent_format: tuple[str, str] | None = None,
        media: str | None = None,
        media_roots: list[str] = ...,
        train_roles: list[str] = ...,
        train_closing: str = "turn",
        roles: list[tuple[str, str]] = ...,
        each_turn: bool = False,
        continue_final: bool = False,
        number_calls: bool = False,
        plain: bool = False,
        unpair: bool = False,
    ) -> None: ...
    def encode_chunk(
        self,
        data: bytes,
        file: str,
        source: int,
        first_line: int,
        first_record: int,
        copy: int = 0,
        selection: list[int] | None = None,
        duplicates: list[int] = ...,
        folder: str | None = None,
    ) -> tuple[Any, Any, dict[str, Any]]: ...
    def encode_chats(self, data: bytes, threads: int = 1, file: str = "chats") -> Any: ...
    def content_hashes(
        self,
        data: bytes,
        source: int,
        first_line: int,
        first_record: int,
        copy: int = 0,
        selection: list[int] | None = None,
    ) -> list[tuple[int, bytes]]: ...
    def reweight(self, rows: Any) -> Any: ...
    def encode(self, text: str) -> tuple[list[int], list[int]]: ...
    def read(self, ids: list[int]) -> str: ...
    @property
    def date(self) -> tuple[int, int, int] | None: ...
    @property
    def engine(self) -> str: ...
    @property
    def num_ids(self) -> int: ...

# bpe.rs
class Array:
    """A flat array of integers that shares its memory through the buffer protocol."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> int: ...
    def __buffer__(self, flags: int) -> memoryview: ...
    def tolist(self) -> list[int]: ...

class Encoded:
    """The ids of many texts; an Arrow array of lists."""

    @property
    def ids(self) -> Array: ...
    @property
    def offsets(self) -> Array: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Array: ...
    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]: ...

class Tokenizer:
    """Text to ids as `tokenizers` gives them with `add_special_tokens=False`; shared freely between threads."""

    def __init__(self, tokenizer_json: bytes) -> None: ...
    @property
    def engine(self) -> str: ...
    @property
    def refused(self) -> str | None: ...
    def encode(self, text: str | bytes, threads: int = 1) -> Array: ...
    def encode_batch(self, texts: Sequence[str] | Sequence[bytes] | Any, threads: int = 1) -> Encoded: ...
    def encode_with_ends(self, text: str | bytes) -> tuple[Array, Array]: ...
