"""Options of `tokenize`."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from postmill.stages.shared.agent_formats.table import FORMATS
from postmill.stages.spec import SAME_BYTES, Port, Stage


class Tokenize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Turn raw rows into token ids with a weight for every token, exactly as the model's chat template has it."""

    for_: Literal["train", "prompt", "embed", "rank"] = "train"
    """`train`: tokens to learn from. `prompt`: prompts for rollout, which end where an answer is due; the answers that
    rows have travel along for rewards. `embed`: a query, a text that fits it and texts that do not, each a row of its
    own, as the tokenizer itself encodes texts; `rank`: the query together with each of its texts."""
    loss_scale: str = "default"
    """What is trained on, and how much: a base (`default`: every assistant turn; `last_round`: those after the last
    user or tool message; `all`: every token), then `+` and strategies whose weights multiply: ignore_empty_think,
    ignore_think_prefix, react, hermes, qwen, agentflan, alpha_umi, swift-table-14, or the name of a `--rules` file."""
    loss_rules: Literal["spans", "ms-swift"] = "spans"
    """How strategies are read. `spans`: a pattern weighs exactly what it matches. `ms-swift`: as ms-swift does, quirks
    included."""
    train_roles: list[Literal["system", "user", "assistant", "tool"]] = []
    """Whose turns to train on, one at a time. Unset: the assistant's alone."""
    train_closing: Literal["turn", "last", "all", "none"] = "turn"
    """Which closing tokens (<|im_end|>) to train on: of turns that are trained on, of the last of them, of every
    role's turns, or none."""
    segments: Literal["whole", "turn", "ms-swift"] = "whole"
    """Where text is cut before encoding. `whole`: the ids of apply_chat_template; `turn`: at the start of each
    assistant turn, as in generation; `ms-swift`: where the weight changes, as ms-swift does."""
    max_length: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    """Longest row in tokens, prompt and answer together."""
    truncation: Literal["drop", "right", "left", "split", "proportional", "error"] = "drop"
    """What to do with longer rows: leave them out; keep their first or last tokens (an assistant turn that loses a part
    is no longer trained on); `split`: cut text rows into blocks and leave out conversations; `proportional`: shorten
    prompt and answer by the same share and keep the start of each, as LLaMA-Factory does; or stop."""
    thinking: Literal["template", "strip", "empty", "no-think"] = "template"
    """Changes to thinking before the template sees a row. `strip` removes it; `empty` adds an empty block to answers
    without; `no-think` also ends their question in /no_think."""
    special_text: Literal["keep", "escape", "drop", "error"] = "keep"
    """What to do with special tokens written as text in a row. `keep` encodes them as transformers does, as the special
    token: whoever wrote the row can end and open turns; `escape` encodes them as the text they are; `drop` leaves the
    row out. They are counted in any case."""
    unwritten: Literal["error", "allow"] = "error"
    """What to do with a row of which the chat template leaves out a text, a tool call or a tool definition: refuse
    it, or train on what is written. They are counted. Thinking that a template leaves out is always only counted."""
    agent_format: str | None = None
    """Write tools, calls and what tools answer into the messages, for a chat template that does not: hermes, react_en,
    toolbench, qwen_en, glm4, llama3, ... docs/agent-formats.md has all of them."""
    system: str | None = None
    """System message of conversations that have none."""
    template_kwargs: dict[str, Any] = {}
    """Arguments of the chat template, one at a time (enable_thinking=false) or as JSON. Those of a row win."""
    template_name: str = ""
    """Which of the model's named chat templates. Unset: `default`, or `tool_use` for rows with tools if there is."""
    date: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d$")] | None = None
    """Today's date for chat templates that print it, as YYYY-MM-DD. Without it, such a template is refused."""
    plain: bool = False
    """No chat template: texts one after the other, each answer with the end of sequence behind it. What both texts of a
    pair without a question begin with is then the question."""
    each_turn: bool = False
    """Make a row of each answer of a conversation, with what came before as its prompt: the template then writes each
    prompt as it will in use, where it leaves out the thinking of past turns."""
    unpair: bool = False
    """Make two rows of a pair, the better answer with label 1 and the worse one with label 0, for kto."""
    continue_final: bool = False
    """Of prompts: go on with the words of the assistant at the end of a conversation; else they are the answer."""
    number_calls: bool = False
    """Number the ids of tool calls anew, in nine digits: Mistral's templates refuse those of OpenAI."""
    drop: list[str] = []
    """Columns to leave out, one at a time: those that cannot be read, or that the rows are better without. `system`
    leaves out system messages too."""
    columns: dict[str, str] = {}
    """Columns to rename first, one at a time (my_question=query) or as JSON; members of messages too (author=role)."""
    roles: dict[str, str] = {}
    """Roles by other names, one at a time (npc=assistant) or as JSON."""
    media_root: list[str] = []
    """Folders whose pictures rows may name, one at a time, besides the folder of the data file. Relative paths are
    looked for in them, too."""
    model_name: str | None = None
    """What {{NAME}} becomes in self-cognition data."""
    model_author: str | None = None
    """What {{AUTHOR}} becomes in self-cognition data."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at the first row that cannot be used, or leave such rows out, with a line in the ledger."""
    on_cut: Literal["error", "keep"] = "error"
    """Stop at a file that ends too early, as a download that broke off does, or keep the rows before the cut."""
    dedup: bool = False
    """Leave out rows whose conversation, tools and labels equal those of an earlier row. Takes some 100 bytes a row."""
    mix: list[Annotated[float, Meta(gt=0)]] = []
    """Shares of the datasets in the result, one weight each: 0.7,0.3."""
    mix_stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """Whether the smallest dataset, for its share, ends a mix, or the largest, while others repeat."""
    val_ratio: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Share of rows held out for validation, chosen by a hash of each row's bytes. Run once for each `--split`."""
    split: Literal["train", "validation"] = "train"
    """Which side of `--val-ratio` to take."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 42
    """Chooses the rows of `#count`, of mixes and of the split."""
    engine: Annotated[Literal["auto", "tokenizers"], SAME_BYTES] = "auto"
    """`auto`: our own encoder where it knows every part of the tokenizer, else the tokenizers crate. Equal ids."""
    max_line_bytes: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 64 * 2**20
    """Longest line of a source."""

    def __post_init__(self) -> None:
        if self.agent_format is not None and self.agent_format not in FORMATS:
            raise ValueError(f"agent_format: {self.agent_format!r} is none of {', '.join(FORMATS)}")
        if self.segments == "ms-swift" and self.loss_rules != "ms-swift":
            raise ValueError("segments ms-swift needs loss_rules ms-swift: it cuts where ms-swift's weights change")
        if self.truncation in ("right", "left", "split", "proportional") and self.max_length is None:
            raise ValueError(f"truncation {self.truncation} needs max_length; pass --max-length N")
        if self.for_ == "prompt" and self.truncation in ("right", "split", "proportional"):
            raise ValueError(f"truncation {self.truncation} would cut off where the answer is due; use drop or left")
        if self.for_ != "train" and self.segments != "whole":
            raise ValueError(f"segments: with for {self.for_} a text is encoded whole; drop the option")
        if self.for_ in ("embed", "rank") and self.truncation in ("left", "split", "proportional"):
            raise ValueError(f"truncation {self.truncation}: with for {self.for_} use drop or right")
        if self.segments == "ms-swift" and (
            self.train_roles not in ([], ["assistant"]) or self.train_closing != "turn"
        ):
            raise ValueError(
                "segments ms-swift cuts where ms-swift's weights change; it has no train_roles, train_closing"
            )
        if self.continue_final and self.for_ != "prompt":
            raise ValueError("continue_final is about prompts; add --for prompt")
        if self.each_turn and self.for_ != "train":
            raise ValueError("each_turn makes rows to train on; drop it or --for")
        if self.unpair and self.for_ != "train":
            raise ValueError("unpair makes rows to train on; drop it or --for")
        if self.plain and self.agent_format is not None:
            raise ValueError("plain writes texts alone; drop agent_format, or give a chat template")
        if self.split == "validation" and self.val_ratio == 0:
            raise ValueError("split validation needs a val_ratio above 0")


def kind_made(config: Tokenize) -> str:
    """Kind of the artifact that a config makes."""
    return "prompts" if config.for_ == "prompt" else "tokens"


STAGE = Stage(
    name="tokenize",
    version=2,
    config=Tokenize,
    inputs={
        "data": Port(
            kinds=("dataset", "tokens"),
            help="jsonl, json, csv, parquet, arrow or text files, folders, hf:owner/name, ms:owner/name, any of them"
            " with #count, - for rows from a pipe; or one tokens artifact or stream to weigh again without encoding",
            many=True,
            stream=True,
            resolver="postmill.stages.tokenize.inputs:resolve",
        ),
        "model": Port(
            kinds=("tokenizer",),
            help="the model whose tokenizer and chat template to use: a folder, or owner/name on Hugging Face",
            flag="-m",
        ),
        "template": Port(
            kinds=("file",),
            help="a chat template (Jinja) in place of the model's",
            flag="--chat-template",
            required=False,
        ),
        "rules": Port(
            kinds=("file",),
            help="a loss-scale rules file, called by its name in --loss-scale",
            flag="--rules",
            many=True,
            required=False,
        ),
    },
    output=kind_made,
    stream=True,
    shards=True,
    example="postmill tokenize chats.jsonl -m base/ -o tokens/ --loss-scale last_round+hermes --max-length 4096",
)
