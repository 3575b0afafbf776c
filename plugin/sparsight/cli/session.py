"""Options that all commands share, and the service made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsight.cli.output import progress_bar
from sparsight.config import Config

if TYPE_CHECKING:
    from sparsight.service import Service


@dataclass(frozen=True)
class Session:
    """What was given before the command's name."""

    home: Path | None
    configs: Path | None
    reader: str | None

    def config(self) -> Config:
        """Settings: options > environment > configs > defaults. Raises ConfigError."""
        return Config.load(self.configs, home=self.home, serve={"reader": self.reader} if self.reader else {})

    @contextmanager
    def service(self, studies: str | None = None) -> Iterator[Service]:
        """Open the service (imports torch: seconds) and close it afterwards."""
        with progress_bar("loading"):
            from sparsight.service import Service

            service = Service(self.config(), studies)
        try:
            yield service
        finally:
            service.close()
