"""YAML text to plain values, with the line of every key. Knows nothing of settings.

The YAML 1.2 core schema: `1e-5` is a number, only true and false are booleans, 010 is ten, a date is text. Equal keys
are reported, tags that would build objects are refused, and PyYAML's own classes stay as they are.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_CHARACTERS = 262_144
MAX_DEPTH = 20
MAX_NODES = 10_000
MAX_DIGITS = 100
MAX_INTEGER = 2**53  # what every reader of numbers holds exactly

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_PATTERNS = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.nan|\.NaN|\.NAN"
    ),
}
_FIRST_CHARACTERS = {"null": ["~", "n", "N", ""], "bool": list("tTfF"), "int": list("-+0123456789")}
_FIRST_CHARACTERS["float"] = [*_FIRST_CHARACTERS["int"], "."]
_HINTS = (
    ("'\\t'", "YAML indents with spaces: replace the tab"),
    ("mapping values are not allowed", 'a value that holds a colon and a space needs quotes: "like: this"'),
    ("could not find expected ':'", "every line reads `name: value`, with a space after the colon"),
    ("cannot start any token", "put the value in quotes"),
    ("alias", "a value that begins with * or & needs quotes"),
    ("another document", "a run file holds one document: remove the line `---`"),
    ("'<stream end>'", "a bracket is not closed"),
    ("expected ',' or ']', but got '}'", "a bracket is not closed"),
    ("expected ',' or '}'", "a bracket is not closed, or a comma is missing; a comment begins with #"),
    ("expected ',' or ']'", "a bracket is not closed, or a comma is missing; a comment begins with #"),
    ("block end", "the lines of a section start in the same column"),
    ("unexpected end of stream", "a quote is not closed"),
    ("escape", "in double quotes a backslash begins an escape: single quotes take it as it is"),
)


class YamlError(Exception):
    """A place in YAML text that cannot be read; line and column count from 1."""

    def __init__(self, line: int, column: int, fact: str, hint: str | None = None) -> None:
        super().__init__(f"{line}:{column}: {fact}")
        self.line, self.column, self.fact, self.hint = line, column, fact, hint


@dataclass(frozen=True)
class Repeated:
    """A key that its mapping holds twice; lines count from 1."""

    path: KeyPath
    first_line: int
    line: int


@dataclass
class Document:
    """A YAML value with the places of its parts; lines count from 1."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    plain: dict[KeyPath, str] = field(default_factory=dict)  # the text of every unquoted scalar, as written
    repeated: list[Repeated] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and a limit on depth; only its node tree is used."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            fact, hint = f"nested more than {MAX_DEPTH} levels deep", "settings stand at most three levels deep"
            raise YamlError(mark.line + 1, mark.column + 1, fact, hint)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}  # its own, in place of the YAML 1.1 ones that it would inherit
for _name, _pattern in _PATTERNS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern.pattern})\Z"), _FIRST_CHARACTERS[_name])


def parse_yaml(text: str) -> Document:
    """The one document in `text`; an empty text is null.

    Raises: YamlError at the first place that is no YAML, or that is larger or deeper than any run file.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(1, 1, f"longer than {MAX_CHARACTERS} characters")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line, column = _line_and_column(text, error.position)
        fact = f"holds the control character {_character(error.character)}"
        raise YamlError(line, column, fact, "remove it, or save the file as UTF-8 text again") from error
    except yaml.MarkedYAMLError as error:
        raise _syntax_fault(error) from error
    except (ValueError, OverflowError) as error:  # PyYAML passes "\UFFFFFFFF" to chr() unchecked
        mark = loader.get_mark()
        raise YamlError(mark.line + 1, mark.column + 1, f"not YAML: {error}") from error
    document = Document()
    if node is not None:
        document.value = _Builder(document).build(node, ())
    return document


class _Builder:
    """Nodes to values. Aliases are followed by copy; nodes are counted, so a small file cannot unfold into much."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _fault_at(node, "unfolds into more values than a run file holds", "write the values without aliases")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._build_mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self._build_item(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            if node.style is None:
                self.document.plain[path] = node.value
            return _scalar(node)
        raise _fault_at(node, f"the tag {_shown_tag(node.tag)} is not accepted", "remove the tag")

    def _build_item(self, node: yaml.Node, path: KeyPath) -> Any:
        self.document.lines[path] = node.start_mark.line + 1
        return self.build(node, path)

    def _build_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                fact = "a name is one word, not a list or a mapping"
                raise _fault_at(key_node, fact, "every line reads `name: value`")
            key = _text(key_node)  # as written: the name `true` is the text "true"
            key_path, line = (*path, key), key_node.start_mark.line + 1
            if key in mapping:
                self.document.repeated.append(Repeated(key_path, self.document.lines[key_path], line))
                continue
            self.document.lines[key_path] = line
            mapping[key] = self.build(value_node, key_path)
        return mapping


def _scalar(node: yaml.ScalarNode) -> Any:
    kind = node.tag.removeprefix(_TAG)
    if kind == "str":
        return _text(node)
    if kind not in _PATTERNS:
        raise _fault_at(node, f"the tag {_shown_tag(node.tag)} is not accepted", "remove the tag")
    text = node.value
    if not _PATTERNS[kind].fullmatch(text):
        raise _fault_at(node, f"{text[:40]!r} is no {kind}", "remove the tag")
    if len(text) > MAX_DIGITS and kind in ("int", "float"):
        raise _fault_at(node, f"a number of {len(text)} characters", "no setting takes so large a number")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        number = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if abs(number) > MAX_INTEGER:
            raise _fault_at(node, f"a number beyond {MAX_INTEGER}", "no setting takes so large a number")
        return number
    return float(text.replace(".", "") if text[-1].isalpha() else text)  # float() knows .Inf and .NaN without the dot


def _text(node: yaml.ScalarNode) -> str:
    """The text of a node; escapes in double quotes can spell what no path and no tokenizer takes."""
    text = str(node.value)
    if unfit := next((each for each in text if each == "\0" or "\ud800" <= each <= "\udfff"), None):
        raise _fault_at(node, f"holds {_character(unfit)}", "no name, path or text can hold it: remove it")
    return text


def _shown_tag(tag: str) -> str:
    return (tag.replace(_TAG, "!!"))[:60]


def _fault_at(node: yaml.Node, fact: str, hint: str | None = None) -> YamlError:
    return YamlError(node.start_mark.line + 1, node.start_mark.column + 1, fact, hint)


def _syntax_fault(error: yaml.MarkedYAMLError) -> YamlError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    problem = error.problem or error.context or "cannot be read"
    hint = next((hint for part, hint in _HINTS if part in problem), None)
    context = f" {error.context}" if error.context and error.context != problem else ""
    return YamlError(line, column, f"not YAML:{context}{',' if context else ''} {problem}", hint)


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1


def _character(character: int | str | bytes) -> str:
    code = character if isinstance(character, int) else ord(character)
    return f"U+{code:04X}"
