"""Find the prompt syntax of other tools in a text.

In other tools, marks weigh a word, add a LoRA or join prompts; nulltext's text encoder reads them
as text, which makes pictures worse without a warning. So they are found for a note, and the text is
left as it is: captions have parentheses too, and a factor that scales a word's embedding in those
tools would scale its attention here.

Natural captions with such marks ("a flower (close up)", "[sic]", "C++", "10:30") are not matched.
Source: the prompt syntaxes of AUTOMATIC1111's web UI, ComfyUI, InvokeAI (compel), NovelAI, and
Midjourney, by their documentation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

MARK_WEIGHTS = {"(": 1.1, "[": 1 / 1.1, "{": 1.05, "+": 1.1, "-": 0.9}
"""Factor of a word's weight for each mark."""
MAX_DECIMAL_WEIGHT, MAX_WHOLE_WEIGHT = 3, 2
"""Larger numbers after a colon are not weights: "(photo: 2019)", "(rooms:3)"."""
MAX_CHARACTERS = 4000
"""Longer texts are not searched; no prompt is as long."""

# fmt: off
HEDGES = frozenset((
    "almost", "blank", "former", "illegible", "late", "more", "most", "new", "not", "now", "old",
    "once", "quite", "rather", "so", "then", "unknown", "very",
))
"""Words that captions put in parentheses or brackets after an article, like those in "-ly"."""
MEASURES = frozenset((
    "age", "chapter", "day", "height", "length", "line", "month", "months", "no", "page", "part",
    "ratio", "room", "rooms", "scale", "size", "version", "vol", "volume", "width", "zoom",
))
"""Words with a number after a colon that is not a weight."""
TAGS = frozenset((
    "body", "br", "button", "code", "div", "em", "font", "form", "head", "header", "hr", "html",
    "img", "input", "li", "link", "main", "mask", "meta", "nav", "ol", "pad", "person", "pre",
    "script", "span", "strong", "sub", "sup", "svg", "table", "td", "title", "tr", "ul", "unk",
    "unknown",
))
"""Names in angle brackets that are not learnt tokens, like single letters and "h1"."""
PLACES = frozenset((
    "all", "call", "caption", "dict", "doc", "file", "future", "init", "main", "name",
    "placeholder", "prompt", "pycache", "repr", "str", "template", "text", "title", "user",
    "variable",
))
"""Names in braces or underscores that stand for text in programs."""
# fmt: on

Match = re.Match[str]


class Found(NamedTuple):
    """A piece of another tool's syntax."""

    kind: str
    """What it asks for: the kind of a rule in `RULES`."""
    text: str
    word: str
    """The words, the name, or the file that it is about."""
    figure: float = 1.0


def find_syntax(text: str, learnt: Collection[str] = ()) -> tuple[list[Found], str]:
    """Find other tools' syntax in a text; return the pieces, and the text without their marks.

    Args:
        learnt: the model's learnt tokens, in lower case, which are words.
    """
    found: list[Found] = []
    text = " ".join(text.split())
    if len(text) > MAX_CHARACTERS:
        return [], text
    for rule in [*RULES, *WEAK_RULES]:
        if rule is WEAK_RULES[0] and all(each.kind == "emoji" for each in found):
            break

        def replaced(match: Match, rule: _Rule = rule) -> str:
            if match[0].casefold() in learnt or (rule.is_text and rule.is_text(match)):
                return match[0]
            found.append(Found(rule.kind, match[0].strip(), rule.word(match), _weight(match)))
            return match.expand(rule.plain)

        before = None
        while before != text:  # marks may stand within marks
            before, text = text, re.sub(rule.pattern, replaced, text)
    return found, " ".join(text.split())


def _weight(match: Match) -> float:
    """Return the weight that a piece gives: a figure, marks such as "((" or "++", or both."""
    figure, marks = match.groupdict().get("figure"), _marks(match)
    if figure is None:
        return MARK_WEIGHTS[marks[0]] ** len(marks) if marks else 1.0
    return float(figure) * (MARK_WEIGHTS[marks[0]] ** (len(marks) - 1) if marks else 1.0)


def _marks(match: Match) -> str:
    """Return as many marks as there are on both sides."""
    groups = match.groupdict()
    marks = groups.get("marks") or ""
    return marks[: len(groups.get("close") or marks)]


def _word(match: Match) -> str:
    return match.groupdict().get("word", match[0]).strip()


def _choices(match: Match) -> str:
    return ", ".join(choice.strip() for choice in match["word"].split("|")).strip()


def _emoji_names(match: Match) -> str:
    """Return Unicode names, except those of the older symbols, which are unusual words."""
    names = [unicodedata.name(each, "") for each in match[0] if each >= "\U0001f300"]
    return " ".join(name for name in names if "MODIFIER" not in name).casefold().strip()


# --- ordinary text that looks like syntax ---------------------------------------------------------


def _is_place(match: Match) -> bool:
    return match["word"] in PLACES


def _is_tag(match: Match) -> bool:
    """<br>, <PERSON>, <Enter>; not <my-flower>"""
    name = match[0][1:-1]
    is_key = name.isupper() or (name.isalpha() and name.istitle())
    is_short = re.fullmatch(r"(?i)[a-z]|h[1-6]", name) is not None
    return is_key or is_short or name.casefold() in TAGS


def _is_remark(match: Match) -> bool:
    """(close up), [sic], {user}, (4:3), (photo: 2019); not ((x)), (x:1.3), [[x]], {x}"""
    inner, figure, marks = match["word"], match["figure"], _marks(match)
    if figure is None and marks[0] == "{":
        words = inner.count(" ") + 1
        is_text = words > 2 or inner in PLACES or not re.search(r"[^\W\d_]{2}", inner)
        return is_text or (words > 1 and len(marks) == 1)
    if figure is None:
        return len(marks) == 1
    if sum(character.isalpha() for character in inner) < 2 or inner[-1].isdigit():
        return True  # a ratio, a time, a verse
    most = MAX_DECIMAL_WEIGHT if "." in figure else MAX_WHOLE_WEIGHT
    if abs(float(figure)) > most or (match["space"] and "." not in figure):
        return True  # (figure: 3)
    is_list = re.search(r":|,\s*\d", inner) is not None
    return is_list or inner.casefold().split()[-1] in MEASURES


def _is_hedge(match: Match) -> bool:
    """a (very) old house, the [REDACTED] file; not a (red) flower"""
    inner = match["word"]
    is_hedge = inner.casefold() in HEDGES or inner.endswith("ly") or inner.isupper()
    return is_hedge or inner.isdigit() or len(inner) < 3


def _is_name(match: Match) -> bool:
    """Google++, notepad++"""
    return match["word"].casefold() == "notepad" or match[0][0].isupper()


def _is_time(match: Match) -> bool:
    """[00:12:30], [2:1]"""
    old, new = match["old"] or "", match["word"]
    return new.strip()[-1:].isdigit() or not any(map(str.isalpha, old + new))


def _is_capital(match: Match) -> bool:
    """STOP AND GO; and AND or BREAK at an end"""
    before, after = match.string[: match.start()].split(), match.string[match.end() :].split()
    around = [*before[-1:], *after[:1]]
    return len(around) < 2 or any(word.isupper() and len(word) > 1 for word in around)


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rule:
    kind: str
    pattern: str
    plain: str = ""
    """Template of the text that replaces the piece."""
    is_text: Callable[[Match], bool] | None = None
    word: Callable[[Match], str] = _word


_NUMBER = r"-?(?:\d+(?:\.\d+)?|\.\d+)"
_NAME = r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*"
_INNER = (
    r"(?P<word>[^()\[\]{}|]*?[^()\[\]{}|:\s])\s*"
    rf"(?::(?P<space>\s*)(?P<figure>{_NUMBER}))?\s*"
)
_IN_A_SENTENCE = r"\s+(?:a|an|the|and|but|or|with|in|on|of|at|from|by)\b"
_SIGNS = rf"(?P<marks>\+{{2,}}(?![\w+-]|{_IN_A_SENTENCE})|-{{2,}}(?=\s*(?:$|,)))"
_ARTICLE = r"(?i)(?:(?<=\ba )|(?<=\ban )|(?<=\bthe ))"
_IN_A_LIST = r"(?P<after>(?<=\), ))?(?P<marks>\()(?P<word>[^()]+)\)(?(after)|(?=, \())"
_OPTIONS = (
    "ar|aspect|chaos|cref|cw|iw|niji|q|quality|raw|repeat|seed|sref|stop|style|stylize|tile|v|"
    "version|weird"
)
_EMOJI = "\U0001f1e6-\U0001faff"
_SYMBOLS = "\u2600-\u2604\u2728\u2764\u2b50"  # emoji that also are symbols
_EMOJIS = rf"(?:[{_EMOJI}{_SYMBOLS}]|\S\ufe0f)[{_EMOJI}\ufe0f\u200d\u20e3]*"

_WORD = r"\g<word>"

RULES = (
    _Rule("lora", rf"(?i)<(?:lora|lyco):(?P<word>[^<>:]+)(?::(?P<figure>{_NUMBER}))?[^<>]*>"),
    _Rule("hypernet", r"(?i)<hypernet:[^<>]+>"),
    _Rule("embedding", r"\bembedding:(?P<word>[\w./-]*\w)", is_text=_is_place),
    _Rule("token", r"<[^\W\d][\w-]*>", is_text=_is_tag),
    _Rule("negative", r"(?is)\bnegative prompt:.*"),
    _Rule("negative", r"(?<!\S)--no\s+[^,.]+?(?=\s*(?:$|[,.]|\s--))"),
    _Rule("option", rf"(?<!\S)--(?:{_OPTIONS})\b(?:\s+(?:[\w.:/]*\d[\w.:/]*|raw)(?!\S))?"),
    _Rule("join", r"(?<=[,.]) BREAK\b,?(?!\S)", ",", _is_capital),
    _Rule("join", r"(?<=\))\.(?:and|blend)\([^()]*\)|\.swap\([^()]*\)"),
    _Rule("weight", rf"(?<![\w:])(?P<figure>{_NUMBER})::(?P<word>[^:]+)::", _WORD),
    _Rule("join", r"(?<=\w)::(?=\s|$)"),
    _Rule("wildcard", r"(?<!\w)__(?P<word>\w(?:[\w/*-]*[^\W_])?)__(?!\w|\.\w)", is_text=_is_place),
    _Rule("choice", r"[\[{](?P<word>([^][{}|]*)(?:\|[^][{}|]*)+)[]}]", r"\2", word=_choices),
    _Rule("steps", rf"\[(?P<old>[^][:]*):(?P<word>[^][:]*):\s*{_NUMBER}\]", _WORD, _is_time),
    _Rule("steps", r"\[(?P<old>)(?P<word>[^][:]+):\s*0?\.\d+\]", _WORD, _is_time),
    _Rule("escape", r"\\(?P<word>[()\[\]])", _WORD),
    _Rule("weight", rf"(?<![\w'-])(?=\w{{3}})(?P<word>{_NAME}){_SIGNS}", _WORD, _is_name),
    _Rule("weight", rf"\((?P<word>[^()]+)\){_SIGNS}", _WORD),
    _Rule("weight", r"\((?P<word>[^()]+)\)(?P<figure>\d*\.\d+)(?!\w)", _WORD),
    _Rule("weight", rf"(?<!\()(?P<marks>\(+)\s*{_INNER}(?P<close>\)+)", _WORD, _is_remark),
    _Rule("weight", rf"(?<!\[)(?P<marks>\[+)\s*{_INNER}(?P<close>\]+)", _WORD, _is_remark),
    _Rule("weight", rf"(?<!\{{)(?P<marks>\{{+)\s*{_INNER}(?P<close>\}}+)", _WORD, _is_remark),
    _Rule("weight", rf"{_ARTICLE}(?P<marks>\[)(?P<word>{_NAME})\](?=\s+\w)", _WORD, _is_hedge),
    _Rule("weight", rf"(?<![\w'\u2019-])(?P<word>{_NAME})::(?P<figure>{_NUMBER})(?!\w)", _WORD),
    _Rule("emoji", _EMOJIS, " ", word=_emoji_names),
)
"""Applied in this order, each to the text that those before it have left."""

WEAK_RULES = (
    _Rule("join", r"(?<!\S)BREAK(?!\S)", ",", _is_capital),
    _Rule("join", r"(?<!\S)AND(?!\S)", "and", _is_capital),
    _Rule("weight", rf"{_ARTICLE}(?P<marks>\()(?P<word>{_NAME})\)(?=\s+\w)", _WORD, _is_hedge),
    _Rule("weight", _IN_A_LIST, _WORD, _is_hedge),  # (red), (large)
)
"""Applied after `RULES`, to texts that have other marks: captions have these, too."""
