"""Launch configurations and SLURM scripts: read by accelerate, run by bash with stand-ins for the cluster's commands."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from data_synth.schema.pixels import encode_png
from finpercep.cli import app
from finpercep.errors import ConfigError
from finpercep.training.metrics_log import read_metrics
from finpercep.training.processes import require_whole_models
from finpercep.training.provenance import read_sessions
from tests.fakes import photo

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"

STAND_INS = {
    # Runs what it is given once, as the first task; writes down its own options.
    "srun": """
import itertools
options = list(itertools.takewhile(lambda word: word.startswith("--"), sys.argv[1:]))
rest = sys.argv[1 + len(options):]
os.environ.update(SLURM_NODEID="0", SLURM_PROCID="0")
note(options)
os.execvp(rest[0], rest)
""",
    "scontrol": """
assert sys.argv[1:3] == ["show", "hostnames"]
print("\\n".join(os.environ["SLURM_JOB_NODELIST"].split(",")))
""",
    "accelerate": """
note(sys.argv[1:])
""",
    "hostname": """
print("the-node")
""",
    # Serves /readyz until it is ended, as the real one would; anything else ends at once.
    "finpercep": """
note(sys.argv[1:], token=os.environ.get("FINPERCEP_TOKEN"))
if sys.argv[1] == "serve":
    import http.server
    port = int(sys.argv[sys.argv.index("--port") + 1])
    http.server.HTTPServer(("127.0.0.1", port), type("H", (http.server.BaseHTTPRequestHandler,), {
        "do_GET": lambda self: (self.send_response(200), self.end_headers()), "log_message": lambda *_: None,
    })).serve_forever()
""",
}

NOTE = """#!{python}
import json, os, sys
def note(words, **more):
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps({{"command": "{name}", "words": words, **more}}) + "\\n")
{code}
"""


def run(script: str, folder: Path, environment: dict[str, str], *arguments: str, seconds: float = 60) -> list[dict]:
    """Run a batch script with stand-ins; what each was called with, in order."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, code in STAND_INS.items():
        path = commands / name
        path.write_text(NOTE.format(python=sys.executable, name=name, code=code))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (commands / "python").unlink(missing_ok=True)
    (commands / "python").symlink_to(sys.executable)
    record = folder / "record.jsonl"
    record.write_text("")
    slurm = {"SLURM_JOB_NODELIST": "127.0.0.1,node-1,node-2", "SLURM_NNODES": "3", "FINPERCEP_DEPLOY": str(DEPLOY)}
    full = {"PATH": f"{commands}:/usr/bin:/bin", "HOME": str(folder), "RECORD": str(record), **slurm, **environment}
    command = ["bash", str(DEPLOY / "slurm" / script), *arguments]
    with subprocess.Popen(
        command, env=full, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as script_process:
        try:
            _, said = script_process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(script_process.pid, signal.SIGTERM)  # as SLURM ends a job: all of its processes
            script_process.communicate()
            raise
    if script_process.returncode:
        raise RuntimeError(said)
    return [json.loads(line) for line in record.read_text().splitlines()]


def parsed(words: list[str]) -> dict:
    """A finpercep command line as the real command line reads it. Raises what it raises."""
    import typer

    group = typer.main.get_command(app)
    command = group.commands[words[0]]
    return command.make_context(words[0], list(words[1:])).params


def launched(words: list[str]):
    """An ``accelerate launch`` line as accelerate reads it: its own arguments, and the command that it starts."""
    assert words[0] == "launch"
    arguments = launch_command_parser().parse_args(words[1:])
    assert arguments.module and arguments.training_script == "finpercep"
    return arguments, parsed(arguments.training_script_args)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "token").write_text("a-token-of-sixteen\n")
    for name in ("data", "ladder"):
        (tmp_path / name).mkdir()
    return {
        "DATA": str(tmp_path / "data"),
        "MODEL": str(tmp_path / "ladder"),
        "OUT": str(tmp_path / "out"),
        "TOKEN_FILE": str(tmp_path / "token"),
        "PORT": str(free_port()),
    }


@pytest.mark.parametrize("path", sorted((DEPLOY / "accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    assert config.num_processes > 1 and config.use_cpu == (path.name == "cpu.yaml")
    assert config.distributed_type.value == "MULTI_GPU"  # of any other type accelerate would start one process


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_start_and_fine_tune_together(tmp_path):
    """The whole of it: accelerate, two processes of the command line, one run."""
    (tmp_path / "photos").mkdir()
    for seed in range(2):
        (tmp_path / "photos" / f"{seed}.png").write_bytes(encode_png(photo(96, 96, seed)))
    words = ["--config_file", str(DEPLOY / "accelerate" / "cpu.yaml"), "--main_process_port", str(free_port()), "-m", "finpercep"]
    words += ["finetune", "--reward", "packaged", "--algorithm", "rfsr", "--data", str(tmp_path / "photos")]
    words += ["--out", str(tmp_path / "run"), "--steps", "3", "--batch-size", "2", "--crop", "64", "--snapshot-every", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "accelerate.commands.launch", *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr
    assert [session.processes for session in read_sessions(tmp_path / "run")] == [2]
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    assert (tmp_path / "run" / "final").is_dir()


def test_a_launcher_that_would_split_the_model_is_refused():
    require_whole_models(DistributedType.MULTI_GPU)
    with pytest.raises(ConfigError, match=r"hold the whole model, got FSDP; launch with deploy/accelerate/ddp\.yaml"):
        require_whole_models(DistributedType.FSDP)


@pytest.mark.parametrize("path", sorted((DEPLOY / "slurm").glob("*.sbatch")), ids=lambda path: path.name)
def test_scripts_are_bash_and_say_what_they_need(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    directives = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes", "--gpus-per-node", "--cpus-per-task", "--time"} <= {one.split("=")[0] for one in directives}
    if path.name != "serve.sbatch":
        assert "--requeue" in directives  # they resume


@pytest.mark.parametrize(
    ("script", "missing"), [("train_rm.sbatch", "DATA"), ("finetune.sbatch", "OUT"), ("serve.sbatch", "MODEL")]
)
def test_what_is_not_set_is_named(script, missing, settings, tmp_path):
    del settings[missing]
    with pytest.raises(RuntimeError, match=f"{missing}: set {missing} to"):
        run(script, tmp_path, settings)


def test_train_rm_starts_a_process_for_every_gpu_of_every_node(settings, tmp_path):
    srun, accelerate = run("train_rm.sbatch", tmp_path, {**settings, "GPUS_PER_NODE": "8"})
    assert "--kill-on-bad-exit=1" in srun["words"]
    arguments, command = launched(accelerate["words"])
    assert (arguments.num_machines, arguments.num_processes, arguments.machine_rank) == (3, 24, 0)
    assert (arguments.main_process_ip, arguments.rdzv_backend, arguments.max_restarts) == ("127.0.0.1", "c10d", 3)
    assert load_config_from_file(arguments.config_file)
    assert str(command["data"]) == settings["DATA"] and str(command["out"]) == settings["OUT"]
    assert command["config"].is_file() and command["save_every"] == 200


def test_finetune_serves_on_one_node_and_trains_on_the_others(settings, tmp_path):
    calls = run("finetune.sbatch", tmp_path, settings, "--algorithm", "draft", "--set", "reward_weight=0.2", "--steps", "50")
    sruns = [call["words"] for call in calls if call["command"] == "srun"]
    (served,) = [call for call in calls if call["command"] == "finpercep"]
    (accelerate,) = [call for call in calls if call["command"] == "accelerate"]
    assert "--nodelist=127.0.0.1" in sruns[0] and "--exclude=127.0.0.1" in sruns[1] and "--nodes=2" in sruns[1]
    server = parsed(served["words"])
    assert (server["device"], server["host"], server["port"]) == ("cuda:0,cuda:1,cuda:2,cuda:3", "0.0.0.0", int(settings["PORT"]))
    arguments, command = launched(accelerate["words"])
    assert (arguments.num_machines, arguments.num_processes, arguments.main_process_ip) == (2, 8, "node-1")
    assert command["reward"] == [f"http://127.0.0.1:{settings['PORT']}"]
    assert (command["algorithm"], command["settings"], command["steps"]) == ("draft", ["reward_weight=0.2"], 50)
    assert command["token_file"].read_text().strip() == served["token"] and len(served["token"]) == 48
    assert stat.S_IMODE(command["token_file"].stat().st_mode) == 0o600


def test_serve_writes_its_address_when_it_is_ready_and_takes_it_away_at_the_end(settings, tmp_path):
    address, seen = tmp_path / "address", []
    watching = threading.Thread(target=lambda: seen.append(wait_for(address)))
    watching.start()
    with pytest.raises(subprocess.TimeoutExpired):
        run("serve.sbatch", tmp_path, {**settings, "ADDRESS_FILE": str(address)}, seconds=20)
    watching.join()
    (served,) = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert served["token"] == "a-token-of-sixteen" and parsed(served["words"])["model"] == Path(settings["MODEL"])
    assert seen == [f"http://the-node:{settings['PORT']}\n"] and not address.exists()


def wait_for(path: Path, seconds: float = 20) -> str:
    """What a file says once it is there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    return ""
