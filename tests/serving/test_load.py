"""Many clients at once; some leave, some send rubbish, some load adapters: nothing is lost, crossed or kept."""

import asyncio
import gc
import json
import logging
import random
from collections import Counter

import httpx

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip

from mlx_lora.serving.limits import Limits
from tests.serving.house import BASE, TOKENS, House, Running, served

REQUESTS = 500
AT_ONCE = 24
RUBBISH = [
    b"",
    b"{",
    b"[]" * 9,
    b"\xff" * 40,
    b"[" * 5000,
    b'{"model": "red"}',
    b'{"model": 5, "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "red", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1e9}',
    b'{"model": "red", "messages": [{"role": "user", "content": "x"}], "tools": [1]}',
]


class Crowd:
    """The requests of one run, each with what became of it."""

    def __init__(self, house: House, server: Running) -> None:
        self.house = house
        self.address = server.address
        self.outcomes: Counter[str] = Counter()

    async def run(self, first: int, count: int) -> None:
        self.places = asyncio.Semaphore(AT_ONCE)
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with httpx.AsyncClient(base_url=self.address, limits=limits, timeout=60) as client:
            await asyncio.gather(*[self.one(client, number) for number in range(first, first + count)])

    async def one(self, client: httpx.AsyncClient, number: int) -> None:
        choose = random.Random(number)
        kinds = [self.plain, self.streamed, self.leaving, self.rubbish, self.moving]
        async with self.places:
            [kind] = choose.choices(kinds, weights=[40, 30, 15, 10, 5])
            self.outcomes[await kind(client, choose, number)] += 1

    def body(self, number: int, **fields) -> tuple[str, dict, str]:
        name, question, wanted = self.house.ask(number)
        messages = [{"role": "user", "content": question}]
        return name, {"model": name, "messages": messages, "max_tokens": TOKENS, **fields}, wanted

    async def plain(self, client: httpx.AsyncClient, choose: random.Random, number: int) -> str:
        n = choose.choice([1, 1, 1, 2])
        name, body, wanted = self.body(number, n=n)
        answer = await client.post("/v1/chat/completions", json=body)
        if answer.status_code == 404:
            assert name == "blue", answer.text  # the only one that comes and goes
            return "not there"
        assert answer.status_code == 200, answer.text
        assert [choice["message"]["content"] for choice in answer.json()["choices"]] == [wanted] * n, name
        return "right"

    async def streamed(self, client: httpx.AsyncClient, choose: random.Random, number: int) -> str:
        name, body, wanted = self.body(number, stream=True)
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
        if answer.status_code == 404:
            assert name == "blue"
            return "not there"
        assert lines[-1] == "data: [DONE]"
        events = [json.loads(line[6:]) for line in lines[:-1]]
        assert not [event for event in events if "error" in event]
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == wanted, name
        return "right"

    async def leaving(self, client: httpx.AsyncClient, choose: random.Random, number: int) -> str:
        _, body, _ = self.body(number, stream=choose.random() < 0.5, max_tokens=300)
        try:
            async with (
                asyncio.timeout(choose.random() * 0.2),
                client.stream("POST", "/v1/chat/completions", json=body) as answer,
            ):
                async for _ in answer.aiter_lines():
                    if choose.random() < 0.3:
                        break
        except TimeoutError:
            return "left"
        return "left"

    async def rubbish(self, client: httpx.AsyncClient, choose: random.Random, number: int) -> str:
        path = choose.choice(["/v1/chat/completions", "/v1/completions", "/v1/adapters"])
        headers = {"content-type": "application/json"}
        answer = await client.post(path, content=choose.choice(RUBBISH), headers=headers)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
        return "refused"

    async def moving(self, client: httpx.AsyncClient, choose: random.Random, number: int) -> str:
        if choose.random() < 0.5:
            answer = await client.post("/v1/adapters", json={"name": "blue"})
            assert answer.status_code in (200, 409), answer.text
        else:
            answer = await client.delete("/v1/adapters/blue")
            assert answer.status_code in (200, 404), answer.text
        return "moved"


def test_five_hundred_requests_of_all_kinds_lose_nothing_cross_nothing_and_leave_nothing(house: House, caplog):
    caplog.set_level(logging.WARNING)
    with served(house, limits=Limits(rows=8, waiting=200, cache_bytes=1 << 20)) as server:
        crowd = Crowd(house, server)

        def memory() -> int:
            gc.collect()
            return mx.get_active_memory()

        asyncio.run(crowd.run(0, REQUESTS // 2))
        half = memory()
        asyncio.run(crowd.run(REQUESTS // 2, REQUESTS // 2))
        after = memory()
        assert sum(crowd.outcomes.values()) == REQUESTS
        assert crowd.outcomes["right"] > REQUESTS // 2
        assert min(crowd.outcomes[kind] for kind in ("left", "refused", "moved")) > 10
        assert server.metrics.value("rows") == server.metrics.value("waiting") == 0
        assert server.metrics.value("cache_bytes") <= 1 << 20
        assert after - half < 1 << 20, "memory grows with the requests"
        # Whatever happened, everybody still answers as alone.
        for place in range(8):
            name, question, wanted = house.ask(place)
            if name != "blue":
                body = {"model": name, "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS}
                answer = httpx.post(f"{server.address}/v1/chat/completions", json=body).json()
                assert answer["choices"][0]["message"]["content"] == wanted
        assert BASE in server.residents.speakers
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
