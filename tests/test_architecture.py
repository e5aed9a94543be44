"""The map of the rooms, held by a walk over every import, those inside functions included."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlx_lora"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Room -> the rooms that it may import. A room is a folder of the package or a single module at its top.
FOUNDATION = {"config", "errors", "files", "tensorheader", "statistics"}
MATERIALS = {"dataset", "lora", "model"}  # they never import one another
WORKSHOPS = {"training", "evaluation", "chat", "serving"}
ROOMS: dict[str, set[str]] = {
    "_blas": set(),
    "errors": set(),
    "config": set(),
    "statistics": set(),
    "files": {"errors"},
    "tensorheader": set(),  # adapters and models are checked by the same rules, and their rooms do not meet
    "console": {"errors"},
    "screen": {"console", "errors"},
    "runfile": {"config", "errors"},
    "dataset": FOUNDATION,
    "lora": FOUNDATION,
    "model": FOUNDATION | {"console"},  # converting a base takes minutes: said where it is done, whoever asked
    "training": FOUNDATION | MATERIALS,
    "evaluation": FOUNDATION | MATERIALS | {"console"},  # its tables show what data and models wrote, made harmless
    "chat": FOUNDATION | MATERIALS | {"console"},
    # A run is measured on a slice of its model with its own session, engine and steps.
    "memory": FOUNDATION | MATERIALS | {"training"},
    # The server finds the length of a context as chat does.
    "serving": FOUNDATION | MATERIALS | {"chat"},
    # Adapters and models in other programs' files: tensors are lora's, names and tokenizers are model's.
    "exchange": FOUNDATION | MATERIALS,
    # A page says figures in the words of evaluation's tables and sizes in those of the training screen, and knows the
    # built-in data sets by name.
    "report": FOUNDATION | {"dataset", "evaluation", "runfile", "screen"},
    "commands": FOUNDATION | MATERIALS | WORKSHOPS | {"memory", "console", "screen", "runfile", "report", "exchange"},
    "cli": {"commands", "runfile"},
    "__main__": {"cli", "console", "errors"},
    # What Python programs use: the chat's voice without its screens, and the command's run with its events.
    "lora_model": {"errors", "files", "dataset", "model", "chat"},
    "run": {"commands", "config", "console", "report", "runfile"},
    "__init__": {"_blas", "config", "errors", "lora_model", "run", "runfile"},
}

# A package outside of ours -> the rooms that may import it; packages not named here are free.
OUTSIDE = {
    "mlx_lm": {"model"},
    "transformers": {"model"},
    "tokenizers": {"model"},
    "huggingface_hub": {"model"},
    "datasets": {"dataset"},
    "torch": set[str](),
    "mlx": {"lora", "model", "exchange", "commands", "memory"} | WORKSHOPS,
    "gguf": {"model", "exchange"},  # the one reads it, the other writes it
    "typer": {"cli", "__main__"},
    "yaml": {"runfile"},
    "prompt_toolkit": {"chat"},
    "jinja2": {"model", "report", "exchange"},
    "markupsafe": {"report"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
}
# Rooms that import nothing from outside but the standard library and these.
NARROW = {"dataset": {"numpy", "datasets"}, "lora": {"mlx"}, "errors": set[str](), "files": {"platformdirs"}}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import: write the whole name"
            assert node.module is not None
            if node.module == "mlx_lora":
                yield from ((node.lineno, f"mlx_lora.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def rooms_imported(path: Path) -> Iterator[tuple[str, str]]:
    """Place and room of every import of our own; a value such as mlx_lora.__version__ belongs to no room."""
    for line, name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "mlx_lora" and len(parts) > 1:
            if (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file():
                yield place(path, line), parts[1]
            else:
                assert parts[1] == "__version__", f"{place(path, line)}: there is no {name}"


def test_every_room_stands_in_the_map() -> None:
    assert {room_of(path) for path in MODULES} <= set(ROOMS)


def test_imports_go_one_way() -> None:
    wrong = [
        f"{where}: {room_of(path)} imports {room}"
        for path in MODULES
        for where, room in rooms_imported(path)
        if room != room_of(path) and room not in ROOMS[room_of(path)]
    ]
    assert wrong == []


def test_the_map_has_no_way_round() -> None:
    left = {room: set(below) for room, below in ROOMS.items()}
    while left:
        lowest = [room for room, below in left.items() if not below & set(left)]
        assert lowest, f"a circle among {sorted(left)}"
        for room in lowest:
            del left[room]


def test_dataset_lora_and_model_never_name_one_another() -> None:
    for room in MATERIALS:
        assert not ROOMS[room] & MATERIALS


def test_packages_from_outside_stay_in_their_rooms() -> None:
    wrong = []
    for path in MODULES:
        for line, name in imports_of(path):
            package, room = name.split(".")[0], room_of(path)
            if package in ("mlx_lora", "__future__") or package in sys.stdlib_module_names:
                continue
            if room not in OUTSIDE.get(package, {room}) or package not in NARROW.get(room, {package}):
                wrong.append(f"{place(path, line)}: {room} imports {package}")
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_holds_and_ends_within_300_lines(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 300


def test_no_module_is_a_drawer() -> None:
    assert not {path.stem for path in MODULES} & {"utils", "util", "helpers", "common", "misc", "core", "base"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ClassDef) and node.name.endswith("Manager")), place(path, node.lineno)


def names_everything(caught: ast.expr | None) -> bool:
    names = [node.id for node in ast.walk(caught) if isinstance(node, ast.Name)] if caught else []
    return caught is None or bool({"Exception", "BaseException"} & set(names))


def is_silent(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Return):
        return statement.value is None or isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Pass | ast.Continue) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def test_no_exception_of_any_kind_is_swallowed() -> None:
    wrong = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and names_everything(node.type) and all(map(is_silent, node.body)):
                wrong.append(place(path, node.lineno))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                wrong += [place(path, node.lineno) for argument in node.args if names_everything(argument)]
    assert wrong == []


HEAVY = ("mlx", "mlx_lm", "transformers", "huggingface_hub", "numpy", "tokenizers", "datasets", "torch")
HELP = """
import sys
from mlx_lora.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", sorted(set(sys.modules) & set({heavy!r})))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["chat", "--help"]])
def test_help_answers_without_mlx_or_transformers(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", HELP.format(heavy=HEAVY), *arguments], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "LOADED []"


def test_a_run_file_is_shown_without_mlx_or_transformers() -> None:
    arguments = ["config", "show", str(ROOT / "configs" / "stanley_cup_modern.yaml")]
    run = subprocess.run(
        [sys.executable, "-c", HELP.format(heavy=HEAVY), *arguments], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "LOADED []"


def committed_texts() -> Iterator[tuple[str, str]]:
    """Name and text of every text file that is, or would be, committed."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            raw = path.read_bytes()
            if b"\0" not in raw:
                yield name, raw.decode("utf-8", errors="replace")


# Written in pieces, so that this file does not name what it looks for.
REGISTRY = re.compile("|".join([r"pypi\." + "org", r"python" + "hosted", r"-ind" + r"ex-url[ =]+\S*://"]))
THIS_MACHINE = re.compile(r"(?<![\w.~)}-])/(?:wo" + "rk|ro" + r"ot|ho" + r"me/\w+)/")


def test_no_committed_file_names_a_registry_or_a_path_of_the_machine_it_was_written_on() -> None:
    wrong = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in committed_texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if REGISTRY.search(line) or THIS_MACHINE.search(line)
    ]
    assert wrong == []


def test_pinned_versions_name_no_source() -> None:
    assert "://" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")
