"""How much of a reference answer an answer has: whole, words, n-grams.

em and f1 are SQuAD's, with its normalisation (Rajpurkar et al., <https://arxiv.org/abs/1606.05250>, evaluate-v1.1.py).
BLEU and chrF are sacrebleu's, of the corpus; ROUGE is rouge-score's F, with stemming, the mean over items. Chinese and
Japanese are counted by characters: BLEU with sacrebleu's tokenizer `zh`, ROUGE and f1 character by character.
"""

import importlib.metadata
import importlib.util
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.eval.contamination import CHARACTERS
from postmill.stages.eval.tasks.mark import Mark

_BY_CHARACTER = re.compile(f"[{CHARACTERS}]")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROUGE = ("rouge1", "rouge2", "rougeL")


def mark_overlap(metrics: Sequence[str], output: str, target: str) -> list[Mark]:
    """em, f1 and rouge of one answer. bleu and chrf belong to all answers: `corpus`."""
    marks = []
    if "em" in metrics:
        marks.append(Mark(metric="em", value=float(_words(output) == _words(target)), said=output.strip()[:200]))
    if "f1" in metrics:
        marks.append(Mark(metric="f1", value=word_f1(output, target), said=""))
    if "rouge" in metrics:
        marks += [Mark(metric=name, value=value, said="") for name, value in rouge(output, target).items()]
    return marks


def _words(text: str) -> list[str]:
    """SQuAD's normalisation: lower case, without punctuation and articles; each Chinese character is a word."""
    text = text.lower().translate(_PUNCTUATION)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return _BY_CHARACTER.sub(lambda found: f" {found.group()} ", text).split()


def word_f1(output: str, target: str) -> float:
    """F1 of the words that both have, counted."""
    said, right = _words(output), _words(target)
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))


_LIBRARIES = (
    ("bleu", "sacrebleu", "sacrebleu"),
    ("chrf", "sacrebleu", "sacrebleu"),
    ("rouge", "rouge_score", "rouge-score"),
    ("ifeval", "langdetect", "langdetect"),
)
"""Metric, what it imports, what pip installs."""


def versions_of(metrics: Sequence[str]) -> dict[str, str]:
    """Versions of the libraries that these metrics use, of those that are installed."""
    used = {package for metric, module, package in _LIBRARIES if metric in metrics and importlib.util.find_spec(module)}
    return {package: importlib.metadata.version(package) for package in sorted(used)}


def check_libraries(metrics: Sequence[str]) -> None:
    """Raises ConfigError (2) if a metric's library is not installed."""
    for metric, module, package in _LIBRARIES:
        # ifeval can do with fewer rules
        if metric in set(metrics) - {"ifeval"} and importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"--task: {metric} needs {package}, which is not installed; pip install 'postmill[eval]'", USAGE
            )


def rouge(output: str, target: str) -> dict[str, float]:
    """F of one word, two words, and the longest common subsequence."""
    from rouge_score.rouge_scorer import RougeScorer

    if _BY_CHARACTER.search(target):
        scores = RougeScorer(_ROUGE, tokenizer=_Characters()).score(target, output)
    else:
        scores = RougeScorer(_ROUGE, use_stemmer=True).score(target, output)
    return {name: float(scores[name].fmeasure) for name in _ROUGE}


class _Characters:
    def tokenize(self, text: str) -> list[str]:
        """Characters of Chinese and Japanese, words of the rest."""
        return _BY_CHARACTER.sub(lambda found: f" {found.group()} ", text.lower()).split()


def corpus(metrics: Sequence[str], outputs: list[str], targets: list[str]) -> dict[str, dict[str, Any]]:
    """bleu and chrf of all answers, 0 to 100, with sacrebleu's signature."""
    wanted = [metric for metric in ("bleu", "chrf") if metric in metrics]
    if not wanted or not outputs:
        return {}
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    is_chinese = sum(bool(_BY_CHARACTER.search(target)) for target in targets) * 2 > len(targets)
    scores = {}
    for name in wanted:
        scorer = CHRF() if name == "chrf" else BLEU(tokenize="zh" if is_chinese else "13a")
        value = float(scorer.corpus_score(outputs, [targets]).score)
        signature = str(scorer.get_signature())
        scores[name] = {"value": value, "stderr": None, "num_items": len(outputs), "signature": signature}
    return scores
