"""The Arrow schemas of Postmill's tables; `docs/formats.md` says the same in prose. Kept in step with ext/rust/core."""

from typing import Any, Final

import pyarrow as pa

from postmill.io.errors import MISMATCH, ArtifactError

ROW_ID: Final = pa.binary(16)

TURN: Final = pa.struct(
    [
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("generated_start", pa.int32(), nullable=False),
        pa.field("generated_end", pa.int32(), nullable=False),
        pa.field("closing", pa.int32(), nullable=False),
        pa.field("role", pa.int8(), nullable=False),
        pa.field("message", pa.int32(), nullable=False),
        pa.field("loss", pa.int8(), nullable=False),
        pa.field("loss_scale", pa.float32()),
    ]
)
"""One turn, in token indices. `role` is 0 system, 1 user, 2 assistant, 3 tool; `loss` is -1 unset, 0 or 1."""

SPAN: Final = pa.struct(
    [
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
    ]
)
"""A run of tokens with one weight other than zero, as targets: the token itself is what is to be predicted."""

TOKENS_V1: Final = pa.schema(
    [
        pa.field("row_id", ROW_ID, nullable=False),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("input_ids", pa.large_list(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("turns", pa.list_(pa.field("item", TURN, nullable=False)), nullable=False),
        pa.field("spans", pa.list_(pa.field("item", SPAN, nullable=False)), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("trained_tokens", pa.int32(), nullable=False),
        pa.field("weight_sum", pa.float64(), nullable=False),
        pa.field("channel", pa.utf8()),
        pa.field("pair_id", ROW_ID),
        pa.field("side", pa.int8()),
        pa.field("margin", pa.float64()),
        pa.field("label", pa.float64()),
        pa.field("extra", pa.utf8()),
    ]
)
"""One tokenized row. `side` is 0 for the chosen and 1 for the rejected half of `pair_id`. In a group of texts it is 0
for the query, 1 for a text that does not fit it, 2 for one that does."""

MEDIA: Final = pa.struct(
    [
        pa.field("kind", pa.utf8(), nullable=False),
        *(
            pa.field(name, pa.int32(), nullable=False)
            for name in (
                "start",
                "end",
                "features",
                "grid_t",
                "grid_h",
                "grid_w",
                "patches",
                "width",
                "height",
                "orientation",
                "rate",
            )
        ),
        pa.field("format", pa.utf8(), nullable=False),
        pa.field("digest", pa.binary(32), nullable=False),
        pa.field("reference", pa.utf8()),
        pa.field("folder", pa.utf8()),
        pa.field("content", pa.large_binary()),
    ]
)
"""A picture, sound or video of a row. Its tokens are `[start, end)`, `features` of them stand for what the tower makes
of it.

The grid is in patches or tiles, `patches` is what the tower sees; sizes are those of the upright picture. Of a sound,
`width` is its samples, `height` its channels, `grid_t` the windows of its spectrum; `rate` is samples a second, of a
video frames in 1,000 seconds. `digest` is BLAKE3 of its bytes, which are in `content`, or in the file `reference`,
relative to `folder` unless it is absolute; of a video it is BLAKE3 of its frames' digests, and `reference` is their
list in JSON."""


def with_media(schema: pa.Schema) -> pa.Schema:
    """`schema` with the pictures of each row, as tables made for a model that reads pictures have them."""
    return schema.append(pa.field("media", pa.list_(pa.field("item", MEDIA, nullable=False)), nullable=False))


def with_pieces(schema: pa.Schema) -> pa.Schema:
    """`schema` with what `pack --strategy wrapped` says of each piece of a row: the row's identity, and the index in
    the row of the piece's first token."""
    return schema.append(pa.field("piece_of", ROW_ID, nullable=False)).append(
        pa.field("piece_start", pa.int32(), nullable=False)
    )


PROMPTS_V1: Final = pa.schema([*TOKENS_V1, pa.field("messages", pa.utf8()), pa.field("tools", pa.utf8())])
"""One conversation that waits for an answer: ids end in the generation prompt, `turns` and `spans` are empty.
`messages` and `tools` are canonical JSON, for environments and judges; `messages` is null where the prompt is text
without a chat. `extra` holds the row's other columns, its answers among them."""

PIXELS_V1: Final = pa.schema(
    [
        pa.field("digest", pa.binary(32), nullable=False),
        pa.field("kind", pa.utf8(), nullable=False),
        pa.field(
            "tensors",
            pa.list_(
                pa.field(
                    "item",
                    pa.struct(
                        [
                            pa.field("name", pa.utf8(), nullable=False),
                            pa.field("dtype", pa.utf8(), nullable=False),
                            pa.field("shape", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
                            pa.field("frames", pa.int32(), nullable=False),
                            pa.field("table", pa.large_binary()),
                            pa.field("data", pa.large_binary(), nullable=False),
                        ]
                    ),
                    nullable=False,
                )
            ),
            nullable=False,
        ),
    ]
)
"""A picture, by the digest that rows have of it, with the tensors that the model's processor makes of it.

`data` is the tensor's bytes if `frames` is 0, or one number that all of it is. Otherwise it is shades, one byte each,
[N, C, R] for N patches or tiles, C channels and R places; `table` [C, 256] says which float32 each becomes, and each
stands `frames` times: [N, C, frames, R] has the tensor's numbers in their order."""

BINS_V1: Final = pa.schema(
    [
        pa.field("rows", pa.list_(pa.field("item", pa.int64(), nullable=False)), nullable=False),
        pa.field("starts", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("trained_tokens", pa.int64(), nullable=False),
        pa.field("weight_sum", pa.float64(), nullable=False),
        pa.field("num_rows", pa.int32(), nullable=False),
        pa.field("cost", pa.float64(), nullable=False),
    ]
)
"""One bin of a packing plan: ordinals into the concatenated token tables, and where each row starts in the bin."""

LEDGER_V1: Final = pa.schema(
    [
        pa.field("row_id", ROW_ID),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("action", pa.utf8(), nullable=False),
        pa.field("reason", pa.utf8(), nullable=False),
        pa.field("tokens_before", pa.int32()),
        pa.field("tokens_after", pa.int32()),
    ]
)
"""One row that was not passed on as it came: `action` is dropped, truncated or masked."""


_IDS = pa.large_list(pa.field("item", pa.int32(), nullable=False))

EVAL_ITEMS_V1: Final = pa.schema(
    [
        pa.field("item_id", pa.utf8(), nullable=False),
        pa.field("group", pa.utf8(), nullable=False),
        pa.field("prompt", pa.utf8(), nullable=False),
        pa.field("prompt_ids", _IDS, nullable=False),
        pa.field("output", pa.utf8()),
        pa.field("output_ids", _IDS, nullable=False),
        pa.field("finish_reason", pa.utf8()),
        pa.field("error", pa.utf8()),
    ]
)
"""One question asked: `prompt` is the conversation, or a task's text, as JSON; either `output` and `finish_reason`, or
`error`."""

EVAL_SCORES_V1: Final = pa.schema(
    [
        pa.field("item_id", pa.utf8(), nullable=False),
        pa.field("rule", pa.utf8()),
        pa.field("expected", pa.list_(pa.utf8()), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("ok", pa.bool_()),
        pa.field("reason", pa.utf8(), nullable=False),
    ]
)
"""One answer scored; `score` and `ok` are null where nothing was answered or expected, never 0."""

EVAL_CHOICES_V1: Final = pa.schema(
    [
        pa.field("item_id", pa.utf8(), nullable=False),
        pa.field("choice", pa.int32(), nullable=False),
        pa.field("text", pa.utf8(), nullable=False),
        pa.field("logp", pa.float64(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("is_greedy", pa.bool_(), nullable=False),
    ]
)
"""What a model thinks of each choice of a task's item: the log-prob of its text after the prompt."""


SAMPLED: Final = pa.struct(
    [
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("weights", pa.int16(), nullable=False),
        pa.field("turn", pa.int16(), nullable=False),
    ]
)
"""A run of tokens that one set of weights sampled; `weights` indexes the manifest's list of weight digests."""

STEP_REWARD: Final = pa.struct(
    [
        pa.field("at", pa.int32(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""What an environment gave for the tokens before index `at`."""

ROLLOUTS_V1: Final = pa.schema(
    [
        *TOKENS_V1,
        pa.field("prompt_id", ROW_ID, nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("branch", pa.int32(), nullable=False),
        pa.field("prompt_length", pa.int32(), nullable=False),
        pa.field("sampled", pa.list_(pa.field("item", SAMPLED, nullable=False)), nullable=False),
        pa.field("logp", pa.list_(pa.float32())),
        pa.field("finish", pa.utf8(), nullable=False),
        pa.field("stop_id", pa.int32()),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("output", pa.utf8()),
        pa.field("prompt", pa.utf8()),
        pa.field("transcript", pa.utf8()),
        pa.field("step_rewards", pa.list_(pa.field("item", STEP_REWARD, nullable=False))),
        pa.field("error", pa.utf8()),
    ]
)
"""One sample of a prompt: the columns of TOKENS_V1, then how it was sampled. `pair_id` is the group, equal to
`prompt_id`; `spans` cover what the policy sampled; `logp` has one entry for each sampled token, at the sampling
temperature, null inside where the engine has none. `prompt` is the conversation and `transcript` what followed it, as
canonical JSON. A conversation whose past the template writes otherwise goes on in a row with the next `branch`, and the
row before has `finish` fork. A sample that failed has an `error` and no spans."""

REWARD_ERROR: Final = pa.struct(
    [
        pa.field("function", pa.utf8(), nullable=False),
        pa.field("reason", pa.utf8(), nullable=False),
        pa.field("detail", pa.utf8(), nullable=False),
    ]
)

REWARDS_V1: Final = pa.schema(
    [
        pa.field("row_id", ROW_ID, nullable=False),
        pa.field("prompt_id", ROW_ID, nullable=False),
        pa.field("scores", pa.list_(pa.float64()), nullable=False),
        pa.field("errors", pa.list_(pa.field("item", REWARD_ERROR, nullable=False)), nullable=False),
        pa.field("reward", pa.float64()),
        pa.field("advantage", pa.float64()),
        pa.field("advantages", pa.list_(pa.field("item", pa.float32(), nullable=False))),
        pa.field("returns", pa.list_(pa.field("item", pa.float32(), nullable=False))),
        pa.field("values", pa.list_(pa.field("item", pa.float32(), nullable=False))),
        pa.field("group_kind", pa.utf8(), nullable=False),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("drop_reason", pa.utf8()),
    ]
)
"""One rollout's rewards, in the order of its rollouts table. `scores` has one entry for each function, in the order of
the manifest's `functions`; null means that the function failed or does not apply, and `errors` says why. `advantages`,
`returns` and a critic's `values` have an entry for each sampled token where they differ by token, and `advantage` is
their mean. `group_kind` is `mixed`, `best` or `worst` (all rewards equal, above 0 or not), or `few` (fewer than two
rewards)."""


SCORES_V1: Final = pa.schema(
    [
        pa.field("row_id", ROW_ID, nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("logp", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),
        pa.field("entropy", pa.list_(pa.field("item", pa.float32(), nullable=False))),
        pa.field("collision", pa.list_(pa.field("item", pa.float32(), nullable=False))),
        pa.field("values", pa.list_(pa.field("item", pa.float32(), nullable=False))),
        pa.field("top_ids", pa.list_(pa.field("item", pa.int32(), nullable=False))),
        pa.field("top_logp", pa.list_(pa.field("item", pa.float32(), nullable=False))),
    ]
)
"""What a model says of a row of tokens: `logp[i]` is the log-probability of token `start + i`, given all before it.

`entropy` and `collision` (log of the sum of squared probabilities) are of the same tokens, null where not asked for.
`values` is what a model with another head says of the row (reward, classes, embedding); `logp` is empty then.
`top_ids` and `top_logp` are the K likeliest successors of each prediction, token after token; K is in the config.
Rows are those of the token tables that were scored, in their order.
"""


ROW_LOSSES_V1: Final = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("row_id", ROW_ID, nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("nll", pa.float64(), nullable=False),
    ]
)
"""What a span of a row lost in a step of training, counted from 1, before its update: `nll` is the sum of -log p of
tokens `start` to `end` (which is not in it), all of weight `weight`. `row` is the row's ordinal in the token tables."""


def check_schema(schema: pa.Schema, expected: pa.Schema, place: Any) -> None:
    """Raises ArtifactError (78) naming the first column of `found` that differs from `expected`."""
    for field in expected:
        index = schema.get_field_index(field.name)
        if index < 0:
            raise ArtifactError(f'{place}: no column "{field.name}"; make it again with this version', MISMATCH)
        if schema.field(index).type != field.type:
            raise ArtifactError(
                f'{place}: column "{field.name}" is {schema.field(index).type}, expected {field.type}; make it again',
                MISMATCH,
            )
