"""Weights & Biases, at arm's length: it may be missing, slow, offline or dead, and the fit goes on.

The client runs in a thread of its own, fed by a queue. Starting it (half a second, or a timeout without network)
costs the fit nothing, a call that blocks does not block the fit, and the first call that fails ends the tracking
with one warning. ``metrics.jsonl`` has everything regardless.
"""

import contextlib
import os
import queue
import re
import secrets
import string
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Rows that may wait for the client; at one row every millisecond this is a start of ten seconds.
_QUEUE_ROWS = 10_000
_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}
_MODES |= {"disabled": "off"}


class WandbTracker:
    """A tracker that records a Weights & Biases run inside the run folder.

    Steps are a metric named ``global_step`` and the axis of all others: the client's own step may not go back, as
    it must when a fit resumes from a checkpoint.

    Args:
        folder: The run folder; the client writes below ``folder/wandb`` and keeps the run's id there.
        config: Flat dotted keys, as a sweep sets them.
        mode: ``auto`` takes ``WANDB_MODE``, else online if an API key is found, else offline.
        project: Project; ``WANDB_PROJECT`` replaces the default one.
        name: Name of the run.
        group: Group of runs that belong together.
        tags: Tags, cut to the 64 characters the server takes.
        job_type: What the process does.
        warn: Called with at most a few single lines, always in the thread that calls this tracker.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        mode: str = "auto",
        project: str = "pushforward",
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        job_type: str = "fit",
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = Path(folder).resolve()
        self.mode = _MODES.get(os.environ.get("WANDB_MODE", ""), "auto") if mode == "auto" else mode
        self.location: str | None = None
        self._options: dict[str, Any] = {
            "config": dict(config),
            "project": project if project != "pushforward" or not os.environ.get("WANDB_PROJECT") else None,
            "name": name,
            "group": group,
            "tags": list(dict.fromkeys(tag[:64] for tag in tags if tag)),
            "job_type": job_type,
        }
        self._warn = warn
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._calls: queue.Queue[Callable[[Any], object] | None] = queue.Queue(_QUEUE_ROWS)
        self._gave_up = threading.Event()
        self._exit_code = 0
        self._left_out = ""
        self._thread: threading.Thread | None = None
        if self.mode != "off":
            # A daemon: a client that never answers must not keep the process alive.
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Queue a row of numbers."""
        row = {**metrics, "global_step": step, "seconds": seconds}
        self._queue(lambda run: run.log(row))

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Queue a picture; the file is read when its turn comes."""

        def log(run: Any) -> None:
            import wandb

            run.log({key: wandb.Image(str(path), caption=caption or None), "global_step": step})

        self._queue(log)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Queue a table; keep it to a thousand rows, which take the client a tenth of a second."""
        names: list[str | int] = list(columns)
        data = [list(row) for row in rows]

        def log(run: Any) -> None:
            import wandb

            run.log({key: wandb.Table(columns=names, data=data), "global_step": step})

        self._queue(log)

    def reference_lines(self, values: Mapping[str, float], last_step: int) -> None:
        """Queue numbers at the first and at the last step, between which a chart draws a line."""
        ends = [{**values, "global_step": step} for step in (0, last_step)]
        self._queue(lambda run: [run.log(row) for row in ends])

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Queue the files of a folder as an artifact of type ``model`` with the alias ``best``.

        The client is told that they do not change: it points at them where they are and makes no copy.
        """
        metadata = dict(facts)

        def log(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
            for path in sorted(Path(folder).resolve().iterdir()):
                artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
            try:
                run.log_artifact(artifact, aliases=["best"])
            except OSError:  # the client itself has gone
                raise
            except Exception as error:
                # The one call that asks the server before it records: without network it takes twenty seconds.
                self._left_out = f"W&B did not take the model ({_short(error)})"

        self._queue(log)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Queue final numbers."""
        final = dict(values)
        self._queue(lambda run: run.summary.update(final))

    def alert(self, title: str, text: str) -> None:
        """Queue a message to the owner of the run."""
        self._queue(lambda run: run.alert(title, text, level="ERROR"))

    def finish(self, exit_code: int = 0) -> None:
        """Wait until everything is recorded, at most about as long as the client's own timeouts."""
        if self._thread is None:
            return
        self._exit_code = exit_code
        limit = _setting("WANDB_INIT_TIMEOUT", 30) + _setting("WANDB_FINISH_TIMEOUT", 60) + 15
        if self._gave_up.is_set():  # the thread is leaving by itself, if it still can
            limit = 15.0
        until = time.monotonic() + limit
        while self._thread.is_alive() and not self._gave_up.is_set() and time.monotonic() < until:
            with contextlib.suppress(queue.Full):
                self._calls.put(None, timeout=0.1)
                break
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive() and not self._gave_up.is_set():
            self._warnings.put(f"W&B did not finish within {limit:.0f} s; the run is in {self.folder / 'wandb'}")
        self._thread = None
        self._gave_up.set()
        self._pass_on_warnings()

    def _queue(self, call: Callable[[Any], object]) -> None:
        if not self._gave_up.is_set():
            try:
                self._calls.put_nowait(call)
            except queue.Full:
                self._give_up(f"W&B takes no more rows ({_QUEUE_ROWS} wait)")
        self._pass_on_warnings()

    def _pass_on_warnings(self) -> None:
        while not self._warnings.empty():
            self._warn(self._warnings.get())

    def _give_up(self, reason: str) -> None:
        if not self._gave_up.is_set():
            self._gave_up.set()
            self._warnings.put(f"{reason}; it is off for the rest of this fit, metrics.jsonl goes on")

    def _work(self) -> None:
        data_dir = os.environ.get("WANDB_DATA_DIR")
        run = None
        try:
            if data_dir is None:
                # The client stages tables and artifacts in the home folder, where a moved run loses them.
                os.environ["WANDB_DATA_DIR"] = str(self.folder / "wandb" / "data")
            run = self._start()
            while (call := self._calls.get()) is not None and not self._gave_up.is_set():
                call(run)
            self._finish(run)
        except ImportError:
            self._give_up("W&B is not installed (pip install wandb)")
        except BaseException as error:  # the client raises what it likes, SystemExit and assertions included
            self._give_up(f"W&B failed ({_short(error)})")
            _abandon(run)
        finally:
            if data_dir is None:
                os.environ.pop("WANDB_DATA_DIR", None)

    def _finish(self, run: Any) -> None:
        """End the run, and say so where the server has not got all of it."""
        trouble = self._left_out
        try:
            run.finish(exit_code=self._exit_code)
        except TimeoutError:
            trouble = f"W&B did not take everything within {_setting('WANDB_FINISH_TIMEOUT', 60):g} s"
        if trouble:
            self._warnings.put(
                f"{trouble}; it is in the run folder, upload it with: pushforward wandb sync {self.folder}"
            )

    def _start(self) -> Any:
        """Start the client, online if asked for and possible, else offline."""
        import wandb

        fields: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "init_timeout": _setting("WANDB_INIT_TIMEOUT", 30),
            "finish_timeout": _setting("WANDB_FINISH_TIMEOUT", 60),
            "finish_timeout_raises": True,
        }
        known = wandb.Settings.model_fields
        settings = wandb.Settings(**{name: value for name, value in fields.items() if name in known})
        with contextlib.suppress(Exception):  # silences what the client says before a run exists
            wandb.setup(settings=wandb.Settings(silent=True))
        mode = self.mode
        if mode in ("auto", "online") and not _logged_in():
            if mode == "online":
                self._warnings.put("W&B has no API key (wandb login); recording offline")
            mode = "offline"
        options: dict[str, Any] = {
            **self._options,
            "dir": str(self.folder),
            "id": self._run_id(),
            "resume": "allow",
            "reinit": "create_new",  # leaves a run that the caller has open alone
            "settings": settings,
        }
        if mode != "offline":
            try:
                return self._started(wandb.init(mode="online", **options))
            except Exception as error:
                self._warnings.put(f"W&B is not reachable ({_short(error)}); recording offline")
                if wandb.run is None:
                    # The failed start holds on to the id inside the client's process. A run that is resumed must
                    # keep its id, so that process goes, unless the caller has a run in it.
                    wandb.teardown()
                    wandb.setup(settings=wandb.Settings(silent=True))
        return self._started(wandb.init(mode="offline", **options))

    def _started(self, run: Any) -> Any:
        run.define_metric("global_step", hidden=True)
        run.define_metric("*", step_metric="global_step", step_sync=True)
        self.location = run.url or str(Path(run.dir).parent)
        return run

    def _run_id(self) -> str:
        """Return the id of this run: the one in the folder, or of the sweep, or a new one."""
        kept = self.folder / "wandb" / "id"
        with contextlib.suppress(OSError):
            if found := kept.read_text(encoding="utf-8").strip():
                return found
        alphabet = string.ascii_lowercase + string.digits
        new = os.environ.get("WANDB_RUN_ID") or "".join(secrets.choice(alphabet) for _ in range(8))
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(new + "\n", encoding="utf-8")
        return new


def _logged_in() -> bool:
    """Tell whether the client finds an API key, without a prompt and without the network."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an older client, which can only be asked for the variable
        return bool(os.environ.get("WANDB_API_KEY"))
    except Exception:  # a key that is malformed
        return False


def _abandon(run: Any) -> None:
    """Leave a failed client such that it does not print a traceback when the process ends."""
    import wandb

    with contextlib.suppress(BaseException):
        if run is not None:
            run.finish(exit_code=1)
            return
    with contextlib.suppress(BaseException):
        wandb.teardown(exit_code=1)


def _setting(variable: str, default: float) -> float:
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return default


def _short(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}").strip(": ")
    return text if len(text) <= 120 else f"{text[:117]}..."
