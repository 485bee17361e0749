"""A reward server as a process of its own, for as long as a ``with`` block lasts: for the demo and for tests."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx

from finpercep.errors import RewardUnavailable

READY = re.compile(r"^finpercep: serving .* on (http://\S+)$")
COMMAND = (sys.executable, "-m", "finpercep", "serve")
STOP_SECONDS = 10.0


class ServerProcess:
    """Starts ``finpercep serve`` on a free loopback port, waits until it answers, and stops it at the end.

    Args:
        model_folder: the ladder to serve; the packaged one when None.
        start_timeout: seconds it may take to be ready.
        command: what is started, before ``--host``, ``--port`` and ``--model``.
        port: 0 picks a free one.

    Attributes:
        url: its address, once entered.
    """

    def __init__(
        self, model_folder: Path | None = None, *, start_timeout: float = 120.0, command: Sequence[str] = COMMAND, port: int = 0
    ) -> None:
        self.command = [*command, "--host", "127.0.0.1", "--port", str(port)]
        if model_folder is not None:
            self.command += ["--model", str(model_folder)]
        self.start_timeout = start_timeout
        self.url = ""
        self._process: subprocess.Popen[str] | None = None
        self._listening = threading.Event()

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            RewardUnavailable: it ended, or was not ready in time; with what it said.
        """
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        try:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log, text=True, encoding="utf-8"
            )
        except OSError as error:
            self._log.close()
            raise RewardUnavailable(f"the reward server cannot be started: {error}") from error
        try:
            self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
            self._reader.start()
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process, once entered."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._end(self._process)

    def stop(self) -> None:
        """Terminate it, and kill it if it does not end. Does nothing when it has been stopped."""
        if self._process is not None:
            self._process.terminate()
            self._end(self._process)

    def _end(self, process: subprocess.Popen[str]) -> None:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()
        assert process.stdout is not None
        process.stdout.close()
        self._log.close()
        self._process = None

    def _read(self, lines: IO[str]) -> None:
        """Find the address, then keep reading, so that a full pipe never stops the server."""
        for line in lines:
            if match := READY.match(line.strip()):
                self.url = match[1]
                self._listening.set()

    def _wait_until_ready(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RewardUnavailable(f"the reward server ended with exit code {process.returncode}: {self._last_words()}")
            if self._listening.wait(0.05) and self._answers():
                return
        raise RewardUnavailable(f"the reward server was not ready within {self.start_timeout:g} s: {self._last_words()}")

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def _last_words(self) -> str:
        """The end of its standard error, as one line."""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return " | ".join(lines[-3:]) or "it said nothing"
