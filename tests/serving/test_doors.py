"""Who may ask, what may be asked, and what is told: keys, hosts, bodies, names; no path and no trace comes out."""

import json
import logging
import time
from pathlib import Path

import httpx
import pytest

from mlx_lora.errors import MlxLoraError
from mlx_lora.serving.limits import Limits
from tests.serving.house import BASE, House, Running, served

KEY = "a-key-of-many-letters"


def ask(server: Running, body: object = None, *, path: str = "/v1/chat/completions", **options) -> httpx.Response:
    body = {"model": "red", "messages": [{"role": "user", "content": "Hm"}], "max_tokens": 1} if body is None else body
    return httpx.post(server.address + path, json=body, **options)


def test_without_a_key_only_requests_addressed_to_this_machine_are_answered(server: Running):
    assert ask(server).status_code == 200
    port = server.address.rpartition(":")[2]
    for host in ("localhost", f"localhost:{port}", "127.0.0.1", f"[::1]:{port}"):
        assert ask(server, headers={"host": host}).status_code == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.", ""):
        refused = ask(server, headers={"host": host})
        assert refused.status_code in (400, 403), host  # an empty one does not pass h11
    for path in ("/", "/health", "/metrics", "/v1/models"):
        assert httpx.get(server.address + path, headers={"host": "evil.example"}).status_code == 403


def test_with_a_key_nothing_but_the_page_and_the_health_is_open(house: House):
    with served(house, key=KEY, names=()) as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": "Bearer"}):
            for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("DELETE", "/v1/adapters/red")):
                refused = httpx.request(method, server.address + path, headers=headers)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
                assert refused.headers["www-authenticate"] == "Bearer"
        right = {"authorization": f"Bearer {KEY}"}
        assert httpx.get(f"{server.address}/v1/models", headers={**right, "host": "any.example"}).status_code == 200
        assert {httpx.get(server.address + path).status_code for path in ("/", "/page.js", "/page.css", "/health")} == {
            200
        }


def test_a_body_that_a_browser_may_send_anywhere_is_refused(server: Running):
    text = json.dumps({"model": "red", "messages": []})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        refused = httpx.post(f"{server.address}/v1/chat/completions", content=text, headers={"content-type": kind})
        assert refused.status_code == 415
    preflight = httpx.options(f"{server.address}/v1/chat/completions", headers={"origin": "http://evil.example"})
    assert preflight.status_code == 405
    assert not any(name.startswith("access-control") for name in preflight.headers)


def test_a_body_too_large_is_refused_by_its_length_and_by_what_comes(house: House):
    with served(house, names=(), limits=Limits(body_bytes=1000)) as server:
        headers = {"content-type": "application/json"}
        for content in (b" " * 1001, iter([b" " * 600] * 2)):
            refused = httpx.post(f"{server.address}/v1/chat/completions", content=content, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")


def test_faults_are_in_openais_format_whatever_is_asked(server: Running):
    for answer in (
        httpx.get(f"{server.address}/v1/nothing"),
        httpx.get(f"{server.address}/v1/chat/completions"),
        ask(server, []),
        ask(server, {"model": "red", "messages": [{"role": "user", "content": "x"}], "max_tokens": -1}),
        ask(server, {"model": "none", "messages": [{"role": "user", "content": "x"}]}),
        ask(server, {"model": "red", "prompt": [5, 320]}, path="/v1/completions"),
        ask(server, {"model": "red", "prompt": "x" * 600}, path="/v1/completions"),
        httpx.get(f"{server.address}/v1/models/none"),
        httpx.get(f"{server.address}/page.html"),
        httpx.get(f"{server.address}/../page.html"),
    ):
        error = answer.json()["error"]
        assert 400 <= answer.status_code < 500
        assert set(error) == {"message", "type", "param", "code"}
        assert "Traceback" not in answer.text
        assert answer.headers["x-request-id"].startswith("req-")


def test_a_wrong_method_is_told_the_right_ones(server: Running):
    """Found by reading: HTTP's 405 names the methods in Allow, which the error in OpenAI's format had lost."""
    paths = {"/v1/chat/completions": {"POST"}, "/v1/adapters": {"GET", "HEAD", "POST"}, "/v1/adapters/x": {"DELETE"}}
    for path, methods in paths.items():
        refused = httpx.put(server.address + path)
        assert refused.status_code == 405
        assert set(refused.headers["allow"].split(", ")) == methods


def test_adapters_come_and_go_by_name_and_never_by_path(house: House, tmp_path: Path):
    with served(house, names=("red",)) as server:
        address = f"{server.address}/v1/adapters"
        listed = {each["name"]: each["loaded"] for each in httpx.get(address).json()["data"]}
        assert listed == {"red": True, "blue": False, "green": False}
        for name in ("../adapters/blue", str(house.adapters / "blue"), "blue/", ".", "..", "blue\0", "none", BASE):
            refused = ask(server, {"name": name}, path="/v1/adapters")
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "adapter_not_found"), name
            assert str(house.adapters) not in refused.text
        loaded = ask(server, {"name": "blue"}, path="/v1/adapters").json()
        assert (loaded["name"], loaded["method"], loaded["rank"]) == ("blue", "dora", 2)
        assert ask(server, {"name": "blue"}, path="/v1/adapters").status_code == 409
        for question, wanted in house.answers["blue"].items():
            answer = ask(
                server, {"model": "blue", "messages": [{"role": "user", "content": question}], "max_tokens": 6}
            )
            assert answer.json()["choices"][0]["message"]["content"] == wanted
        assert httpx.delete(f"{address}/blue").json() == {"name": "blue", "object": "adapter", "deleted": True}
        assert httpx.delete(f"{address}/blue").status_code == 404
        assert httpx.delete(f"{address}/{BASE}").status_code == 400
        assert ask(server, {"model": "blue", "messages": [{"role": "user", "content": "x"}]}).status_code == 404
        assert [each["id"] for each in httpx.get(f"{server.address}/v1/models").json()["data"]] == [BASE, "red"]


def test_an_adapter_that_does_not_fit_is_refused_and_says_nothing_of_where_it_lies(house: House, tmp_path: Path):
    broken = house.adapters / "broken"
    broken.mkdir()
    try:
        (broken / "adapter_config.json").write_text("{}")
        with served(house, names=("red",)) as server:
            refused = ask(server, {"name": "broken"}, path="/v1/adapters")
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "adapter_refused")
            assert "broken" in refused.json()["error"]["message"]
            assert str(house.adapters) not in refused.text
            question, wanted = next(iter(house.answers["red"].items()))
            answer = ask(server, {"model": "red", "messages": [{"role": "user", "content": question}], "max_tokens": 6})
            assert answer.json()["choices"][0]["message"]["content"] == wanted
    finally:
        for file in broken.iterdir():
            file.unlink()
        broken.rmdir()


def test_an_adapter_that_is_unloaded_finishes_what_it_has_begun(house: House):
    question = next(iter(house.answers["red"]))
    body = {"model": "red", "messages": [{"role": "user", "content": question}], "max_tokens": 80, "stream": True}
    with served(house, names=("red", "blue")) as server:
        with httpx.stream("POST", f"{server.address}/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert httpx.delete(f"{server.address}/v1/adapters/red").status_code == 200
            assert ask(server).status_code == 404
            text = "".join(
                json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines if "{" in line
            )
        assert text.startswith(house.answers["red"][question])
        assert ask(server, {"name": "red"}, path="/v1/adapters").status_code == 200
        again = ask(server, {**body, "stream": False}).json()
        assert again["choices"][0]["message"]["content"] == text


def test_the_log_has_a_line_a_request_and_nothing_of_what_was_said(house: House, server: Running, caplog):
    logger = logging.getLogger("mlx_lora.serving.requests")
    logger.setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, "mlx_lora.serving.requests"):
        secret = "a very secret thing"
        ask(server, {"model": "red", "messages": [{"role": "user", "content": secret}], "max_tokens": 2})
        ask(server, {"model": secret, "messages": [{"role": "user", "content": secret}]})
        httpx.get(f"{server.address}/{secret}")
        deadline = time.monotonic() + 30
        while len(caplog.records) < 3 and time.monotonic() < deadline:  # a line is written when its answer has gone
            time.sleep(0.01)
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [line["status"] for line in lines] == [200, 404, 404]
    assert (lines[0]["model"], lines[0]["answer_tokens"], lines[0]["finish"]) == ("red", 2, ["length"])
    assert lines[2]["path"] == "other"
    assert secret not in json.dumps([lines[0], lines[2]])


def test_the_metrics_are_what_prometheus_reads(server: Running):
    ask(server)
    answer = httpx.get(f"{server.address}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert float(values['mlx_lora_requests_total{endpoint="/v1/chat/completions",status="200"}']) >= 1
    assert float(values['mlx_lora_answer_tokens_total{model="red"}']) >= 1
    assert float(values["mlx_lora_rows"]) == 0
    assert float(values["mlx_lora_cache_bytes"]) > 0
    assert values['mlx_lora_first_token_seconds_bucket{le="+Inf"}'] == values["mlx_lora_first_token_seconds_count"]


def test_a_server_for_others_needs_a_key(tmp_path: Path):
    from mlx_lora.commands.serve import run_serve

    options: dict = {"model": None, "revision": None, "folder": None, "port": 0, "rows": 1, "waiting": 0}
    options |= {"cache_mib": 1, "log_prompts": False}
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(MlxLoraError, match="has no key"):
            run_serve([], host=host, key_file=None, **options)
    file = tmp_path / "key"
    for content in ("", "short", "two words that are long enough", "a-key-of-many-lettérs"):
        file.write_text(content)
        with pytest.raises(MlxLoraError, match="a key is one line"):
            run_serve([], host="127.0.0.1", key_file=file, **options)
    with pytest.raises(MlxLoraError, match="No such file"):
        run_serve([], host="127.0.0.1", key_file=tmp_path / "none", **options)
