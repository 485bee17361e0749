"""The documentation as the tests see it: pages, their blocks of code, and the commands they tell people to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

ADDRESS = "http://127.0.0.1:8000"
"""What the pages write; the tests' server listens elsewhere."""

NOT_RUN = re.compile(r"\A# not run by the tests: (\S.+)")
"""First line of a block that cannot run here; readers see the reason too."""

PROGRAM = re.compile(r"(?:\.venv/bin/)?finpercep(?![\w/.])|(?:\S+=\S+ )*(?:accelerate launch|torchrun) .*?-m finpercep\b")


@dataclass(frozen=True)
class Block:
    """A block of code, fenced or indented."""

    page: str
    line: int
    language: str
    text: str
    fenced: bool = True

    @property
    def is_shell(self) -> bool:
        """Whether people type it; blocks without a language are that, or formulas."""
        return self.language in ("", "text", "bash", "sh")

    @property
    def reason_not_to_run(self) -> str | None:
        match = NOT_RUN.match(self.text)
        return match[1] if match else None


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md and every page under docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> Iterator[Block]:
    """Fenced blocks (with their language) and blocks indented by four spaces."""
    fence, language, begun, text = "", "", 0, []
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate([*lines, ""], start=1):
        opening = re.match(r"^(```+)(\w*)", line)
        if fence:
            if line.startswith(fence):
                yield Block(name_of(page), begun, language, "\n".join(text) + "\n")
                fence, text = "", []
            else:
                text.append(line)
        elif opening:
            if text:
                yield _indented(page, begun, text)
            fence, language, begun, text = opening[1], opening[2], number, []
        elif line.startswith("    ") and (text or not lines[number - 2].strip() or number == 1):
            begun = begun if text else number
            text.append(line[4:])
        elif text and line.strip():
            yield _indented(page, begun, text)
            text = []
        elif text:
            text.append("")
    if text and any(text):
        yield _indented(page, begun, text)


def _indented(page: Path, line: int, text: list[str]) -> Block:
    return Block(name_of(page), line, "", "\n".join(text).strip("\n") + "\n", fenced=False)


def python_blocks(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.language == "python"]


def shell_lines(block: Block) -> list[str]:
    """Lines of a block that is typed, continued ones joined, comments taken off."""
    joined = block.text.replace("\\\n", " ")
    lines = (re.sub(r"(?:^|\s+)#\s.*", "", line.strip()) for line in joined.splitlines())
    return [line for line in lines if line]


def typed_lines(page: Path) -> Iterator[tuple[int, str]]:
    """Lines of shell blocks and commands in backticks, with their line numbers; comments taken off."""
    for block in blocks_of(page):
        if block.is_shell:
            for line in shell_lines(block):
                yield block.line, line
    prose = page.read_text(encoding="utf-8")
    for match in re.finditer(r"(?<!`)`([^`\n]+)`(?!`)", prose):
        yield prose[: match.start()].count("\n") + 1, match[1]


def finpercep_commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Arguments of every `finpercep …`; what only stands for more (…, $(…)) is left out."""
    for number, line in typed_lines(page):
        match = re.search(rf"^(?:[A-Z_]+=\S+(?: [^ ]+\))? )*(?:{PROGRAM.pattern}) (.+)$", line)
        if not match:
            continue
        command = re.split(r"\s(?:\||>|&&|;)\s?", match[1])[0].split(", then:")[0]
        words = [word for word in shlex.split(command) if word not in ("…", "&")]
        if words and re.fullmatch(r"-{0,2}[a-z][a-z-]*", words[0]):
            yield number, words
