"""The pages of the project, README.md in the root and in each package, as tests read them.

python -m tests.pages

writes the key table of configs/README.md anew from the schema.
"""

import re
from pathlib import Path

from trainers.config.values import described

ROOT = Path(__file__).resolve().parents[1]

FOLDERS = ["surgery", "eval", "trainers", "configs", "launch", "tests"]
PAGES = [ROOT / "CONTRIBUTING.md", *(ROOT / x / "README.md" for x in ["", *FOLDERS])]
KEYS = ROOT / "configs" / "README.md", "<!-- keys -->\n", "<!-- end of keys -->"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
LINK = re.compile(r'\]\(([^)\s]+)\)|<img src="([^"]+)"')
DESCRIBED = re.compile(r"(\S+) = (.*?) \((.*?)\): (.*)")  # a line of `described`


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a language; that of text without one is empty."""
    return [code for name, code in BLOCK.findall(page.read_text()) if name == language]


def files_shown() -> dict[str, str]:
    """Return the files that the README shows in full, by the name in their first line."""
    shown = [x for kind in ("python", "yaml") for x in blocks(ROOT / "README.md", kind)]
    return {x.split()[1]: x for x in shown if x.startswith("# ")}


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return BLOCK.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Return the targets of all links and pictures."""
    return [link or picture for link, picture in LINK.findall(prose(page))]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in titles}


def section(page: Path, title: str) -> str:
    """Return the text from a heading to the next one of its level or above."""
    text = page.read_text()
    start = text.index(f"\n{title}\n")
    level = title.partition(" ")[0]
    end = re.search(rf"^#{{1,{len(level)}}} ", text[start + len(title) :], re.M)
    return text[start:][: len(title) + end.start()] if end else text[start:]


def key_table() -> str:
    """Return every key with default, values and meaning, one table for each section."""
    lines, last = [], ""
    for key, default, values, meaning in DESCRIBED.findall(described()):
        name = key.partition(".")[0] if "." in key else "the run"
        if name != last:
            lines += ["", f"**{name}**", "", "| key | default | values | meaning |"]
            lines += ["|---|---|---|---|"]
        meaning = re.sub("<(?=[a-z])", r"\\<", meaning)  # <seed> would be a tag, which is not shown
        cells = [f"`{key}`", f"`{default}`", values, meaning]
        lines.append(f"| {' | '.join(x.replace('|', chr(92) + '|') for x in cells)} |")
        last = name
    return "\n".join([*lines, "", ""])


def main() -> None:
    page, start, end = KEYS
    before, _, rest = page.read_text().partition(start)
    page.write_text(f"{before}{start}{key_table()}{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
