"""What a log file gets to see of long work: lines, at most one in ten seconds."""

import pytest

from mlx_lora import screen


def test_rows_without_a_terminal_are_counted_in_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(screen.time, "monotonic", lambda: now)
    with screen.counted_rows("asking [base]", total=8) as advance:
        for _ in range(8):
            now += 4.0
            advance()
    assert capsys.readouterr() == ("", "asking [base]: row 3 of 8\nasking [base]: row 6 of 8\n")
