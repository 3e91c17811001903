r"""What a response gives as its answer, by the marks that people use. No mathematics here: that is
the verifier's.

A mark is ``\boxed{..}`` (also ``\fbox{..}`` and ``\boxed 5``), ``#### ..`` or ``Answer: ..``, and
the last one counts. "The answer is .." counts where there is none of these, and without any mark
the last line does: a bare answer is read, and so is a last sentence that names one value.
"""

import re
from collections.abc import Sequence

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")


_BRACE = re.compile(r"\\.|[{}]", re.S)  # \{ is a character, no group


_TOKEN = re.compile(r"[^\s$]{0,256}")  # what follows \boxed without braces; longer is no answer


_JOINED = re.compile(r"[ \t$,;]{0,9}(?:\\text\{ ?(?:or|and) ?\}|or|and)?[ \t$,;]{0,9}")


_MODULUS = re.compile(r"[\s$]{0,9}\\p?mod\s{0,9}(?:\{([^{}]{1,99})\}|(\d))")


_ENDS_IN_MODULUS = re.compile(_MODULUS.pattern + r"\s*\Z")


_SET = re.compile(r"\\\{(.*)\\\}", re.S)


# \banswer, whose first letter a search can run to
_ANSWER = r"[aA](?<!\w[aA])(?i:nswer)"


_LINE = (
    re.compile(r"^[ \t]*####(?!#)[ \t]*", re.M),
    re.compile(_ANSWER + r"\s{0,3}(?:\*\*)?\s{0,3}:\s*"),
)


_SAID = (re.compile(_ANSWER + r"\s{1,3}(?i:is)\b\s{0,3}:?"),)


_SENTENCE_END = re.compile(r"(?<=\S)\.(?=\s+[A-Z]|\s*$)")


_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")


_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[!,;:]|\\?\$|\\(?= )")


_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d|,\d)")


_BRACKET = re.compile(r"([(\[]|\\\{)|[)\]]|\\\}")


# of these, signs not in brackets
_BETWEEN = re.compile(r"[,;]|\b(?:or|and|vs|versus|maybe|perhaps)\b|\\(?:lor|vee)(?![a-zA-Z])")


_NUMBER_IN_TEXT = re.compile(_TEXT.pattern.replace("[^{}]*", r"[^{}\d]*\d[^{}]*"))


_VALUE = re.compile(r"\d|[\\$]|^\W*\w\W*$")


def boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of each box that is closed and not empty, braces nested; of a box in a
    box the inner one.
    """
    found: list[tuple[int, int, str]] = []
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
            around = found and match.start() < found[-1][1]
            found[-1 if around else len(found) :] = [(match.start(), end, content)]
    return found


def _closing(text: str, start: int) -> dict[int, int]:
    """For the place of each brace from `start` on that is closed, the place after the brace that
    closes it.
    """
    opened: list[int] = []
    found: dict[int, int] = {}
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            found[opened.pop()] = match.end()
    return found


def last_box(text: str) -> str:
    """What is in the last box; empty where there is none."""
    found = boxes(text)
    return found[-1][2] if found else ""


def boxed(content: str) -> str:
    return f"\\boxed{{{content}}}"


def marked(text: str) -> str | None:
    """The answer at the last mark: ``\\boxed{content}`` for a box, else the rest of its line.

    Boxes that only "or", "and" or a comma joins are one answer, a list. A modulus right behind a
    box is taken into it.
    """
    found = boxes(text)
    if line := _last(_LINE, text, found[-1][0] if found else 0):
        return _said(line) or line
    if not found:
        return _said(text)
    run = [found[-1]]
    for box in reversed(found[:-1]):
        if not _JOINED.fullmatch(text[_end(text, box) : run[0][0]]):
            break
        run.insert(0, box)
    modulus = _MODULUS.match(text, run[-1][1])
    listed = ", ".join(dict.fromkeys(content for _, _, content in run))
    return boxed(listed + modulus[0].strip("$ \t\n") if modulus else listed)


def _end(text: str, box: tuple[int, int, str]) -> int:
    """Where a box ends, with the modulus behind it."""
    modulus = _MODULUS.match(text, box[1])
    return modulus.end() if modulus else box[1]


def _said(text: str) -> str | None:
    return _last(_SAID, text) or None


def _last(marks: Sequence[re.Pattern[str]], text: str, start: int = 0) -> str:
    """What follows the last of the marks from `start` on that is followed by something."""
    found = ""
    for mark in marks:
        for match in reversed(list(mark.finditer(text, start))):
            if line := _rest(text, match.end()):
                start, found = match.end(), line
                break
    return found


def _rest(text: str, start: int) -> str:
    """The sentence from `start` to the end of its line. Words alone above more text are a heading:
    empty.
    """
    line, _, below = text[start:].partition("\n")
    if below.strip() and text[:start].rstrip().endswith("####") and not _VALUE.search(line):
        return ""
    return _SENTENCE_END.split(line)[0].strip(" \t*_")


def extract(response: str) -> str:
    """The answer of a response: at its last mark, else its last line; empty where that is cut off
    in a box.
    """
    if answer := marked(response):
        return answer
    last = (response.strip().splitlines() or [""])[-1]
    return "" if _BOX.search(last) else _SENTENCE_END.sub("", last).strip()


def gold(text: str) -> str | None:
    """The answer that a worked solution ends with, boxed or after ####; None where it has none."""
    answer = marked(text) if boxes(text) or "####" in text else None
    return answer and content(answer)


def content(answer: str) -> str:
    """What is in the box, where the whole answer is one."""
    found = boxes(answer)
    return found[-1][2] if found and found[-1][:2] == (0, len(answer)) else answer


def of_one_modulus(answer: str, gold: str) -> tuple[str, str]:
    """Both without the modulus at their ends. It need not be said, but two are not to differ."""
    (residue, modulus), (right, other) = _residue(content(answer)), _residue(content(gold))
    if modulus and other and modulus != other:
        return answer, gold
    return (boxed(residue) if content(answer) != answer else residue), right


def _residue(text: str) -> tuple[str, str]:
    """(text, modulus), which is empty where none ends it."""
    found = _ENDS_IN_MODULUS.search(text)
    return (text[: found.start()], (found[1] or found[2]).strip()) if found else (text, "")


def canonical(answer: str) -> str:
    """The answer without its box, spacing, sizes and thousands separators: equal texts are
    equal answers, whatever they mean. 10{,}000 and 10,\\!000 are 10000.
    """
    text = re.sub(r"\\[dt]frac", r"\\frac", _unwrapped(answer))
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text).rstrip(".")


def _unwrapped(answer: str) -> str:
    text = _SPACING.sub("", _TEXT.sub(r"\1", content(answer)))
    return without_separators(text).strip()


def without_separators(text: str) -> str:
    """1,000 and 1{,}000 as 1000; not in brackets, where commas part the members of a tuple, an
    interval or a set.
    """
    opened = sorted((x.start(), 1 if x[1] else -1) for x in _BRACKET.finditer(text))

    def joined(match: re.Match[str]) -> str:
        inside = sum(step for place, step in opened if place < match.start()) > 0
        return match[0] if inside else re.sub(r"[,{}]", "", match[0])

    return _GROUPED.sub(joined, text)


def apart(numbers: str) -> str:
    """Of a list: 100,200 are two numbers in it."""
    return re.sub(r"(?<=\d),(?=\d)", ", ", numbers)


def with_numbers(answer: str) -> str:
    """Text with a number in it as what it holds: readers of LaTeX leave out text, as a unit."""
    return _NUMBER_IN_TEXT.sub(r"\1", answer)


def several(answer: str) -> bool:
    """Whether it names more than one value: a list, or a hedge such as "either 3 or 5"."""
    return len(values(answer)) > 1


def values(answer: str) -> list[str]:
    """The values that it names.

    Commas in brackets are those of a tuple, an interval or a set, which is one value. Outside a box
    words count as no value, so that "so, it is 5" names one.
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
    """A list, or a set, as the tuple of its values; None where the gold is neither."""
    inside = _SET.fullmatch(gold.strip())
    found = values(boxed(apart(inside[1]) if inside else gold))
    return f"({', '.join(found)})" if len(found) > 1 else None


def is_prose(answer: str) -> bool:
    """Whether words or a label such as "A:" stand in it, outside LaTeX."""
    return bool(re.search(r"[A-Za-z]{2,}|:\s", re.sub(r"\\[A-Za-z]+", "", _TEXT.sub("", answer))))
