"""The rules of IFEval: what an instruction asks of the form of an answer, as its own checker reads it.

Rules that need a sentence splitter or a tokenizer of English are not judged; those that look at an answer's language
(`language_rules`) need the package langdetect. Source: <https://arxiv.org/abs/2311.07911> and the code beside it.
"""

import functools
import importlib.util
import json
import re
from collections.abc import Callable
from typing import Any

Rule = Callable[[str, dict[str, Any]], bool]

_RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _relation(count: int, wanted: int, relation: str) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def _words(text: str, of: dict[str, Any]) -> bool:
    return _relation(len(re.findall(r"\w+", text)), of["num_words"], of["relation"])


def _paragraphs(text: str, of: dict[str, Any]) -> bool:
    return bool(_parts(re.split(r"\s?\*\*\*\s?", text)) == of["num_paragraphs"])


def _parts(parts: list[str]) -> int:
    """How many there are, those at the ends aside if they are empty; -1 with an empty one between."""
    if any(not part.strip() for part in parts[1:-1]):
        return -1
    return sum(bool(part.strip()) for part in parts)


def _first_word(text: str, of: dict[str, Any]) -> bool:
    parts = re.split(r"\n\n", text)
    nth = of["nth_paragraph"]
    count = sum(bool(part.strip()) for part in parts)
    if nth > count or not parts[nth - 1].strip():
        return False
    word = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    word = re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower()
    return bool(count == of["num_paragraphs"] and word == of["first_word"].lower())


def _bullets(text: str, of: dict[str, Any]) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    return bool(len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == of["num_bullets"])


def _highlights(text: str, of: dict[str, Any]) -> bool:
    one = [found for found in re.findall(r"\*[^\n\*]*\*", text) if found.strip("*").strip()]
    two = [found for found in re.findall(r"\*\*[^\n\*]*\*\*", text) if found[2:-2].strip()]
    return bool(len(one) + len(two) >= of["num_highlights"])


def _title(text: str, of: dict[str, Any]) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _json(text: str, of: dict[str, Any]) -> bool:
    body = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except ValueError:
        return False
    return True


def _sections(text: str, of: dict[str, Any]) -> bool:
    return bool(len(re.split(r"\s?" + of["section_spliter"] + r"\s?\d+\s?", text)) - 1 >= of["num_sections"])


def _postscript(text: str, of: dict[str, Any]) -> bool:
    marker = of["postscript_marker"]
    known = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    return bool(re.findall(known.get(marker, r"\s*" + marker.lower() + r".*$"), text.lower(), re.MULTILINE))


def _frequency(text: str, of: dict[str, Any]) -> bool:
    return _relation(len(re.findall(of["keyword"], text, re.IGNORECASE)), of["frequency"], of["relation"])


def _two_responses(text: str, of: dict[str, Any]) -> bool:
    parts = text.split("******")
    said = [part.strip() for part in parts if part.strip()]
    return _parts(parts) == 2 and said[0] != said[1]


def _quoted(text: str, of: dict[str, Any]) -> bool:
    body = text.strip()
    return len(body) > 1 and body[0] == '"' == body[-1]


RULES: dict[str, Rule] = {
    "change_case:english_capital": lambda text, of: text.isupper(),
    "change_case:english_lowercase": lambda text, of: text.islower(),
    "combination:repeat_prompt": lambda text, of: (
        text.strip().lower().startswith(of["prompt_to_repeat"].strip().lower())
    ),
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": lambda text, of: (
        len(re.findall(r"\[.*?\]", text)) >= of["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": lambda text, of: any(said in text for said in _RESPONSES),
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "keywords:existence": lambda text, of: all(re.search(word, text, re.IGNORECASE) for word in of["keywords"]),
    "keywords:forbidden_words": lambda text, of: (
        not any(re.search(r"\b" + word + r"\b", text, re.IGNORECASE) for word in of["forbidden_words"])
    ),
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": lambda text, of: _relation(
        text.lower().count(of["letter"].lower()), of["let_frequency"], of["let_relation"]
    ),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "punctuation:no_comma": lambda text, of: "," not in text,
    "startend:end_checker": lambda text, of: text.strip().strip('"').lower().endswith(of["end_phrase"].strip().lower()),
    "startend:quotation": _quoted,
}
"""Name in the dataset -> whether an answer follows it, given the rule's arguments."""


def language_rules() -> dict[str, Rule]:
    """The rules that name a language, as the official checker judges them; none where langdetect is not installed.

    Capitals and small letters have to be English as well; an answer without letters has no language, and follows.
    """
    if importlib.util.find_spec("langdetect") is None:
        return {}
    import langdetect

    langdetect.DetectorFactory.seed = 0  # it draws at random, and short texts come out one way or the other

    @functools.lru_cache(maxsize=1024)  # it takes milliseconds, and the loose readings of an answer are alike
    def language_of(text: str) -> str | None:
        try:
            found: str = langdetect.detect(text)
        except langdetect.LangDetectException:
            return None
        return found

    def is_in(text: str, language: str) -> bool:
        return language_of(text) in {language, None}

    return {
        "change_case:english_capital": lambda text, of: text.isupper() and is_in(text, "en"),
        "change_case:english_lowercase": lambda text, of: text.islower() and is_in(text, "en"),
        "language:response_language": lambda text, of: is_in(text, of["language"]),
    }
