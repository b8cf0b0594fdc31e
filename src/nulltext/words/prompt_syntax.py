"""Prompt syntax of other tools: found in a text, and named with what stands for it here.

A prompt is read here as it is typed. Marks that weigh a word, bring a LoRA or join prompts in other
tools are marks of text to the text encoder, which makes pictures worse and says nothing. So they
are found and noted, and the text stays: captions have parentheses too, and a factor that scales a
word's embedding there would scale its attention here.

Natural captions with such marks ("a flower (close up)", "[sic]", "C++", "10:30") are left alone.
Source: the prompt syntaxes of AUTOMATIC1111's web UI, ComfyUI, InvokeAI (compel), NovelAI, and
Midjourney, by their documentation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection
from typing import NamedTuple

PARENTHESIS, BRACKET, BRACE, SIGN = 1.1, 1 / 1.1, 1.05, {"+": 1.1, "-": 0.9}
"""What one mark makes of a word's weight in these tools."""

NUMBER = r"-?(?:\d+(?:\.\d+)?|\.\d+)"
WEIGHED_AT_MOST, WHOLE_AT_MOST = 3, 2
"""Larger numbers behind a colon are no weights: "(photo: 2019)", "(rooms:3)"."""
LONGEST = 4000
"""Characters of a text that is looked at; no prompt is as long."""

# fmt: off
HEDGES = frozenset((
    "almost", "blank", "former", "illegible", "late", "more", "most", "new", "not", "now", "old",
    "once", "quite", "rather", "so", "then", "unknown", "very",
))
"""Words that captions put in parentheses or brackets behind an article, beside those in "-ly"."""
MEASURES = frozenset((
    "age", "chapter", "day", "height", "length", "line", "month", "months", "no", "page", "part",
    "ratio", "room", "rooms", "scale", "size", "version", "vol", "volume", "width", "zoom",
))
"""Words with a number behind a colon that is no weight."""
TAGS = frozenset((
    "body", "br", "button", "code", "div", "em", "font", "form", "head", "header", "hr", "html",
    "img", "input", "li", "link", "main", "mask", "meta", "nav", "ol", "pad", "person", "pre",
    "script", "span", "strong", "sub", "sup", "svg", "table", "td", "title", "tr", "ul", "unk",
    "unknown",
))
"""Names in angle brackets that are no learnt tokens, beside single letters and "h1"."""
PLACES = frozenset((
    "all", "call", "caption", "dict", "doc", "file", "future", "init", "main", "name",
    "placeholder", "prompt", "pycache", "repr", "str", "template", "text", "title", "user",
    "variable",
))
"""Names in braces or underscores that stand for text in programs."""
# fmt: on

EMOJI = "\U0001f1e6-\U0001faff"
PLAIN_EMOJI = "\u2600-\u2604\u2728\u2764\u2b50"  # of the characters that also are symbols


class Found(NamedTuple):
    """A piece of another tool's syntax."""

    kind: str
    """What it asks for there: a name of `RULES`."""
    text: str
    """As it was typed."""
    word: str
    """The words, the name, or the file that it is about."""
    figure: float = 1.0
    """A weight."""


_Read = tuple[str, str, float]


class _Rule(NamedTuple):
    kind: str
    pattern: re.Pattern[str]
    weak: bool
    """Whether it counts only where another mark is in the text."""
    read: Callable[[re.Match[str]], _Read | None]
    """The text that stays, what it is about, and a weight; None where it is natural text."""


def find_syntax(text: str, learnt: Collection[str] = ()) -> tuple[list[Found], str]:
    """Find other tools' syntax in a text: the pieces, and the text without their marks.

    Args:
        learnt: learnt tokens that the model has, in lower case; what is one of them is a word.
    """
    found: list[Found] = []
    text = " ".join(text.split())
    if len(text) > LONGEST:
        return [], text
    for rule in sorted(RULES, key=lambda rule: rule.weak):
        if rule.weak and not any(each.kind != "emoji" for each in found):
            break

        def replaced(match: re.Match[str], rule: _Rule = rule) -> str:
            read = rule.read(match)
            if read is None or match[0].casefold() in learnt:
                return match[0]
            found.append(Found(rule.kind, match[0].strip(), read[1].strip(), read[2]))
            return read[0]

        before = None
        while before != text:  # marks may stand within marks
            before, text = text, rule.pattern.sub(replaced, text)
    return found, " ".join(text.split())


# --- reading --------------------------------------------------------------------------------------


def _named(match: re.Match[str]) -> _Read:
    return "", match[0], 1.0


def _all(match: re.Match[str]) -> _Read | None:
    return None if match["all"] in PLACES else ("", match["all"], 1.0)


def _token(match: re.Match[str]) -> _Read | None:
    """<my-flower>; <br>, <PERSON>, <Enter>"""
    name = match["name"]
    is_key = name.isalpha() and name.istitle()
    plain = name.casefold() in TAGS or re.fullmatch(r"(?i)[a-z]|h[1-6]", name)
    return None if plain or name.isupper() or is_key else _named(match)


def _file(match: re.Match[str]) -> _Read:
    return "", match["name"], float(match["weight"] or 1)


def _marked(match: re.Match[str]) -> _Read | None:
    """((x)), (x:1.3), [[x]], {x}: as many marks as there are on both sides."""
    depth = min(len(match["open"]), len(match["close"]))
    mark = {"(": PARENTHESIS, "[": BRACKET, "{": BRACE}[match["open"][0]]
    inner, figure = match["inner"], match["figure"]
    if figure is None:
        marked = depth > 1 or (mark == BRACE and " " not in inner)
        is_place = mark == BRACE and (
            inner in PLACES or inner.count(" ") > 1 or not re.search(r"[^\W\d_]{2}", inner)
        )
        return (inner, inner, mark**depth) if marked and not is_place else None
    letters = sum(character.isalpha() for character in inner)
    spaced = match["space"] and "." not in figure  # "(figure: 3)"
    most = WEIGHED_AT_MOST if "." in figure else WHOLE_AT_MOST
    if letters < 2 or inner[-1].isdigit() or spaced or abs(float(figure)) > most:
        return None  # a ratio, a time, a verse, an aperture
    if re.search(r":|,\s*\d", inner) or inner.casefold().split()[-1] in MEASURES:
        return None
    return inner, inner, float(figure) * mark ** (depth - 1)


def _single(match: re.Match[str]) -> _Read | None:
    """a (red) flower; (red), (large)"""
    inner = match["inner"]
    hedged = inner.casefold() in HEDGES or inner.endswith("ly") or inner.isupper()
    if hedged or inner.isdigit() or len(inner) < 3:
        return None
    return inner, inner, PARENTHESIS if match[0][0] == "(" else BRACKET


def _signed(match: re.Match[str]) -> _Read | None:
    word, sign = match["inner"] or match["word"], match["sign"]
    if word.casefold() == "notepad" or (match["word"] and word[0].isupper()):
        return None
    return word, word, SIGN[sign[0]] ** len(sign)


def _figured(match: re.Match[str]) -> _Read:
    return match["inner"], match["inner"], float(match["figure"])


def _later(match: re.Match[str]) -> _Read | None:
    """[from:to:0.5], [to:0.5]"""
    old, new = match["old"] or "", match["new"]
    if not any(character.isalpha() for character in old + new) or new.strip()[-1:].isdigit():
        return None
    return new, new, 1.0


def _first(match: re.Match[str]) -> _Read:
    choices = [choice.strip() for choice in match["all"].split("|")]
    return choices[0], ", ".join(choices), 1.0


def _joined(match: re.Match[str]) -> _Read | None:
    """AND and BREAK; not within capitals ("STOP AND GO"), or at an end."""
    before, after = match.string[: match.start()].split(), match.string[match.end() :].split()
    around = [*before[-1:], *after[:1]]
    if len(around) < 2 or any(word.isupper() and len(word) > 1 for word in around):
        return None
    return "and" if match[0] == "AND" else ",", match[0], 1.0


def _emoji(match: re.Match[str]) -> _Read:
    """By its Unicode name, which for the older symbols is none that a person would say."""
    names = [unicodedata.name(each, "") for each in match[0] if each >= "\U0001f300"]
    names = [name for name in names if "MODIFIER" not in name]
    return " ", " ".join(names).casefold(), 1.0


def _rules(
    *rules: tuple[str, str, Callable[[re.Match[str]], _Read | None]], weak: bool = False
) -> tuple[_Rule, ...]:
    return tuple(_Rule(kind, re.compile(pattern), weak, read) for kind, pattern, read in rules)


_WORD = r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*"
_INNER = r"(?P<inner>[^()\[\]{}|]*?[^()\[\]{}|:\s])"
_FIGURE = rf"(?::(?P<space>\s*)(?P<figure>{NUMBER}))?\s*"
_IN_A_SENTENCE = r"\s+(?:a|an|the|and|but|or|with|in|on|of|at|from|by)\b"
_OPTIONS = (
    "ar|aspect|chaos|cref|cw|iw|niji|q|quality|raw|repeat|seed|sref|stop|style|stylize|tile|v|"
    "version|weird"
)

RULES = _rules(
    ("lora", rf"(?i)<(?:lora|lyco):(?P<name>[^<>:]+)(?::(?P<weight>{NUMBER}))?[^<>]*>", _file),
    ("hypernet", r"(?i)<hypernet:[^<>]+>", _named),
    ("embedding", r"\bembedding:(?P<all>[\w./-]*\w)", _all),
    ("token", r"<(?P<name>[^\W\d][\w-]*)>", _token),
    ("negative", r"(?is)\bnegative prompt:.*", _named),
    ("negative", r"(?<!\S)--no\s+[^,.]+?(?=\s*(?:$|[,.]|\s--))", _named),
    ("option", rf"(?<!\S)--(?:{_OPTIONS})\b(?:\s+(?:[\w.:/]*\d[\w.:/]*|raw)(?!\S))?", _named),
    ("join", r"(?<=[,.]) BREAK\b,?(?!\S)", _joined),
    ("join", r"(?<=\))\.(?:and|blend)\([^()]*\)|\.swap\([^()]*\)", _named),
    ("weight", rf"(?<![\w:])(?P<figure>{NUMBER})::(?P<inner>[^:]+)::", _figured),
    ("join", r"(?<=\w)::(?=\s|$)", _named),
    ("wildcard", r"(?<!\w)__(?P<all>\w(?:[\w/*-]*[^\W_])?)__(?!\w|\.\w)", _all),
    ("choice", r"[\[{](?P<all>[^\[\]{}|]*(?:\|[^\[\]{}|]*)+)[\]}]", _first),
    ("steps", rf"\[(?P<old>[^\[\]:]*):(?P<new>[^\[\]:]*):\s*{NUMBER}\]", _later),
    ("steps", r"\[(?P<old>)(?P<new>[^\[\]:]+):\s*0?\.\d+\]", _later),
    ("escape", r"\\(?P<all>[()\[\]])", lambda match: (match["all"], match["all"], 1.0)),
    (
        "weight",
        rf"(?:(?<![\w'-])(?=\w{{3}})(?P<word>{_WORD})|\((?P<inner>[^()]+)\))"
        rf"(?P<sign>\+{{2,}}(?![\w+-]|{_IN_A_SENTENCE})|-{{2,}}(?=\s*(?:$|,)))",
        _signed,
    ),
    ("weight", r"\((?P<inner>[^()]+)\)(?P<figure>\d*\.\d+)(?!\w)", _figured),
    ("weight", rf"(?<!\()(?P<open>\(+)\s*{_INNER}\s*{_FIGURE}(?P<close>\)+)", _marked),
    ("weight", rf"(?<!\[)(?P<open>\[+)\s*{_INNER}\s*{_FIGURE}(?P<close>\]+)", _marked),
    ("weight", rf"(?<!\{{)(?P<open>\{{+)\s*{_INNER}\s*{_FIGURE}(?P<close>\}}+)", _marked),
    (
        "weight",
        rf"(?i)(?:(?<=\ba )|(?<=\ban )|(?<=\bthe ))\[(?P<inner>{_WORD})\](?=\s+\w)",
        _single,
    ),
    ("weight", rf"(?<![\w'\u2019-])(?P<inner>{_WORD})::(?P<figure>{NUMBER})(?!\w)", _figured),
    ("emoji", rf"(?:[{EMOJI}{PLAIN_EMOJI}]|\S\ufe0f)[{EMOJI}\ufe0f\u200d\u20e3]*", _emoji),
) + _rules(
    ("join", r"(?<!\S)(?:BREAK|AND)(?!\S)", _joined),
    (
        "weight",
        rf"(?i)(?:(?<=\ba )|(?<=\ban )|(?<=\bthe ))\((?P<inner>{_WORD})\)(?=\s+\w)",
        _single,
    ),
    (
        "weight",
        r"(?P<after>(?<=\), ))?\((?P<inner>[^()]+)\)(?(after)|(?=, \())",  # (red), (large)
        _single,
    ),
    weak=True,
)
"""Read in this order, each on what those before it have left."""
