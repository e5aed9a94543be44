"""`mlx-lora serve` as a process: what it says, how it ends, what it refuses at once."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from mlx_lora.commands.serve import run_serve
from mlx_lora.errors import MlxLoraError
from tests.serving.house import BASE, House, build_house


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return build_house(tmp_path_factory.mktemp("house"), "llama_untied", questions=2)


def test_it_says_where_it_is_and_ends_when_running_answers_are_finished(house: House):
    command = [sys.executable, "-m", "mlx_lora", "serve", str(house.adapters / "red"), "--model", str(house.base)]
    command += ["--port", "0", "--adapters", str(house.adapters), "--cache-mib", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if "serving at" in line:
                break
        assert said[0].startswith(f"{BASE}: ")
        assert said[1] == "  red: rank 4, 28/28 modules active\n"
        address = re.search(r"serving at (http://127\.0\.0\.1:\d+)/v1", said[-1]).group(1)
        question, wanted = next(iter(house.answers["red"].items()))
        body = {"model": "red", "messages": [{"role": "user", "content": question}], "max_tokens": 300, "stream": True}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            events = [next(lines)]
            process.send_signal(signal.SIGTERM)
            events += [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        chunks = [json.loads(line[6:]) for line in events if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text.startswith(wanted)
        assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert rest == ""
    log = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert [(line["status"], line["model"]) for line in log] == [(200, "red")]
    assert "Traceback" not in errors
    assert errors.endswith("ended\n")


def serve(adapters, **changed):
    options = {"model": None, "revision": None, "folder": None, "host": "127.0.0.1", "port": 0, "key_file": None}
    options |= {"rows": 2, "waiting": 2, "cache_mib": 1, "log_prompts": False}
    return run_serve(adapters, **(options | changed))


def test_what_cannot_be_served_is_said_before_the_door_opens(house: House, tmp_path: Path):
    with pytest.raises(MlxLoraError, match="none of that name under adapters/"):
        serve([Path("nobody")])
    with pytest.raises(MlxLoraError, match="no such folder"):
        serve([], folder=tmp_path / "none")
    with pytest.raises(MlxLoraError, match="is called red too"):
        serve([house.adapters / "red", house.adapters / "red"])
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(MlxLoraError, match="in use"):
        serve([], model=str(house.base), port=taken.getsockname()[1])
    with pytest.raises(MlxLoraError, match="no-base"):
        serve([], model=str(tmp_path / "no-base"))
