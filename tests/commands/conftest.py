"""Fixtures of this folder."""

from tests.commands.workshop import workshop  # noqa: F401
