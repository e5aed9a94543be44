"""Text of an answer as it grows: what is sent is never taken back, and never holds a stop text."""

from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.serving.answer import AnswerText, Likelihood


class Letters:
    """A decoder whose tokens are characters."""

    def add(self, token: int) -> str:
        return chr(token)

    def finish(self) -> str:
        return ""


def grown(text: str, stops: tuple[str, ...]) -> tuple[list[str], bool]:
    answer = AnswerText(Letters(), stops)
    pieces = []
    for letter in text:
        pieces.append(answer.add(ord(letter)).text)
        if answer.stopped:
            break
    pieces.append(answer.finish().text)
    return pieces, answer.stopped


@given(st.text("ab\n", max_size=30), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3).map(tuple))
def test_an_answer_is_the_text_before_the_first_stop_text_and_nothing_sent_is_taken_back(text, stops):
    pieces, stopped = grown(text, stops)
    # The first stop text to be complete ends the answer, as soon as its last letter has come.
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    wanted = text
    if ends:
        seen = text[: ends[0]]
        wanted = seen[: min(seen.find(stop) for stop in stops if stop in seen)]
    assert "".join(pieces) == wanted
    assert stopped is bool(ends)


def test_only_what_may_begin_a_stop_text_is_held_back():
    assert grown("one\n\ntwo", ("\n\n",))[0] == ["o", "n", "e", "", "", ""]
    assert grown("one\ntwo", ("\n\n",))[0] == ["o", "n", "e", "", "\nt", "w", "o", ""]


def test_likelihoods_go_with_the_text_that_their_tokens_make():
    answer = AnswerText(Letters(), ("xy",))
    first, second = Likelihood(120, -0.5), Likelihood(97, -0.1)
    assert answer.add(ord("x"), first).likelihoods == ()  # its text is held back
    assert answer.add(ord("a"), second).likelihoods == (first, second)
    assert answer.finish().likelihoods == ()
