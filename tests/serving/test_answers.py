"""What is answered is what each adapter answers alone, whoever shares the batch, in every form of the API."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import httpx
import openai
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from tests.serving.house import BASE, KINDS, TOKENS, House, Running, build_house, served
from tests.tiny import VOCABULARY, save_tiny_folder


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gemma2"])
def test_requests_to_base_and_adapters_at_once_get_the_answers_that_each_gives_alone(family, tmp_path):
    house = build_house(tmp_path, family, questions=5)
    with served(house) as server, ThreadPoolExecutor(12) as pool:
        assert server.engine.shares_batches is (family != "gemma2")
        client = client_of(server)

        def ask(place: int) -> tuple[str | None, str]:
            name, question, wanted = house.ask(place)
            answer = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": question}], max_tokens=TOKENS
            )
            return answer.choices[0].message.content, wanted

        for got, wanted in pool.map(ask, range(20)):
            assert got == wanted
        client.close()


def test_the_openai_client_streams_the_same_answers(house: House, server: Running):
    client = client_of(server)
    for place in range(8):
        name, question, wanted = house.ask(place)
        chunks = list(
            client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": question}],
                max_tokens=TOKENS,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == wanted
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == house.tokens[name][question]
        assert len({chunk.id for chunk in chunks}) == 1
        assert {chunk.model for chunk in chunks} == {name}


def test_a_conversation_is_read_once_and_its_second_turn_answers_as_if_read_whole(house: House, server: Running):
    client = client_of(server)
    messages = [{"role": "user", "content": "Nobody has asked this before."}]
    first = client.chat.completions.create(model="red", messages=messages, max_tokens=TOKENS)  # type: ignore[arg-type]
    messages += [
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "And then?"},
    ]
    again = [
        client.chat.completions.create(model=name, messages=messages, max_tokens=TOKENS)  # type: ignore[arg-type]
        for name in ("red", "red", "blue")
    ]
    reused = [each.usage.prompt_tokens_details.cached_tokens for each in again]
    assert first.usage.prompt_tokens - 1 <= reused[0] < reused[1] == again[1].usage.prompt_tokens - 1
    assert reused[2] < len("<|im_start|>user\nQ")  # blue has read the beginning only, of its own questions
    assert again[0].choices[0].message.content == again[1].choices[0].message.content


def test_the_system_prompt_of_the_adapter_gives_way_to_that_of_the_request(house: House, server: Running):
    client = client_of(server)
    question, wanted = next(iter(house.answers["green"].items()))
    user = {"role": "user", "content": question}
    said = [{"role": "system", "content": "Be green."}, user]
    other = [
        {"role": "developer", "content": [{"type": "text", "text": "Be blue, "}, {"type": "text", "text": "now."}]}
    ]
    answers = [
        client.chat.completions.create(model="green", messages=messages, max_tokens=TOKENS)  # type: ignore[arg-type]
        for messages in ([user], said, [*other, user])
    ]
    assert [each.choices[0].message.content for each in answers[:2]] == [wanted, wanted]
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens != answers[2].usage.prompt_tokens


def test_likelihoods_are_those_of_the_tokens_and_sum_to_less_than_one(house: House, server: Running):
    client = client_of(server)
    name, question, wanted = house.ask(1)
    messages = [{"role": "user", "content": question}]
    answer = client.chat.completions.create(
        model=name,
        messages=messages,
        max_tokens=TOKENS,
        logprobs=True,
        top_logprobs=3,  # type: ignore[arg-type]
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == house.tokens[name][question]
    for each in content:
        assert each.logprob == each.top_logprobs[0].logprob == max(top.logprob for top in each.top_logprobs)
        assert each.token == each.top_logprobs[0].token
        assert each.bytes == (None if "\ufffd" in each.token else list(each.token.encode()))
    streamed = client.chat.completions.create(
        model=name,
        messages=messages,
        max_tokens=TOKENS,
        logprobs=True,
        top_logprobs=3,
        stream=True,  # type: ignore[arg-type]
    )
    pieces = [one for chunk in streamed for one in (chunk.choices[0].logprobs or _nothing).content or []]
    assert [one.token for one in pieces] == [one.token for one in content]
    assert [one.logprob for one in pieces] == pytest.approx([one.logprob for one in content], abs=1e-4)
    assert answer.choices[0].message.content == wanted


class _Nothing:
    content: list = []  # noqa: RUF012


_nothing = _Nothing()


def test_drawn_answers_repeat_with_their_seed_and_differ_between_choices(house: House, server: Running):
    client = client_of(server)
    question = next(iter(house.answers["red"]))

    def draw(**options):
        answer = client.chat.completions.create(
            model="red", messages=[{"role": "user", "content": question}], max_tokens=TOKENS, temperature=1.5, **options
        )
        return [choice.message.content for choice in answer.choices], answer.usage

    four, usage = draw(seed=7, n=4)
    again, _ = draw(seed=7, n=4)
    other, _ = draw(seed=8, n=1)
    assert four == again
    assert len(set(four)) == 4
    assert other == [four[1]]  # the second choice of seed 7 is the first of seed 8
    assert usage.prompt_tokens < 100
    assert usage.completion_tokens > 4


def test_plain_completions_take_texts_and_tokens_alike(house: House, server: Running):
    client = client_of(server)
    text = "<|im_start|>user\n" + next(iter(house.answers["red"])) + "<|im_end|>\n<|im_start|>assistant\n"
    wanted = house.answers["red"][next(iter(house.answers["red"]))]
    tokens = [*text.encode()]
    one = client.completions.create(model="red", prompt=text, max_tokens=TOKENS, logprobs=2)
    assert one.choices[0].text == wanted
    assert len(one.choices[0].logprobs.tokens) == one.usage.completion_tokens
    two = client.completions.create(model="red", prompt=[text, text[:-1]], max_tokens=TOKENS)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == wanted
    ids = client.completions.create(model="red", prompt=[5 + byte % 200 for byte in tokens], max_tokens=2)
    assert ids.usage.prompt_tokens == len(tokens)
    streamed = client.completions.create(model="red", prompt=text, max_tokens=TOKENS, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == wanted


def test_a_plain_completion_goes_on_from_its_prompt_with_the_space_of_its_first_word(tmp_path: Path):
    """Found by reading: SentencePiece models lost that space, and all of `tokens` lost theirs, with wrong offsets."""
    base = save_tiny_folder(tmp_path / "pieces", "llama")
    words = ["<unk>", "<s>", "</s>", *(f"▁w{number}" for number in range(VOCABULARY - 3))]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(base)
    (base / "chat_template.jinja").unlink()
    with served(House(base, tmp_path, {}, {}), names=()) as running:
        client = client_of(running)
        whole = client.completions.create(model="pieces", prompt=[10, 11, 12], max_tokens=4, logprobs=2).choices[0]
        parts = client.completions.create(model="pieces", prompt=[10, 11, 12], max_tokens=4, stream=True)
        streamed = "".join(part.choices[0].text for part in parts)
    assert re.fullmatch(r"( w\d+){4}", whole.text)
    assert streamed == whole.text
    assert "".join(whole.logprobs.tokens) == whole.text
    assert whole.logprobs.text_offset == [0, *accumulate(map(len, whole.logprobs.tokens))][:-1]
    pairs = zip(whole.logprobs.top_logprobs, whole.logprobs.tokens, strict=True)
    assert all(set(top) > {token} for top, token in pairs)


def test_a_stop_text_ends_the_answer_before_it(house: House, server: Running):
    client = client_of(server)
    name, question, wanted, place = next(
        (name, question, answer, place)
        for name, answers in house.answers.items()
        for question, answer in answers.items()
        for place in range(2, len(answer))
        if answer[place].isascii() and answer.count(answer[place]) == 1
    )
    for stop, left in ((wanted[place], wanted[:place]), (wanted[0], ""), ("no such text", wanted)):
        for stream in (False, True):
            answer = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": question}],
                max_tokens=TOKENS,
                stop=stop,
                stream=stream,
            )
            if stream:
                got = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
            else:
                got = answer.choices[0].message.content
                assert answer.choices[0].finish_reason == "stop" or left == wanted
            assert got == left


def test_a_client_that_leaves_frees_its_rows_at_once(house: House, server: Running):
    question = next(iter(house.answers["red"]))
    body = {"model": "red", "messages": [{"role": "user", "content": question}], "max_tokens": 400}
    before = server.metrics.value("disconnects_total")
    with httpx.Client(base_url=server.address) as client:
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True, "n": 3}) as answer:
            next(answer.iter_lines())
            assert server.metrics.value("rows") == 3
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=body, timeout=0.2)
    wait_until(lambda: server.metrics.value("rows") == 0)
    assert server.metrics.value("disconnects_total") == before + 2


def wait_until(true, seconds: float = 20.0) -> None:
    done = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if true():
            return
        done.wait(0.02)
    raise AssertionError("it never came true")


def test_a_full_queue_refuses_with_the_time_to_try_again(house: House):
    from mlx_lora.serving.limits import Limits

    question = next(iter(house.answers["red"]))
    body = {"model": "red", "messages": [{"role": "user", "content": question}], "max_tokens": 120}
    with served(house, limits=Limits(rows=2, waiting=1), names=("red",)) as server, httpx.Client() as client:
        address = f"{server.address}/v1/chat/completions"
        with client.stream("POST", address, json={**body, "stream": True, "n": 3}) as answer:
            lines = answer.iter_lines()
            next(lines)
            refused = client.post(address, json=body)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            ends = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        # The third waited for a row and was finished too.
        finished = {each["choices"][0]["index"] for each in ends if each["choices"][0]["finish_reason"]}
        assert finished == {0, 1, 2}


def test_an_answer_that_takes_too_long_ends_with_an_error(house: House):
    from mlx_lora.serving.limits import Limits

    question = next(iter(house.answers["red"]))
    body = {"model": "red", "messages": [{"role": "user", "content": question}], "max_tokens": 400}
    with served(house, limits=Limits(request_seconds=0.1), names=("red",)) as server, httpx.Client() as client:
        address = f"{server.address}/v1/chat/completions"
        late = client.post(address, json=body)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        with client.stream("POST", address, json={**body, "stream": True}) as answer:
            events = [line for line in answer.iter_lines() if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2][6:])["error"]["code"] == "timeout"
        assert server.metrics.value("rows") == 0


def test_names_of_base_and_adapters_are_the_models(house: House, server: Running):
    client = client_of(server)
    assert [each.id for each in client.models.list()] == [BASE, *KINDS]
    assert client.models.retrieve("red").parent == BASE  # type: ignore[attr-defined]
    with pytest.raises(
        openai.NotFoundError, match=r"Did you mean 'red'\? There are: tiny-base, red, blue, green"
    ) as no:
        client.chat.completions.create(model="redd", messages=[{"role": "user", "content": "x"}])
    assert no.value.code == "model_not_found"
