"""`mlx-lora report` as its user meets it: where the file lies, what is kept, what is refused."""

import os
import re
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlx_lora.cli import app
from mlx_lora.commands.report import run_report
from mlx_lora.errors import MlxLoraError
from tests.report.run_folders import result, write_run


def run(*words: str):
    return CliRunner().invoke(app, ["report", *words], catch_exceptions=False)


def test_the_report_lies_in_the_runs_folder_and_its_path_goes_to_stdout(tmp_path):
    folder = write_run(tmp_path / "one", results=[result()])
    ended = run(str(folder))
    assert (ended.exit_code, ended.stdout) == (0, f"{folder / 'report.html'}\n")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "It learned" in page


def test_a_run_is_found_by_its_name_under_adapters_and_by_a_file_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("adapters") / "one")
    assert run("one").stdout == "adapters/one/report.html\n"
    assert run("adapters/one/metrics.jsonl").stdout == "adapters/one/report.html\n"
    assert "mlx-lora eval adapters/one --base" in Path("adapters/one/report.html").read_text()


def test_several_runs_make_one_comparison_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_run(Path("adapters") / name)
    assert run("one", "two").stdout == "comparison.html\n"
    assert "2 runs compared" in Path("comparison.html").read_text()
    assert run("one", "two", "-o", "deep/er.html").stdout == "deep/er.html\n"
    assert Path("deep/er.html").is_file()


def test_an_older_report_is_replaced_and_any_other_file_is_kept(tmp_path):
    folder = write_run(tmp_path / "one")
    assert run_report([str(folder)]) == run_report([str(folder)]) == 0
    other = tmp_path / "thesis.html"
    other.write_text("<html>my own</html>")
    with pytest.raises(MlxLoraError, match=r"thesis\.html: exists and is no report") as error:
        run_report([str(folder)], output=other)
    assert error.value.hint == "choose another name; nothing was overwritten"
    assert other.read_text() == "<html>my own</html>"
    with pytest.raises(MlxLoraError, match="is a folder"):
        run_report([str(folder)], output=tmp_path)


def test_a_run_that_is_not_there_has_near_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("adapters") / "stanley")
    with pytest.raises(MlxLoraError) as error:
        run_report(["stanly"])
    assert error.value.message == "stanly: no such run folder, and none of that name under adapters/"
    assert error.value.hint == "did you mean stanley?"


def test_a_folder_that_is_no_run_and_a_run_named_twice_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MlxLoraError, match="is no run folder"):
        run_report([str(tmp_path / "empty")])
    folder = write_run(tmp_path / "one")
    with pytest.raises(MlxLoraError, match="named twice"):
        run_report([str(folder), f"{folder}/../one"])


def test_open_shows_it_in_the_browser_or_says_that_there_is_none(tmp_path, monkeypatch, capsys):
    folder, shown = write_run(tmp_path / "one"), []
    monkeypatch.setattr(webbrowser, "open", lambda address: shown.append(address) or True)
    assert run_report([str(folder)], show=True) == 0
    assert shown == [(folder / "report.html").as_uri()]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    assert run_report([str(folder)], show=True) == 0
    assert "no browser could be started" in capsys.readouterr().err


def test_a_report_is_made_without_mlx_or_transformers(tmp_path):
    folder = write_run(tmp_path / "one", results=[result()])
    code = (
        "import sys; from mlx_lora.commands.report import run_report; run_report([sys.argv[1]]);"
        "print(sorted(set(sys.modules) & {'mlx', 'mlx_lm', 'transformers', 'huggingface_hub', 'torch'}))"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_report_of_the_demo_in_this_repository_holds_no_path_of_this_machine(tmp_path):
    root = Path(__file__).resolve().parent.parent.parent
    path = tmp_path / "demo.html"
    run_report([str(root / "adapters" / "stanley-cup-modern")], output=path)
    page = path.read_text(encoding="utf-8")
    assert str(root) not in page
    assert os.path.expanduser("~") + "/" not in page
    assert len(re.findall(r"<figure", page)) == 6
