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
    from sparsight.rl.ranks import Ranks
    from sparsight.service import Service


@dataclass(frozen=True)
class Session:
    """What was given before the command's name."""

    home: Path | None
    configs: Path | None
    reader: str | None

    def config(self, app: Path | None = None) -> Config:
        """Settings: options > environment > configs > defaults. app: where files are where none were named.

        Raises ConfigError.
        """
        return Config.load(self.configs or app, home=self.home, serve={"reader": self.reader} if self.reader else {})

    @contextmanager
    def processes(self) -> Iterator[Ranks | None]:
        """The processes that `accelerate launch` started, or this one alone, for the first of them; None in the others.

        Those take part in what the first one does, and are done when it is.
        """
        from sparsight.cluster.processes import Processes, launched
        from sparsight.model import load_reader

        with launched() as ranks:
            if isinstance(ranks, Processes) and ranks.rank:
                ranks.follow(load_reader(self.config().serve.reader))
                yield None
            else:
                yield ranks

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
