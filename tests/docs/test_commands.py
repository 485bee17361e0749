"""Commands that the documentation tells people to type: they exist, and so do their options."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from finpercep.cli import app
from tests.docs.pages import PROGRAM, ROOT, Block, blocks_of, finpercep_commands, name_of, pages, shell_lines, typed_lines

PAGES = pages()
CHECKED = {"finpercep", "curl", "make", "python"}
"""Programs whose lines are run, or held against what there is, by a test of this folder."""

NOT_CHECKED = {
    "pip": "downloads",
    "hf": "downloads",
    "ssh": "needs another machine",
    "docker": "needs a container engine",
    "kubectl": "needs a cluster",
    "helm": "needs a cluster",
    "ray": "needs a cluster",
    "serve": "needs a cluster",
    "sbatch": "needs a cluster",
    "jupyter": "waits for a person",
    "tensorboard": "waits for a person",
    "jq": "another project's program",
    "source": "is the shell's own",
    "cd": "is the shell's own",
}
"""Programs whose lines no test looks at, and why."""

FOREIGN_OPTIONS = {"--read-only", "--tmpfs"}
"""Of docker."""

MOST_NOT_CHECKED = 12
"""Lines of these. Raising it is a decision."""

RUN = ("score", "doctor")
"""Commands that are quick enough to be run as the pages write them; the others have tests of their own."""

command_line = typer.main.get_command(app)


def fault_of(words: list[str]) -> str | None:
    """Why the command line would refuse these words, or None. A required option may be missing: texts abbreviate."""
    if words[0].startswith("-"):
        names = {option for parameter in command_line.params for option in parameter.opts} | {"--help"}
        return None if words[0] in names else f"no such option {words[0]}"
    commands = command_line.commands
    if words[0] not in commands:
        return f"no such command {words[0]}"
    command = commands[words[0]]
    known = {option: parameter for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help": None, "--debug": None}
    rest = iter(words[1:])
    for word in rest:
        if word.startswith("-") and len(word) > 1:
            name, _, value = word.partition("=")
            if name not in known:
                return f"{words[0]} has no option {name}"
            parameter = known[name]
            if parameter is not None and not getattr(parameter, "is_flag", False) and not value and next(rest, None) is None:
                return None  # the name alone, in a sentence
        elif not any(parameter.param_type_name == "argument" for parameter in command.params):
            return f"{words[0]} takes no argument, got {word!r}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_finpercep_command_is_one(page):
    faults = [
        f"{name_of(page)}:{number}: {words}: {fault}" for number, words in finpercep_commands(page) if (fault := fault_of(words))
    ]
    assert not faults, "\n".join(faults)


def test_there_are_commands_and_wrong_ones_are_found():
    found = [(name_of(page), words) for page in PAGES for _, words in finpercep_commands(page)]
    assert len(found) > 60
    assert {words[0] for _, words in found} >= {
        "score",
        "serve",
        "finetune",
        "doctor",
        "synth",
        "eval-rm",
        "--install-completion",
    }
    assert ("README.md", ["score", "photo.png", "--map", "heat.png"]) in found
    assert fault_of(["scores", "a.png"]) and fault_of(["score", "--mapp", "x"]) and fault_of(["serve", "photo.png"])
    assert fault_of(["score", "a.png", "--map"]) is None


def test_every_option_in_prose_is_an_option_of_some_command():
    known = {
        option for command in command_line.commands.values() for one in command.params for option in one.opts + one.secondary_opts
    }
    known |= {option for one in command_line.params for option in one.opts} | {"--help", "--debug"} | FOREIGN_OPTIONS
    sources = "\n".join(path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
    known |= set(re.findall(r"--[a-z0-9-]+", sources))
    known |= set(re.findall(r"--[a-z-]+", (ROOT / "Makefile").read_text()))
    for page in PAGES:
        for number, line in typed_lines(page):
            if line.startswith(("--", "finpercep")):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", line):
                    assert option in known, f"{name_of(page)}:{number}: no command has {option}"


def test_benchmarks_and_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    seen = set()
    for page in PAGES:
        for number, line in typed_lines(page):
            place = f"{name_of(page)}:{number}"
            for module in re.findall(r"python -m (benchmarks\.[\w.]+)", line):
                file = ROOT / Path(*module.split("."))
                assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), f"{place}: {module}"
                if file.with_suffix(".py").is_file():
                    source = file.with_suffix(".py").read_text()
                    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", line.split(module)[1]):
                        assert option in source, f"{place}: {module} has no {option}"
                seen.add(module)
            for target in re.findall(r"^make ([a-z]+)", line):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{place}: make {target}"
                seen.add(target)
    assert {"docs", "demo", "benchmarks.rm_speed"} <= seen


def program_of(line: str) -> str | None:
    """What a line of shell starts; None for a formula, a picture of a tree, or options alone."""
    line = re.sub(r"^(?:[A-Z_]+=(?:\$\([^)]*\)|\S+) )+", "", line)
    if re.match(PROGRAM, line):
        return "finpercep"
    word = line.split()[0].removeprefix(".venv/bin/")
    return word if re.fullmatch(r"[a-z][a-z0-9_-]*", word) and not re.search(r"[=·→λ]\s|\s[·→×≤]", line) else None


def is_notation(block: Block) -> bool:
    return block.language in ("", "text") and not any(
        program_of(line) in CHECKED | NOT_CHECKED.keys() for line in shell_lines(block)
    )


def test_every_line_of_shell_is_checked_or_has_a_reason():
    left_out = Counter()
    for block in (block for page in PAGES for block in blocks_of(page) if block.is_shell):
        if is_notation(block):
            assert re.search(r"[=→]\s|^--", block.text, re.MULTILINE), f"{block.page}:{block.line}: neither shell nor a formula"
            continue
        for line in shell_lines(block):
            program = program_of(line)
            assert program in CHECKED | NOT_CHECKED.keys(), f"{block.page}:{block.line}: nobody checks {line!r}"
            left_out[program] += program in NOT_CHECKED
    assert left_out.total() <= MOST_NOT_CHECKED, left_out


def test_programs_are_told_from_formulas():
    assert (
        program_of("FINPERCEP_TOKEN=$(cat token.txt) finpercep serve") == program_of(".venv/bin/finpercep doctor") == "finpercep"
    )
    assert program_of("OMP_NUM_THREADS=2 python -m benchmarks.rm_speed") == "python" and program_of("pip install x==1") == "pip"
    assert program_of("syn = m·sr + (1 − m)·gt") is None and program_of("frobnicate photo.png") == "frobnicate"
    assert not is_notation(Block("page", 1, "", "finpercep score a.png\nsyn = 1\n", fenced=False))


def test_quick_commands_do_what_the_pages_say(place, server):
    """Run one after the other, in a folder where there is what they speak of."""
    done = 0
    (place / "sr.png").write_bytes((place / "photo.png").read_bytes())
    for page in PAGES:
        for number, words in finpercep_commands(page):
            if words[0] in RUN and len(words) > 1:
                here = [re.sub(r"^(?:http://[\w.-]+:8000|URL)$", server.url, word) for word in words]
                here = [path for word in here for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
                result = CliRunner().invoke(app, here, env={"COLUMNS": "200"})
                assert result.exit_code == 0, f"{name_of(page)}:{number}: {words}: {result.output[-800:]}"
                done += 1
    assert done > 8
    assert (place / "maps" / "0.map.png").exists() and (place / "heat.png").exists()


def test_the_token_of_two_machines_is_a_good_one(place):
    (line,) = [line for page in PAGES for _, line in typed_lines(page) if line.startswith("python -c")]
    command = line.replace("python", f"'{sys.executable}'", 1)
    subprocess.run(["sh", "-c", command], check=True, timeout=60)
    assert len((place / "token.txt").read_text().strip()) >= 24
