"""Breaking streamed text between words at the edge of a terminal. Knows nothing of answers."""

from collections.abc import Callable

from rich.cells import cell_len

_JOINER = "\u200d"  # ties emoji together
_FENCES = ("```", "~~~")


class WordWrap:
    """Passes text on word by word, with a line break in place of the spaces before a word that would cross the edge.

    A wide character (Chinese, Japanese, emoji) is a word of its own. Code between fences passes as it is.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        """`width` gives the columns of the terminal as it is now: a person may resize it."""
        self._width: Callable[[], int] = lambda: max(1, width())  # COLUMNS=0 says nothing of the terminal
        self._column = 0
        self._spaces = ""  # held back, before the word
        self._word = ""  # held back: it may go on
        self._line = ""  # since the text's own last line break, for the fences
        self._in_code = False
        self._overlong = False  # inside a word wider than the terminal, such as an address: it passes unbroken

    def feed(self, text: str) -> str:
        """What can be shown after `text` has come."""
        return "".join(map(self._take, text))

    def finish(self) -> str:
        """What was held back."""
        return self._place_word() + self._take_spaces()

    def _take(self, character: str) -> str:
        if character == "\n":
            shown = self._place_word() + self._take_spaces() + "\n"
            if self._line.lstrip().startswith(_FENCES):
                self._in_code = not self._in_code
            self._column, self._line, self._overlong = 0, "", False
            return shown
        self._line += character
        if self._in_code:
            return character
        if character.isspace():
            shown = self._place_word()
            self._spaces += character
            self._overlong = False
            return shown
        self._overlong = self._overlong and cell_len(character) < 2
        if self._overlong:
            self._column = (self._column + cell_len(character)) % self._width()
            return character
        shown = ""
        if self._word and not self._sticks(character):
            shown = self._place_word()
        self._word += character
        if cell_len(self._word) > self._width():
            shown += self._place_word()
            self._overlong = True
            self._column %= self._width()
        return shown

    def _sticks(self, character: str) -> bool:
        """Whether no break may come between the held word and `character`."""
        if cell_len(character) == 0 or self._word.endswith(_JOINER):
            return True
        before = next((cell_len(each) for each in reversed(self._word) if cell_len(each)), 0)  # accents have no width
        return cell_len(character) == 1 == before

    def _place_word(self) -> str:
        if not self._word:
            return ""
        size, spaces = cell_len(self._word), cell_len(self._spaces)
        if self._column + spaces + size > self._width():
            lead, self._column = ("\n" if self._column else ""), size
        else:
            lead, self._column = self._spaces, self._column + spaces + size
        shown, self._word, self._spaces = lead + self._word, "", ""
        return shown

    def _take_spaces(self) -> str:
        spaces, self._spaces = self._spaces, ""
        return spaces
