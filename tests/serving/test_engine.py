"""What the engine does when something goes wrong: nobody waits for ever, nobody gets another's answer."""

import asyncio
import logging
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from mlx_lm.models.cache import ChunkedKVCache

from mlx_lora.errors import ModelError
from mlx_lora.lora.rendering import Rendering
from mlx_lora.model.continuous import ContinuousBatch
from mlx_lora.model.load import load_base
from mlx_lora.serving import roster
from mlx_lora.serving.answer import Delta
from mlx_lora.serving.engine import Engine
from mlx_lora.serving.job import Answers, Job, Wanted
from mlx_lora.serving.limits import Limits
from mlx_lora.serving.metrics import Metrics
from mlx_lora.serving.refusals import Refusal
from tests.serving.house import House, engine_of, served


def body_of(house: House, name: str = "red", **fields) -> tuple[dict, str]:
    question, wanted = next(iter(house.answers[name].items()))
    return {"model": name, "messages": [{"role": "user", "content": question}], "max_tokens": 6, **fields}, wanted


def test_who_was_in_a_step_that_failed_is_told_and_the_next_is_answered(house: House, monkeypatch, caplog):
    step, calls = ContinuousBatch.step, []

    def fails_once(batch):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("a secret of the inside")
        return step(batch)

    with served(house, names=("red",)) as server:
        monkeypatch.setattr(ContinuousBatch, "step", fails_once)
        body, wanted = body_of(house)
        lost = httpx.post(f"{server.address}/v1/chat/completions", json=body)
        assert (lost.status_code, lost.json()["error"]["type"]) == (500, "server_error")
        assert "secret" not in lost.text
        found = httpx.post(f"{server.address}/v1/chat/completions", json=body)
        assert found.json()["choices"][0]["message"]["content"] == wanted
    assert "a secret of the inside" in caplog.text  # the log has it, with its trace


def test_a_base_whose_caches_join_no_batch_is_refused_at_the_start(house: House):
    def load():
        base = load_base(str(house.base))
        base.model.make_cache = lambda: [ChunkedKVCache(8) for _ in base.model.layers]  # as llama4 has them
        return base

    with pytest.raises(ModelError, match="cannot be served"):
        Engine(load, Limits(), Metrics()).start()


def test_when_the_engine_ends_all_who_wait_and_all_who_come_are_told(house: House, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)  # its trace is meant, here
    turn = Engine._turn
    with served(house, names=("red",)) as server:
        body, _ = body_of(house, max_tokens=300)

        def breaks(engine, batch, residents):
            if engine._rows:
                raise MemoryError
            return turn(engine, batch, residents)

        monkeypatch.setattr(Engine, "_turn", breaks)
        waiting = httpx.post(f"{server.address}/v1/chat/completions", json=body)
        assert (waiting.status_code, waiting.json()["error"]["code"]) == (503, "shutting_down")
        assert httpx.post(f"{server.address}/v1/chat/completions", json=body).status_code == 503
        assert httpx.post(f"{server.address}/v1/adapters", json={"name": "blue"}).status_code == 503
        assert httpx.get(f"{server.address}/health").status_code == 503


def test_a_request_whose_adapter_left_before_its_turn_is_not_answered_by_the_base(house: House):
    with engine_of(house, names=("red", "blue")) as (engine, residents, _):
        red = residents.speaker("red")
        engine.call(lambda: residents.unload("red")).result()
        engine.call(lambda: None).result()  # a turn later it has left memory
        assert not residents.has(red.owner)

        async def ask() -> Refusal | None:
            answers = Answers(engine.cancel)
            prompt = red.chat_prompt([{"role": "user", "content": "Who?"}])
            answers.add(Job(red, prompt, Wanted(max_tokens=4), 0, time.monotonic() + 60, answers))
            engine.submit(answers.jobs)
            try:
                await answers.next()
            except Refusal as refusal:
                return refusal
            return None

        refusal = asyncio.run(ask())
    assert refusal is not None
    assert (refusal.status, refusal.code) == (404, "model_not_found")


def test_an_adapter_whose_template_is_broken_leaves_nothing_behind(house: House, monkeypatch):
    """Found by reading: only AdapterErrors were rolled back, and the name stayed taken in the bank for good."""
    with engine_of(house, names=("blue",)) as (engine, residents, _):
        before = residents.nbytes, list(residents.speakers)
        monkeypatch.setattr(roster, "rendering_of", lambda config, folder: Rendering(chat_template="{% if %}"))
        for _ in range(2):
            with pytest.raises(ModelError, match="line 1: "):
                engine.call(lambda: residents.load("red", house.adapters / "red")).result()
        assert residents._bank.names == ("blue",)
        assert (residents.nbytes, list(residents.speakers)) == before
        monkeypatch.undo()
        assert engine.call(lambda: residents.load("red", house.adapters / "red")).result().name == "red"
        assert residents._bank.names == ("blue", "red")


def test_an_answer_that_cannot_be_begun_fails_alone(house: House, monkeypatch, caplog):
    """Found by reading: its client waited for ever, and all the answers that were running got a 500 in its place."""
    insert = ContinuousBatch.insert
    questions = list(house.answers["red"])[:3]
    with engine_of(house, names=("red",)) as (engine, residents, _):
        red = residents.speaker("red")
        prompts = [red.chat_prompt([{"role": "user", "content": question}]) for question in questions]

        def breaks(batch, prompt, *given, **named):
            if prompt == prompts[1]:
                raise RuntimeError("a secret of the inside")
            return insert(batch, prompt, *given, **named)

        monkeypatch.setattr(ContinuousBatch, "insert", breaks)

        async def finish(answers: Answers) -> str:
            text = ""
            try:
                while events := await asyncio.wait_for(answers.next(), 10):
                    text += "".join(event.text for _, event in events if isinstance(event, Delta))
            except Refusal as refusal:
                return f"{refusal.status} {refusal.code}"
            return text

        async def ask() -> list[str]:
            asked = []
            for prompt in prompts:
                answers = Answers(engine.cancel)
                answers.add(Job(red, prompt, Wanted(max_tokens=6), 0, time.monotonic() + 60, answers))
                asked.append(answers)
            engine.submit([answers.jobs[0] for answers in asked])
            return await asyncio.gather(*map(finish, asked))

        found = asyncio.run(ask())
    assert found == [house.answers["red"][questions[0]], "500 internal_error", house.answers["red"][questions[2]]]
    assert "a secret of the inside" in caplog.text  # the log has it, with its trace


def test_a_prompt_without_tokens_is_refused(house: House):
    with engine_of(house, names=()) as (_, residents, _):
        speaker = residents.speaker(residents.base_name)
        silent = replace(speaker, tokenizer=SimpleNamespace(encode=lambda text: [], bos_id=None, vocabulary_size=320))
        for prompt in ("\u200b", []):
            with pytest.raises(Refusal) as refusal:
                silent.plain_prompt(prompt)
            assert (refusal.value.status, refusal.value.param) == (400, "prompt")
            assert refusal.value.message == "The prompt has no tokens."


def test_the_batch_is_as_large_as_the_server_was_told(house: House, monkeypatch):
    begin, told = ContinuousBatch.__init__, []

    def spied(batch, *given, **named):
        told.append(named.get("most_rows"))
        begin(batch, *given, **named)

    monkeypatch.setattr(ContinuousBatch, "__init__", spied)
    with engine_of(house, names=(), limits=Limits(rows=40)):
        pass
    assert told[-1] == 40


def test_work_whose_asker_has_gone_is_left_out_and_the_engine_goes_on(house: House):
    """Found by reading: its result had no place any more, and that ended the engine."""
    with engine_of(house, names=()) as (engine, _, _):
        go, done = threading.Event(), []
        first = engine.call(go.wait)
        gone = engine.call(lambda: done.append("never"))
        assert gone.cancel()
        go.set()
        assert first.result(timeout=20) is True
        assert engine.call(lambda: 7).result(timeout=20) == 7
        assert done == []


def test_more_answers_than_the_server_ever_takes_on_are_refused_for_good(house: House):
    """Found by reading: it was told to try again, which could never help."""
    body, _ = body_of(house, n=3)
    with served(house, names=("red",), limits=Limits(rows=1, waiting=1)) as server:
        refused = httpx.post(f"{server.address}/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
    assert "room for 2" in refused.json()["error"]["message"]
    assert "retry-after" not in refused.headers
