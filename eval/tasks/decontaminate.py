"""Problems that training shares with the evaluation, by their texts."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

SIZE = 8  # words of an n-gram
SHARE = 0.5  # two problems with this share of common n-grams or more are nearly equal

_IGNORED = re.compile(r"[\s$\\{}.,;:!?'\"`]+")
_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> tuple[str, ...]:
    """Return the words and signs of a text without case, spacing, punctuation and LaTeX marks."""
    plain = _IGNORED.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return tuple(_WORD.findall(plain))


def ngrams(text: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {text[i : i + SIZE] for i in range(len(text) - SIZE + 1)}


def contaminated(training: Sequence[str], evaluation: Sequence[str]) -> tuple[set[int], set[int]]:
    """Return the training problems that equal, or nearly equal, an evaluation problem.

    Equal means word for word. Nearly equal means that the longer problem has half or more of the
    n-grams of the shorter one. Texts of fewer than `SIZE` words can only be equal.
    """
    known = [words(text) for text in evaluation]
    texts, holders = set(known), defaultdict[tuple[str, ...], list[int]](list)
    sizes = []
    for i, text in enumerate(known):
        parts = ngrams(text)
        sizes.append(len(parts))
        for part in parts:
            holders[part].append(i)
    equal, near = set[int](), set[int]()
    for i, text in enumerate(map(words, training)):
        parts = ngrams(text)
        shared = Counter(j for part in parts for j in holders.get(part, ()))
        if text in texts:
            equal.add(i)
        elif any(n >= SHARE * min(len(parts), sizes[j]) for j, n in shared.items()):
            near.add(i)
    return equal, near
