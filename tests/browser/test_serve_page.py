"""The server's page in a real browser: answers side by side as they come, and nothing asked of anybody else.

Needs Chromium, so it is asked for by name: `pytest -m browser`.
"""

import time
from functools import partial

import pytest

from tests.serving.house import BASE, KINDS, TOKENS, build_house, served

pytestmark = pytest.mark.browser
KEY = "a-key-of-many-letters"
CARDS = "[...document.querySelectorAll('article')].map(a => [a.children[0].textContent, a.children[1].textContent])"
FACTS = "[...document.querySelectorAll('.facts')].map(p => p.textContent)"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return build_house(tmp_path_factory.mktemp("house"), "llama_untied")


def wait_for(page, script, seconds=20):
    for _ in range(int(seconds / 0.05)):
        found = page.run(script)
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"it never came true: {script}; the page says {page.run('document.body.innerText')!r}")


def ask(page, question, tokens=TOKENS):
    page.run(f"document.getElementById('tokens').value = {tokens}")
    page.run(f"document.getElementById('question').value = {question!r}")
    page.run("document.getElementById('question').focus()")
    page.run("document.getElementById('send').click()")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_who_are_chosen_answer_side_by_side_as_they_do_alone(page, house, width, scheme, tmp_path):
    question = next(each for each in house.answers[BASE] if all(each in found for found in house.answers.values()))
    with served(house, names=("red", "green")) as server:
        page.open(f"{server.address}/", width=width, scheme=scheme)
        wait_for(page, "document.querySelectorAll('#models input').length === 3")
        ask(page, question)
        wait_for(page, f"{FACTS}.length === 3 && {FACTS}.every(f => f.includes(' tokens in '))")
        assert page.run(CARDS) == [[name, house.answers[name][question]] for name in (BASE, "red", "green")]
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.problems == []
        assert {address.startswith(server.address) or address == "data:," for address in page.requests} == {True}
        assert server.metrics.value("rows") == 0
        page.screenshot(tmp_path / f"{width}-{scheme}.png")


def test_an_adapter_is_loaded_from_the_page_and_answers(page, house):
    with served(house, names=("red",)) as server:
        page.open(f"{server.address}/")
        wait_for(page, "document.querySelectorAll('#loadable button').length === 2")
        page.run("[...document.querySelectorAll('#loadable button')].find(b => b.textContent === 'blue').click()")
        wait_for(page, "document.querySelectorAll('#models input').length === 3")
        page.run("document.querySelectorAll('#models input').forEach(box => { box.checked = box.value === 'blue'; })")
        question, wanted = next(iter(house.answers["blue"].items()))
        ask(page, question)
        wait_for(page, f"{FACTS}.length === 1 && {FACTS}[0].includes(' tokens in ')")
        assert page.run(CARDS) == [["blue", wanted]]


def test_stop_ends_all_answers_and_frees_their_rows(page, house):
    with served(house, names=tuple(KINDS)) as server:
        page.open(f"{server.address}/")
        wait_for(page, "document.querySelectorAll('#models input').length === 4")
        ask(page, "Go on and on", tokens=400)
        wait_for(page, "[...document.querySelectorAll('.text')].some(t => t.textContent)")
        page.run("document.getElementById('stop').click()")
        wait_for(page, f"{FACTS}.some(f => f.startsWith('stopped after'))")
        for _ in range(200):
            if server.metrics.value("rows") == 0:
                break
            time.sleep(0.05)
        assert server.metrics.value("rows") == 0


def test_a_server_with_a_key_asks_for_it_and_a_fault_is_shown_as_text(page, house):
    with served(house, names=("red",), key=KEY) as server:
        page.open(f"{server.address}/")
        wait_for(page, "!document.getElementById('key-row').hidden")
        page.run(f"document.getElementById('key').value = {KEY!r}")
        page.run("document.getElementById('unlock').click()")
        wait_for(page, "document.querySelectorAll('#models input').length === 2")
        assert page.run("document.getElementById('key-row').hidden")
        ask(page, "too long", tokens=9000)
        assert page.run("document.querySelector('details').open")  # where the wrong number can be seen
        server.engine.call(partial(server.residents.unload, "red")).result()
        ask(page, "<img src=x onerror='window.hacked = true'>")
        wait_for(page, "document.querySelectorAll('article.failed').length === 1")
        assert page.run(CARDS)[1] == ["red", "The model 'red' does not exist here. There are: tiny-base."]
        wait_for(page, f"{FACTS}[0].includes(' tokens in ')")
        assert page.run("window.hacked") is None
