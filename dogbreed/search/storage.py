"""`search.storage`: one study for several processes and machines, and who of them is still there."""

import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from dogbreed.core.errors import DogbreedError

PASSWORD = "DOGBREED_STORAGE_PASSWORD"  # noqa: S105  the name of a variable
BEAT_SECONDS = 15
_JOURNAL = b'{"op_code"'  # what the first line begins with
PATIENCE = 4 * BEAT_SECONDS  # without a beat, after which the trials of a process are left to the others
# Of processes that make the tables of a new database at the same time, one succeeds, and the others find them.
_ATTEMPTS, _MADE_BY_ANOTHER = 5, re.compile("already exists|unique constraint|duplicate|is locked", re.IGNORECASE)


def open_storage(optuna: Any, address: str) -> Any:
    """Return Optuna's storage at an address: a URL, a file of SQLite (.db, .sqlite), or a journal in any other file.

    Raises:
        DogbreedError: There is none, or it cannot be reached.
    """
    secret = os.environ.get(PASSWORD)
    for attempt in range(_ATTEMPTS):
        try:
            if "://" in address:
                return optuna.storages.get_storage(_with_password(address, secret))
            path = Path(address).expanduser().resolve()
            if path.suffix in (".db", ".sqlite"):
                return optuna.storages.get_storage(f"sqlite:///{path}")
            _check_journal(path)
            storages = optuna.storages
            return storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))
        except Exception as error:  # of a driver that only the address names
            if attempt == _ATTEMPTS - 1 or not _MADE_BY_ANOTHER.search(str(error)):
                raise _unusable(address, error, secret) from error
            time.sleep(0.5)
    raise AssertionError


def _check_journal(path: Path) -> None:
    """Refuse a file that holds something else: a journal would be written behind it.

    Raises:
        ValueError: It is no journal.
    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        if file.read(len(_JOURNAL)) not in (b"", _JOURNAL):
            raise ValueError("the file holds something else")


def _with_password(url: str, secret: str | None) -> str:
    """Return the URL that is connected to; a password comes from the environment, so that no file ever holds it."""
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    if secret and parsed.username:
        parsed = parsed.set(password=secret)
    return str(parsed.render_as_string(hide_password=False))


def _unusable(address: str, error: Exception, secret: str | None) -> DogbreedError:
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    if secret:
        reason = reason.replace(secret, "***")
    shown = re.sub(r"//.*@", "//***@", address)
    return DogbreedError(f"search.storage={shown} cannot be used: {reason}.")


class Workers:
    """The processes that work at one study: each shows that it is alive, and sees who no longer is.

    No clocks are compared: a process is gone when its beat has not changed for as long as this one looked.

    Args:
        study: Optuna's, in a storage that all of them reach.
    """

    def __init__(self, study: Any) -> None:
        self.study, self.own = study, uuid4().hex[:12]
        self._seen: dict[str, tuple[Any, float]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        beats = 0
        while not self._end.is_set():
            beats += 1
            with suppress(Exception):  # a storage that is away for a moment; the next beat may reach it
                self.study.set_user_attr(f"worker {self.own}", beats)
            self._end.wait(BEAT_SECONDS)

    def abandoned(self, running: list[Any]) -> list[Any]:
        """Return those of the running trials whose process is gone."""
        beats, now = self.study.user_attrs, time.monotonic()
        gone = []
        for trial in running:
            worker = trial.user_attrs.get("worker", "")
            beat = beats.get(f"worker {worker}")
            if worker not in self._seen or self._seen[worker][0] != beat:
                self._seen[worker] = beat, now
            if worker != self.own and now - self._seen[worker][1] > PATIENCE:
                gone.append(trial)
        return gone

    def close(self) -> None:
        """Beat no longer."""
        self._end.set()
        self._thread.join()
