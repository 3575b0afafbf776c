"""The command line: `sparsight COMMAND --help`; `--json` on every command (schemas: docs/cli.md)."""

from sparsight.cli.main import main

__all__ = ["main"]
