"""The Dockerfile without an engine: what it copies is there, what it installs suffices, and what it starts runs as it says.

The server runs on a root it cannot write, without rights, and without any package that the image does not have.
`python -m benchmarks.container --resolve` asks the registry for what it installs.
"""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.container import DOCKERFILE, ROOT, closure, is_cuda, pip_lines, steps
from data_synth.schema.pixels import encode_png
from rm_server.settings import Settings
from tests.fakes import photo

STEPS = steps(DOCKERFILE.read_text())
HERE = Path(__file__).parent
TOKEN = "a-token-for-the-tests"


def of(instruction: str) -> list[str]:
    return [step.rest for step in STEPS if step.instruction == instruction]


def environment() -> dict[str, str]:
    """What the last stage sets."""
    return dict(word.split("=", 1) for word in shlex.split(of("ENV")[-1]))


def copied() -> list[Path]:
    """What is taken from the repository."""
    words = [rest.split() for rest in of("COPY") if not rest.startswith("--from=")]
    return [ROOT / name for line in words for name in line[:-1]]


def is_kept_away(path: Path) -> bool:
    """By .dockerignore: a path, or a pattern whose ``**/`` stands for any folders or none."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    inside = path.relative_to(ROOT)
    above = [one.parts for one in (inside, *inside.parents)]

    def matches(parts: tuple[str, ...], pattern: str) -> bool:
        anywhere = pattern.removeprefix("**/")
        return fnmatch.fnmatchcase("/".join(parts[-1:] if anywhere != pattern else parts), anywhere)

    return any(matches(parts, pattern) for parts in above for pattern in patterns)


@pytest.mark.parametrize("path", copied(), ids=lambda path: path.name)
def test_what_is_copied_is_there_and_not_ignored(path):
    assert path.exists()
    assert not is_kept_away(path)
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file() and "__pycache__" not in one.parts]
    assert files and not any(is_kept_away(one) for one in files)
    if (ROOT / ".git").exists():
        listed = "\n".join(str(one) for one in files)
        ignored = subprocess.run(["git", "check-ignore", "--stdin"], input=listed, cwd=ROOT, capture_output=True, text=True)
        assert (ignored.returncode, ignored.stdout) == (1, "")  # 1: none is


def test_tests_and_caches_do_not_go_into_the_build():
    assert is_kept_away(ROOT / "tests" / "conftest.py") and is_kept_away(ROOT / ".git" / "config")
    assert is_kept_away(ROOT / "finpercep" / "rl" / "__pycache__" / "world.pyc") and not is_kept_away(ROOT / "finpercep" / "cli")


def test_every_pip_line_is_constrained():
    first, second = pip_lines(STEPS, {})
    assert first == ["--constraint", "constraints.txt", "torch", "torchvision"]
    assert second == ["--constraint", "constraints.txt", ".[server]"]
    other, with_ray = pip_lines(STEPS, {"TORCH_INDEX": "https://wheels.example/cpu", "EXTRAS": "server,cluster"})
    assert other[:2] == ["--index-url", "https://wheels.example/cpu"] and with_ray[-1] == ".[server,cluster]"


@pytest.mark.parametrize("extras", [["server"], ["server", "cluster"]], ids=",".join)
def test_every_distribution_has_one_version(extras):
    """… in constraints.txt, but for CUDA's libraries, which torch pins; and it is the version that is tested."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            pins[canonicalize_name(pin.name)] = pin.specifier
    for name, one in closure(extras).items():
        if name != "finpercep" and not is_cuda(name):
            assert name in pins and one.version in pins[name], f"{name} {one.version}"


def test_it_is_nobody_and_its_settings_exist():
    user = of("USER")[-1]
    assert user.isdecimal() and int(user) > 0 and f"--uid {user} " in of("RUN")[-1]
    names = {name.removeprefix("FINPERCEP_").lower() for name in environment() if name.startswith("FINPERCEP_")}
    assert {"host", "port", "model_root"} == names <= set(Settings.model_fields)
    assert of("EXPOSE") == [environment()["FINPERCEP_PORT"]]
    assert set(of("VOLUME")) == {environment()["FINPERCEP_MODEL_ROOT"]}


def test_it_does_not_start_without_a_token():
    """The container listens on all addresses."""
    started = {**os.environ, **{name: value for name, value in environment().items() if name.startswith("FINPERCEP_")}}
    started.pop("FINPERCEP_TOKEN", None)
    words = [*ast.literal_eval(of("ENTRYPOINT")[0]), *ast.literal_eval(of("CMD")[0])]
    done = subprocess.run([sys.executable, "-m", *words], env=started, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "FINPERCEP_TOKEN" in done.stderr


def health() -> list[str]:
    words = json.loads(of("HEALTHCHECK")[0].split("CMD", 1)[1])
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


@contextlib.contextmanager
def jailed(*words: str, **variables: str):
    """A finpercep command as the container runs it, with what ``.[server]`` brings."""
    can = shutil.which("unshare") and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    if not can:
        pytest.skip("mount namespaces are not to be had here")
    allowed = ",".join(closure(["server"]))
    full = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment(), **variables}
    full["PATH"] = os.environ["PATH"]
    command = [
        "unshare",
        "--mount",
        "bash",
        str(HERE / "read_only.sh"),
        sys.executable,
        str(HERE / "only_these.py"),
        allowed,
        *words,
    ]
    process = subprocess.Popen(command, env=full, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_jail_is_one():
    """Otherwise the next test would show nothing."""
    script = "for at in . $HOME/.. /etc; do touch $at/x 2>/dev/null && echo wrote $at; done; touch /tmp/x && echo wrote /tmp"
    with jailed() as process:
        process.kill()
    done = subprocess.run(
        ["unshare", "--mount", "bash", str(HERE / "read_only.sh"), "bash", "-c", script],
        env={"PATH": os.environ["PATH"], "HOME": "/tmp"}, cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "wrote /tmp\n", done.stderr


@pytest.mark.slow
def test_the_server_runs_healthy_where_only_tmp_can_be_written():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    variables = {"FINPERCEP_TOKEN": TOKEN, "FINPERCEP_PORT": port, "OMP_NUM_THREADS": "1"}
    variables["FINPERCEP_MODEL_ROOT"] = "/tmp"  # the image makes /models, which this machine lacks
    check = {"env": {"PATH": os.environ["PATH"], "FINPERCEP_PORT": port}, "capture_output": True, "timeout": 60}
    assert subprocess.run(health(), **check).returncode == 1  # nobody there
    with jailed(*ast.literal_eval(of("CMD")[0]), **variables) as process:
        until = time.monotonic() + 240
        while subprocess.run(health(), **check).returncode:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.5)
        files = {"image": encode_png(photo(1100, 1100))}  # more than a megabyte: it lies in a file while it comes
        assert len(files["image"]) > 1024 * 1024
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(f"http://127.0.0.1:{port}/score", files=files, headers=headers, timeout=120, trust_env=False)
        assert answer.status_code == 200, answer.text
        assert 0 <= answer.json()["items"][0]["score"] <= 1
        assert (
            httpx.get(f"http://127.0.0.1:{port}/", timeout=60, trust_env=False).status_code == 200
        )  # the page's files are there
        process.send_signal(getattr(signal, of("STOPSIGNAL")[0]))
        assert process.wait(60) in (0, -signal.SIGTERM)  # uvicorn ends, and then by the signal itself


@pytest.mark.parametrize("extras", [["server", "cluster"]], ids=",".join)
def test_the_image_for_ray_has_what_the_cluster_imports(extras):
    command = [sys.executable, "-W", "ignore", str(HERE / "only_these.py"), ",".join(closure(extras))]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    without = subprocess.run(
        [*command[:-1], ",".join(closure(["server"]))],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert without.returncode == 1 and "No module named 'ray'" in without.stderr  # the finder does refuse
