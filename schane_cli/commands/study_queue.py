"""The trials of a study in Optuna's storage: each claimed by one worker, which sends heartbeats.

A trial is queued as WAITING and claimed by Optuna's own compare-and-set to RUNNING, so that any number of workers on
one SQLite file or one PostgreSQL server share a study and none runs what another is running.
"""

import logging
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from schane_cli.commands.study_file import Range, StudyFile, changed_keys, settings
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.metrics.registry import metric

MAX_ATTEMPTS = 3  # of a trial whose workers die
WAIT_SECONDS = 600.0  # for a storage that does not answer
_DOWN = (StorageInternalError, sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
T = TypeVar("T")

optuna.logging.set_verbosity(optuna.logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Claimed:
    """A trial that this worker alone runs. `values` are the ones drawn by a search; empty for a grid."""

    trial: optuna.Trial
    index: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A queued setting as the storage knows it: waiting, running, done or failed, its summaries or its error."""

    index: int
    state: str
    values: Mapping[str, Any]
    summaries: list[dict[str, Any]]
    error: str | None


class Queue:
    """The shared queue of one study."""

    def __init__(self, study: StudyFile, name: str, url: str, say: Callable[[str], None]) -> None:
        """Join the study `name` at a storage URL, or make it and queue its trials.

        Raises:
            BadRequest: the storage cannot be opened, or the study there was begun with another file (which keys).
        """
        self.file, self._say = study, say
        self.shown_url = hidden(url)
        self._storage = _open(url, study.heartbeat_seconds, self._requeue)
        try:
            self._join(name)
        except (*_DOWN, sqlalchemy.exc.SQLAlchemyError, KeyError, TypeError, ValueError) as error:
            raise BadRequest(f"the storage {self.shown_url} cannot be used for a study: {_reason(error)}") from None

    def _join(self, name: str) -> None:
        """Make the study and queue its trials, or check that the one that is there has the same file."""
        study, planned = self.file, len(settings(self.file))
        try:
            self.study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                direction="minimize" if metric(study.objective).direction == "lower" else "maximize",
            )
        except DuplicatedStudyError:
            self.study = optuna.load_study(storage=self._storage, study_name=name)
            self._await_plan()
        else:
            self.study.set_user_attr("file", study.model_dump(mode="json"))
        self._check_unchanged()
        self._fill(planned)

    def _await_plan(self) -> None:
        """Wait for the worker that made the study to queue its trials; after a while it counts as dead."""
        for _ in range(20):
            if "planned" in self.study.user_attrs:
                return
            time.sleep(0.5)

    def _check_unchanged(self) -> None:
        before = self.study.user_attrs.get("file")
        changed = changed_keys(before, self.file.model_dump(mode="json")) if before else []
        if changed:
            raise BadRequest(
                f"the study file changed since the study began: {', '.join(changed)}; put the values back, or start "
                "another study with --out"
            )

    def _fill(self, planned: int) -> None:
        if "planned" in self.study.user_attrs:
            return
        queued = {trial.user_attrs["index"] for trial in self.study.get_trials(deepcopy=False)}
        for index in range(planned):
            if index not in queued:
                self.study.enqueue_trial({}, user_attrs={"index": index, "attempt": 1})
        self.study.set_user_attr("file", self.file.model_dump(mode="json"))
        self.study.set_user_attr("planned", planned)

    def claim(self) -> Claimed | None:
        """The next waiting trial, or None where none waits. Dead workers' trials are queued again first."""
        with _without_warning():
            self._patiently(lambda: fail_stale_trials(self.study))
        waiting = self._patiently(lambda: self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
        for frozen in waiting:
            if self._patiently(partial(self._take, frozen._trial_id)):
                return self._patiently(partial(self._claimed, frozen))
        return None

    def _take(self, trial_id: int) -> bool:
        try:
            self._storage.record_heartbeat(
                trial_id
            )  # before it runs, so that a worker that dies right here is noticed too
            return self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def _claimed(self, frozen: FrozenTrial) -> Claimed:
        index = frozen.user_attrs["index"]
        self.study.sampler = optuna.samplers.TPESampler(seed=index, constant_liar=True)
        trial = optuna.Trial(self.study, frozen._trial_id)
        return Claimed(trial, index, {key: _draw(trial, key, space) for key, space in self.file.search.items()})

    @contextmanager
    def beating(self, claimed: Claimed) -> Iterator[None]:
        """Tell the storage every `heartbeat_seconds` that this worker is alive."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.file.heartbeat_seconds):
                try:
                    self._storage.record_heartbeat(claimed.trial._trial_id)
                except _DOWN:
                    continue  # the worker itself will meet the storage when its trial ends, and report it then

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def finish(self, claimed: Claimed, summaries: list[dict[str, Any]], value: float) -> None:
        """Keep the summaries of a trial's runs."""
        self._end(claimed, {"summaries": summaries}, TrialState.COMPLETE, [value])

    def fail(self, claimed: Claimed, error: str) -> None:
        """Keep the reason of a trial that failed; it is not run again unless asked for."""
        self._end(claimed, {"error": error}, TrialState.FAIL, None)

    def give_back(self, claimed: Claimed) -> None:
        """Queue again the trial in which this worker was stopped."""
        frozen = self._patiently(lambda: self._storage.get_trial(claimed.trial._trial_id))
        self._end(claimed, {"stopped": True}, TrialState.FAIL, None)
        self._patiently(lambda: self._queue_again(frozen, frozen.user_attrs["attempt"]))

    def _end(
        self, claimed: Claimed, attributes: Mapping[str, Any], state: TrialState, values: list[float] | None
    ) -> None:
        def tell() -> None:
            for name, value in attributes.items():
                claimed.trial.set_user_attr(name, value)
            self._storage.set_trial_state_values(claimed.trial._trial_id, state, values)

        # counted as dead while the storage was away: whoever runs it again finds the finished run folder
        with suppress(UpdateFinishedTrialError):
            self._patiently(tell)

    def _requeue(self, study: optuna.Study, frozen: FrozenTrial) -> None:
        """Optuna's callback for a trial whose worker died."""
        attempt = frozen.user_attrs["attempt"]
        if attempt < MAX_ATTEMPTS:
            self._say(f"a worker of trial {frozen.user_attrs['index']} died; it is queued again")
            self._queue_again(frozen, attempt + 1)
        else:
            self._say(f"trial {frozen.user_attrs['index']} failed: its workers died {attempt} times")

    def _queue_again(self, frozen: FrozenTrial, attempt: int) -> None:
        attributes = {"index": frozen.user_attrs["index"], "attempt": attempt}
        self.study.enqueue_trial(frozen.params, user_attrs=attributes)

    def retry_failed(self) -> int:
        """Queue every failed trial again; returns how many."""
        newest = self._newest().values()
        failed = [trial for trial in newest if trial.state == TrialState.FAIL]
        for trial in failed:
            self._queue_again(trial, 1)
        return len(failed)

    def _newest(self) -> dict[int, FrozenTrial]:
        """The newest trial of each index."""
        trials = self._patiently(lambda: self.study.get_trials(deepcopy=False))
        return {trial.user_attrs["index"]: trial for trial in sorted(trials, key=lambda trial: trial.number)}

    def entries(self) -> list[Entry]:
        """Every queued setting in its newest state."""
        return [_entry(index, trial) for index, trial in sorted(self._newest().items())]

    def counts(self) -> Counter[str]:
        """How many settings are waiting, running, done and failed."""
        return Counter(entry.state for entry in self.entries())

    def _patiently(self, call: Callable[[], T]) -> T:
        """The result of a call to the storage, which may be away for a while.

        Raises:
            SchaneError: it stays away, or its file is removed, read-only or on a full disk: waiting does not mend it.
        """
        began, announced = time.monotonic(), False
        while True:
            try:
                return call()
            except _DOWN as error:
                again = "finished runs are in their folders: the same command resumes from there"
                if self.shown_url.startswith("sqlite") and "locked" not in _reason(error):
                    raise SchaneError(
                        f"the storage {self.shown_url} cannot be written ({_reason(error)}); {again}"
                    ) from None
                if time.monotonic() - began > WAIT_SECONDS:
                    raise SchaneError(
                        f"the storage {self.shown_url} has not answered for {WAIT_SECONDS / 60:.0f} minutes "
                        f"({_reason(error)}); {again}"
                    ) from None
            if not announced:
                self._say(
                    f"the storage {self.shown_url} does not answer; waiting up to {WAIT_SECONDS / 60:.0f} minutes"
                )
                announced = True
            time.sleep(min(2.0, WAIT_SECONDS / 10))


def _open(url: str, heartbeat_seconds: int, requeue: Callable[[optuna.Study, FrozenTrial], None]) -> RDBStorage:
    """The storage at a URL. Workers that begin at once meet each other's half-made tables: those try again."""
    attempts = 5
    for attempt in range(attempts):
        try:
            parsed = sqlalchemy.make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            sqlite = parsed.drivername == "sqlite"
            with _without_warning():
                return RDBStorage(
                    parsed.render_as_string(hide_password=False),
                    engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True},
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=4 * heartbeat_seconds,
                    heartbeat_stale_trial_callback=requeue,
                )
        except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
            half_made = isinstance(error, sqlalchemy.exc.DBAPIError) and any(
                sign in str(error) for sign in ("exists", "UNIQUE constraint failed: alembic_version")
            )
            if half_made and attempt < attempts - 1:
                time.sleep(0.5)
                continue
            raise BadRequest(f"the storage {hidden(url)} cannot be opened: {_reason(error)}") from None
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _without_warning() -> Iterator[None]:
    """Optuna has called its heartbeats experimental for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def hidden(url: str) -> str:
    """A storage URL without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(getattr(cause, "orig", None) or cause).split())[:200]


def _draw(trial: optuna.Trial, key: str, space: Range | list[Any]) -> Any:
    if isinstance(space, list):
        return trial.suggest_categorical(key, space)
    return trial.suggest_float(key, space.low, space.high, log=space.log)


def _entry(index: int, trial: FrozenTrial) -> Entry:
    states = {TrialState.WAITING: "waiting", TrialState.RUNNING: "running", TrialState.COMPLETE: "done"}
    state = states.get(trial.state, "failed")
    attributes = trial.user_attrs
    error = attributes.get("error", "its workers died" if state == "failed" else None)
    return Entry(index, state, trial.params, attributes.get("summaries", []), error)
