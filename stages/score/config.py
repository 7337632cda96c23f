"""Options of `score`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.shared.answer_tokens import check_answers
from postmill.stages.spec import LAST_BITS, Port, Stage


class Score(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Write down what a model thinks of rows: log-probs of their tokens, a reward, classes, or an embedding."""

    head: Literal["auto", "lm", "sequence", "token", "pool"] = "auto"
    """What is written. lm: log-probs of tokens; sequence: the numbers of a classifier or reward model; token: a number
    before each token, of a critic; pool: a vector of each row. auto: what the model was trained for."""
    pooling: Literal["auto", "last", "mean", "cls"] = "auto"
    """What a row's vector is made of: its last token, the mean over its tokens, or its first. auto: what the model was
    trained with, and last for one that was not trained for it."""
    answers: list[str] = []
    """Score each row as generative rerankers do: by the logit of the first of two tokens, like yes,no, less that of the
    second. Unset: as the model was trained."""
    normalize: bool = True
    """Divide each vector by its length."""

    where: Literal["trained", "all"] = "trained"
    """Tokens to score: from the first to the last trained one of each row, or all but the first."""
    partners: bool = False
    """Score each labelled row's prompt with the answer of another row: what KTO's KL term is measured on."""
    entropy: bool = False
    """Write the entropy of each prediction, too."""
    collision: bool = False
    """Write the logarithm of the summed squares of its probabilities, too (for WPO)."""
    top_k: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Write the so many likeliest successors of each token and their log-probs, too: what distillation learns from."""
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    """Divide logits by this first, as sampling at that temperature does."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the model. auto: bfloat16 on a GPU that has it, otherwise float32."""
    attention: Annotated[Literal["auto", "flash", "per-row"], LAST_BITS] = "auto"
    """Attention kernel, as in `train`."""
    loss_kernel: Annotated[Literal["auto", "reference", "cpp", "triton"], LAST_BITS] = "auto"
    """Backend of the output layer, as in `train`."""
    bin_tokens: Annotated[int, Meta(ge=1), LAST_BITS] = 4096
    """Tokens computed at a time; a longer row is computed alone."""

    def __post_init__(self) -> None:
        check_answers(self.answers, self.head)


STAGE = Stage(
    name="score",
    version=1,
    config=Score,
    inputs={
        "rows": Port(
            kinds=("tokens", "rollouts", "packed"), help="tokens, rollouts, or a packed artifact whose rows are scored"
        ),
        "model": Port(kinds=("model",), flag="-m", help="the model to ask: a folder, or owner/name on Hugging Face"),
        "adapter": Port(kinds=("adapter",), flag="--adapter", help="an adapter to put on it", required=False),
        "prompts": Port(
            kinds=("prompts",),
            flag="--prompts",
            help="prompts to read in place of those of the rows, line by line: of a teacher that knows more",
            required=False,
        ),
        "onto": Port(
            kinds=("tokens", "packed"),
            flag="--onto",
            help="the same rows by another tokenizer, of a student: what is said of the text is written on its tokens",
            required=False,
        ),
        "onto_tokenizer": Port(
            kinds=("tokenizer",),
            flag="--onto-tokenizer",
            help="that tokenizer: the folder of the student's model",
            required=False,
        ),
    },
    output="scores",
    example="postmill score packed/ -m base/ -o reference/",
)
