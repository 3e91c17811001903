r"""The answer in a response, by the usual marks; the mathematics is in the verifier.

A mark is ``\boxed{..}`` (also ``\fbox{..}`` and ``\boxed 5``), ``#### ..`` or ``Answer: ..``, and
the last one counts. "The answer is .." counts if there is none of these. Without any mark the last
line counts: a bare answer, or a last sentence that names one value.
"""

import re
from collections.abc import Sequence

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")


_BRACE = re.compile(r"\\.|[{}]", re.S)  # \{ is a character, not a group


_TOKEN = re.compile(r"[^\s$]{0,256}")  # after \boxed without braces; longer text is no answer


_JOINED = re.compile(r"[ \t$,;]{0,9}(?:\\text\{ ?(?:or|and) ?\}|or|and)?[ \t$,;]{0,9}")


_MODULUS = re.compile(r"[\s$]{0,9}\\p?mod\s{0,9}(?:\{([^{}]{1,99})\}|(\d))")


_ENDS_IN_MODULUS = re.compile(_MODULUS.pattern + r"\s*\Z")


_SET = re.compile(r"\\\{(.*)\\\}", re.S)


# \banswer, written so that a search can look for the first letter
_ANSWER = r"[aA](?<!\w[aA])(?i:nswer)"


_LINE = (
    re.compile(r"^[ \t]*####(?!#)[ \t]*", re.M),
    re.compile(_ANSWER + r"\s{0,3}(?:\*\*)?\s{0,3}:\s*"),
)


_STATED = (re.compile(_ANSWER + r"\s{1,3}(?i:is)\b\s{0,3}:?"),)


_SENTENCE_END = re.compile(r"(?<=\S)\.(?=\s+[A-Z]|\s*$)")


_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")


_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[!,;:]|\\?\$|\\(?= )")


_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d|,\d)")


_BRACKET = re.compile(r"([(\[]|\\\{)|[)\]]|\\\}")


# signs among these count outside brackets only
_BETWEEN = re.compile(r"[,;]|\b(?:or|and|vs|versus|maybe|perhaps)\b|\\(?:lor|vee)(?![a-zA-Z])")


_NUMBER_IN_TEXT = re.compile(_TEXT.pattern.replace("[^{}]*", r"[^{}\d]*\d[^{}]*"))


_VALUE = re.compile(r"\d|[\\$]|^\W*\w\W*$")


def boxes(text: str) -> list[tuple[int, int, str]]:
    """Return (start, end, content) of each closed, non-empty box.

    Braces may be nested; of two nested boxes the inner one counts.
    """
    closed: list[tuple[int, int, str]] = []
    matches = list(_BOX.finditer(text))
    closing = _closing(text, matches[0].start()) if matches else {}
    for match in matches:
        start = match.end()
        if text[start : start + 1] == "{":
            end = closing.get(start, start)
            content = text[start + 1 : end - 1]
        else:
            token = _TOKEN.match(text, start)
            content, end = (token[0], token.end()) if token else ("", start)
        content = content.strip().rstrip(".,;")
        if content:
            inside = closed and match.start() < closed[-1][1]
            closed[-1 if inside else len(closed) :] = [(match.start(), end, content)]
    return closed


def _closing(text: str, start: int) -> dict[int, int]:
    """Map the position of each closed brace from `start` on to the position after its partner."""
    opened: list[int] = []
    ends: dict[int, int] = {}
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            ends[opened.pop()] = match.end()
    return ends


def last_box(text: str) -> str:
    """Return the content of the last box; empty without a box."""
    all_boxes = boxes(text)
    return all_boxes[-1][2] if all_boxes else ""


def boxed(content: str) -> str:
    return f"\\boxed{{{content}}}"


def marked(text: str) -> str | None:
    """Return the answer at the last mark: ``\\boxed{content}``, else the rest of the line.

    Boxes with only "or", "and" or a comma between them are one answer, a list. A modulus directly
    after a box becomes a part of it.
    """
    all_boxes = boxes(text)
    if line := _last(_LINE, text, all_boxes[-1][0] if all_boxes else 0):
        return _stated(line) or line
    if not all_boxes:
        return _stated(text)
    run = [all_boxes[-1]]
    for box in reversed(all_boxes[:-1]):
        if not _JOINED.fullmatch(text[_end(text, box) : run[0][0]]):
            break
        run.insert(0, box)
    modulus = _MODULUS.match(text, run[-1][1])
    listed = ", ".join(dict.fromkeys(content for _, _, content in run))
    return boxed(listed + modulus[0].strip("$ \t\n") if modulus else listed)


def _end(text: str, box: tuple[int, int, str]) -> int:
    """Return the end of a box with the modulus after it."""
    modulus = _MODULUS.match(text, box[1])
    return modulus.end() if modulus else box[1]


def _stated(text: str) -> str | None:
    return _last(_STATED, text) or None


def _last(marks: Sequence[re.Pattern[str]], text: str, start: int = 0) -> str:
    """Return the text after the last mark from `start` on that has text after it."""
    answer = ""
    for mark in marks:
        for match in reversed(list(mark.finditer(text, start))):
            if line := _rest(text, match.end()):
                start, answer = match.end(), line
                break
    return answer


def _rest(text: str, start: int) -> str:
    """Return the sentence from `start` to the end of its line.

    Return an empty text for a heading, that is, words after #### with more text below.
    """
    line, _, below = text[start:].partition("\n")
    if below.strip() and text[:start].rstrip().endswith("####") and not _VALUE.search(line):
        return ""
    return _SENTENCE_END.split(line)[0].strip(" \t*_")


def extract(response: str) -> str:
    """Return the answer of a response: at its last mark, else its last line.

    Return an empty text if the last line is cut off in a box.
    """
    if answer := marked(response):
        return answer
    last = (response.strip().splitlines() or [""])[-1]
    return "" if _BOX.search(last) else _SENTENCE_END.sub("", last).strip()


def gold(text: str) -> str | None:
    """Return the final answer of a worked solution, boxed or after ####; None without one."""
    answer = marked(text) if boxes(text) or "####" in text else None
    return answer and content(answer)


def content(answer: str) -> str:
    """Return the content of the box if the complete answer is one box, else the answer."""
    all_boxes = boxes(answer)
    boxed_only = all_boxes and all_boxes[-1][:2] == (0, len(answer))
    return all_boxes[-1][2] if boxed_only else answer


def of_one_modulus(answer: str, gold: str) -> tuple[str, str]:
    """Return both without a final modulus, which is optional; two moduli must be equal."""
    (residue, modulus), (right, other) = _residue(content(answer)), _residue(content(gold))
    if modulus and other and modulus != other:
        return answer, gold
    return (boxed(residue) if content(answer) != answer else residue), right


def _residue(text: str) -> tuple[str, str]:
    """Return (text, final modulus); the modulus is empty if there is none."""
    match = _ENDS_IN_MODULUS.search(text)
    return (text[: match.start()], (match[1] or match[2]).strip()) if match else (text, "")


def canonical(answer: str) -> str:
    """Return the answer without its box, spacing, sizes and thousands separators.

    Equal texts are equal answers, whatever they mean. 10{,}000 and 10,\\!000 become 10000.
    """
    text = re.sub(r"\\[dt]frac", r"\\frac", _unwrapped(answer))
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text).rstrip(".")


def _unwrapped(answer: str) -> str:
    text = _SPACING.sub("", _TEXT.sub(r"\1", content(answer)))
    return without_separators(text).strip()


def without_separators(text: str) -> str:
    """Return the text with 1,000 and 1{,}000 as 1000, except in brackets.

    There commas separate the members of a tuple, an interval or a set.
    """
    opened = sorted((x.start(), 1 if x[1] else -1) for x in _BRACKET.finditer(text))

    def joined(match: re.Match[str]) -> str:
        inside = sum(step for place, step in opened if place < match.start()) > 0
        return match[0] if inside else re.sub(r"[,{}]", "", match[0])

    return _GROUPED.sub(joined, text)


def apart(numbers: str) -> str:
    """Return a list with a space after each comma: 100,200 are two numbers in a list."""
    return re.sub(r"(?<=\d),(?=\d)", ", ", numbers)


def with_numbers(answer: str) -> str:
    """Replace each LaTeX text that has a number by its content; LaTeX parsers ignore text."""
    return _NUMBER_IN_TEXT.sub(r"\1", answer)


def several(answer: str) -> bool:
    """Return whether the answer names several values: a list, or a hedge as "either 3 or 5"."""
    return len(values(answer)) > 1


def values(answer: str) -> list[str]:
    """Return the values that the answer names.

    Commas in brackets belong to a tuple, an interval or a set, which is one value. Outside a box
    words are no values, so that "so, it is 5" names one value.
    """
    in_box, depth, parts = content(answer) != answer, 0, [""]
    text = _unwrapped(answer)
    ends = {x.start(): x.end() for x in _BETWEEN.finditer(text)}
    i = 0
    while i < len(text):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if i in ends and (depth <= 0 or text[i] not in ",;"):
            parts.append("")
            i = ends[i]
            continue
        parts[-1] += text[i]
        i += 1
    return [x for x in map(str.strip, parts) if (x if in_box else _VALUE.search(x))]


def in_order(gold: str) -> str | None:
    """Return a list or a set as the tuple of its values; None if the gold is neither."""
    inside = _SET.fullmatch(gold.strip())
    members = values(boxed(apart(inside[1]) if inside else gold))
    return f"({', '.join(members)})" if len(members) > 1 else None


def is_prose(answer: str) -> bool:
    """Return whether the answer has words or a label such as "A:" outside LaTeX."""
    return bool(re.search(r"[A-Za-z]{2,}|:\s", re.sub(r"\\[A-Za-z]+", "", _TEXT.sub("", answer))))
