"""Does a malformed body ever bring the server down, hang it, or make it keep memory?

    python -m benchmarks.server_fuzz [--bodies 100000] [--seed 0]

A real `finpercep serve` process with the packaged ladder gets valid requests that have been damaged: safetensors, PNG, JPEG,
WebP, TIFF, GIF and BMP as raw bodies, JSON with base64, multipart. Damage is a few bytes changed (often in the header), cut out,
repeated or put in, two bodies joined, or the content type of another. Counted are the statuses; a 5xx, no answer within ten
seconds and a lost connection are faults; 503 with Retry-After is a refusal. Pictures over 64 kilopixels are not admitted: what
damage turns into a large picture would be scored, slowly, and that is no fault. In the end the server must give a good picture
the score it gave it at first. Memory is the process's, after a warm-up and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from benchmarks.report import print_table, write_result
from finpercep.cli.server_process import ServerProcess
from finpercep.reward import RewardWeights
from finpercep.wire import TENSOR_MEDIA_TYPE, ScoreRequest, encode_request

Body = tuple[str, bytes]
"""Content type and bytes."""

SIDE, CONNECTIONS, PATIENCE, MAX_PIXELS = 32, 16, 10.0, 65536
BOUNDARY = "fuzz"


def seeds(rng: np.random.Generator) -> dict[str, Body]:
    """One valid request of every kind."""
    picture = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    encoded = {}
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        encoded[kind] = buffer.getvalue()
    found = {kind: (f"image/{kind.lower()}", data) for kind, data in encoded.items()}
    text = json.dumps({"image": [base64.b64encode(encoded["PNG"]).decode()]}).encode()
    found["JSON"] = ("application/json", text)
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    multipart = head.encode() + encoded["PNG"] + f"\r\n--{BOUNDARY}--\r\n".encode()
    found["multipart"] = (f"multipart/form-data; boundary={BOUNDARY}", multipart)
    tensors = ScoreRequest(images=torch.rand(2, 3, SIDE, SIDE), rung=None, weights=RewardWeights(), grad=False, map=False)
    found["safetensors"] = (TENSOR_MEDIA_TYPE, encode_request(tensors))
    return found


def change(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A few bytes set to anything, to 0 or to 255; half of the time near the front, where the headers are."""
    reach = len(data) if rng.uniform() < 0.5 else min(len(data), 64)
    for _ in range(int(rng.integers(1, 8))):
        data[int(rng.integers(reach))] = int(rng.choice([0, 255, int(rng.integers(256))]))
    return data


def cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    """The end missing, or a piece from the middle."""
    a, b = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
    return data[:a] if rng.uniform() < 0.5 else data[:a] + data[b:]


def repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A piece twice, or up to fifty times."""
    a, b = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
    return data[:b] + data[a:b] * int(rng.integers(1, 50)) + data[b:]


def fill(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Random bytes put in."""
    a = int(rng.integers(0, len(data) + 1))
    return data[:a] + bytearray(rng.bytes(int(rng.integers(1, 64)))) + data[a:]


DAMAGES: tuple[Callable[[bytearray, np.random.Generator], bytearray], ...] = (change, change, cut, repeat, fill)


def malformed(valid: dict[str, Body], rng: np.random.Generator) -> tuple[str, Body]:
    """A damaged request and the name of its kind; one in twenty comes under another kind's content type."""
    kind = str(rng.choice(list(valid)))
    content_type, body = valid[kind]
    data = bytearray(body)
    if rng.uniform() < 0.1:
        data += valid[str(rng.choice(list(valid)))][1]
    for _ in range(int(rng.integers(1, 4))):
        if data:
            data = DAMAGES[int(rng.integers(len(DAMAGES)))](data, rng)
    if rng.uniform() < 0.05:
        content_type = valid[str(rng.choice(list(valid)))][0]
    return kind, (content_type, bytes(data))


async def bombard(url: str, bodies: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Statuses by kind, and the faults, each with what reproduces it."""
    valid = seeds(np.random.default_rng(seed))
    statuses: dict[str, Counter[str]] = {kind: Counter() for kind in valid}
    faults: list[str] = []
    numbers = iter(range(bodies))

    async def work(client: httpx.AsyncClient) -> None:
        for number in numbers:
            kind, (content_type, body) = malformed(valid, np.random.default_rng((seed, number)))
            try:
                answer = await client.post("/score", content=body, headers={"content-type": content_type})
            except httpx.HTTPError as error:
                faults.append(f"body {number} ({kind}): {type(error).__name__}")
                continue
            statuses[kind][str(answer.status_code)] += 1
            if answer.status_code >= 500 and not (answer.status_code == 503 and "retry-after" in answer.headers):
                faults.append(f"body {number} ({kind}): {answer.status_code} {answer.text[:200]}")

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        await asyncio.gather(*(work(client) for _ in range(CONNECTIONS)))
    return statuses, faults


def resident(pid: int) -> int:
    """MiB of memory a process holds (Linux)."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    content_type, good = seeds(np.random.default_rng(arguments.seed))["PNG"]

    def score(url: str) -> float:
        answer = httpx.post(f"{url}/score", content=good, headers={"content-type": content_type}, timeout=60)
        return float(answer.raise_for_status().json()["items"][0]["score"])

    os.environ["FINPERCEP_MAX_PIXELS"] = str(MAX_PIXELS)
    with ServerProcess() as server:
        first = score(server.url)
        warmed, _ = asyncio.run(bombard(server.url, min(2000, arguments.bodies), arguments.seed + 1))
        before, started = resident(server.pid), time.perf_counter()
        statuses, faults = asyncio.run(bombard(server.url, arguments.bodies, arguments.seed))
        seconds, after, last = time.perf_counter() - started, resident(server.pid), score(server.url)
    seen = sorted({status for counts in statuses.values() for status in counts})
    print_table(["kind", *seen], [[kind, *(counts[status] for status in seen)] for kind, counts in statuses.items()])
    print(f"{arguments.bodies} bodies in {seconds:.0f} s, {len(faults)} faults; memory {before} → {after} MiB")
    print(f"score of a good picture: {first} → {last}")
    print("\n".join(faults[:20]))
    result = {
        "bodies": arguments.bodies,
        "seed": arguments.seed,
        "seconds": seconds,
        "statuses": statuses,
        "faults": faults[:100],
    }
    print(write_result("server_fuzz", {**result, "rss_mib": [before, after], "same_score": first == last, "warm_up": warmed}))
    sys.exit(bool(faults) or first != last)


if __name__ == "__main__":
    main()
