"""Problems that training shares with the evaluation, by their texts."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

SIZE = 8  # words of an n-gram


SHARE = 0.5  # of the n-grams, from which on two problems are nearly the same


_IGNORED = re.compile(r"[\s$\\{}.,;:!?'\"`]+")


_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> tuple[str, ...]:
    """The words and signs of a text without case, spacing, punctuation and LaTeX's own marks."""
    plain = _IGNORED.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return tuple(_WORD.findall(plain))


def ngrams(text: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {text[i : i + SIZE] for i in range(len(text) - SIZE + 1)}


def contaminated(training: Sequence[str], evaluation: Sequence[str]) -> tuple[set[int], set[int]]:
    """The training problems that are, word for word, in the evaluation, and those nearly so.

    Nearly: of the n-grams of the shorter of the two problems the other one has half or more. Texts
    of fewer than `SIZE` words are compared whole only.
    """
    known = [words(text) for text in evaluation]
    whole, holders = set(known), defaultdict[tuple[str, ...], list[int]](list)
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
        if text in whole:
            equal.add(i)
        elif any(n >= SHARE * min(len(parts), sizes[j]) for j, n in shared.items()):
            near.add(i)
    return equal, near
