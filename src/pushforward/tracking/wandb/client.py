"""The process that runs the W&B client: ``python -m pushforward.tracking.wandb.client``, started by the tracker.

It reads one JSON object per line from stdin, the first of which opens the run, and answers on stdout with warnings and
the location of the run. Printing, threads, waiting and crashes of the W&B library stay in this process. If stdin ends
without a ``finish`` line, the fit was killed, and the record is finished as it is.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import string
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pushforward.common.text import shorten


class Client:
    """A W&B run that does what the tracker asks for.

    Args:
        answer: Called with ``warning=`` or ``location=``.
        folder: The run folder.
        mode: ``auto``, ``online`` or ``offline``.
        options: Arguments of ``wandb.init``.
        fit: Process id of the fit, whose use of the machine is recorded.
    """

    def __init__(
        self, answer: Callable[..., None], *, folder: str, mode: str, options: Mapping[str, Any], fit: int
    ) -> None:
        self._answer = answer
        self._folder = Path(folder)
        self._mode = mode
        self._options = dict(options)
        self._fit = fit
        self._missing = ""
        self._run: Any = None

    def start(self) -> None:
        """Start the run, online if asked for and possible, else offline."""
        import wandb

        # By default the library stages tables and artifacts in the home folder, where a moved run loses them.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._folder / "wandb" / "data"))
        fields: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "init_timeout": seconds_from("WANDB_INIT_TIMEOUT", 30),
            "finish_timeout": seconds_from("WANDB_FINISH_TIMEOUT", 60),
            "finish_timeout_raises": True,
            "program": "pushforward",
            "x_stats_pid": self._fit,
        }
        known = wandb.Settings.model_fields
        settings = wandb.Settings(**{name: value for name, value in fields.items() if name in known})
        with contextlib.suppress(Exception):  # silences messages before the run exists
            wandb.setup(settings=wandb.Settings(silent=True))
        mode = self._mode
        if mode in ("auto", "online") and not _logged_in():
            if mode == "online":
                self._answer(warning="W&B has no API key (wandb login); recording offline")
            mode = "offline"
        options: dict[str, Any] = {
            **self._options,
            "dir": str(self._folder),
            "id": self._run_id(),
            "resume": "allow",
            "settings": settings,
        }
        if mode != "offline":
            try:
                return self._started(wandb.init(mode="online", **options))
            except Exception as error:
                self._answer(warning=f"W&B is not reachable ({_describe(error)}); recording offline")
                # The library's service still holds the id of the failed run.
                wandb.teardown()
                wandb.setup(settings=wandb.Settings(silent=True))
        return self._started(wandb.init(mode="offline", **options))

    def call(self, what: str, value: Any) -> None:
        """Execute a line: the name of a call, and its value."""
        import wandb

        run = self._run
        match what:
            case "log":
                run.log(value)
            case "image":
                picture = wandb.Image(value["path"], caption=value["caption"] or None)
                run.log({value["key"]: picture, "global_step": value["step"]})
            case "table":
                table = wandb.Table(columns=value["columns"], data=value["rows"])
                self._call_online("a table", lambda: run.log({value["key"]: table, "global_step": value["step"]}))
            case "summary":
                run.summary.update(value)
            case "alert":
                run.alert(value["title"], value["text"], level="ERROR")
            case "model":
                self._log_model(Path(value["folder"]), value["facts"])

    def finish(self, exit_code: int) -> None:
        """Finish the run, and warn if the server does not have all of it."""
        problem = self._missing
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            problem = f"W&B did not take everything within {seconds_from('WANDB_FINISH_TIMEOUT', 60):g} s"
        if problem:
            upload = f"pushforward wandb sync {self._folder}"
            self._answer(warning=f"{problem}; it is in the run folder, upload it with: {upload}")

    def _log_model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        import wandb

        artifact = wandb.Artifact(f"model-{self._run.id}", type="model", metadata=dict(facts))
        for path in sorted(folder.iterdir()):
            # "immutable": the library refers to the file in place and does not copy it.
            artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
        self._call_online("the model", lambda: self._run.log_artifact(artifact, aliases=["best"]))

    def _call_online(self, what: str, call: Callable[[], object]) -> None:
        """Make a call that asks the server before it records, unless one failed: each takes 20 s without network."""
        if self._missing:
            return
        try:
            if not self._run.offline and not _is_reachable(str(self._run.settings.base_url)):
                raise RuntimeError("no network")
            call()
        except OSError:  # the library's service has ended
            raise
        except Exception as error:
            self._missing = f"W&B did not take {what} ({_describe(error)})"

    def _started(self, run: Any) -> None:
        run.define_metric("global_step", hidden=True)
        run.define_metric("*", step_metric="global_step", step_sync=True)
        self._run = run
        self._answer(location=run.url or str(Path(run.dir).parent))

    def _run_id(self) -> str:
        """Return the id of the run: from the run folder, from the environment (a sweep), or a new one."""
        file = self._folder / "wandb" / "id"
        with contextlib.suppress(OSError):
            if found := file.read_text(encoding="utf-8").strip():
                return found
        alphabet = string.ascii_lowercase + string.digits
        new = os.environ.get("WANDB_RUN_ID") or "".join(secrets.choice(alphabet) for _ in range(8))
        file.parent.mkdir(exist_ok=True)
        file.write_text(new + "\n", encoding="utf-8")
        return new


def seconds_from(variable: str, default: float) -> float:
    """Return a time limit from the environment."""
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return default


def _describe(error: BaseException) -> str:
    """Return the type and message of an error on one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return shorten(text.strip(": "), 120)


def _is_reachable(url: str) -> bool:
    """Return whether a server listens at a URL; True behind a proxy, where this cannot be checked."""
    parts = urllib.parse.urlsplit(url)
    if parts.hostname is None or urllib.request.getproxies().get(parts.scheme):
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=5.0).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Execute the lines of stdin until it ends."""
    # The fit has priority: its parallel operations wait for the slowest of their threads.
    with contextlib.suppress(OSError, AttributeError):
        os.nice(15)
    # Answers go to the original stdout; what the library prints is discarded.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    # The fit decides when to end; a signal to all processes of a job reaches the fit too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def answer(**message: str) -> None:
        with contextlib.suppress(OSError):  # the fit was killed
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    try:
        import wandb  # noqa: F401  # slow, so it is imported before the first line arrives

        opening = sys.stdin.readline()
        if not opening:
            return  # the fit ended before it opened a run
        client = Client(answer, **json.loads(opening)["open"])
        client.start()
        exit_code = 1
        for line in sys.stdin:
            ((what, value),) = json.loads(line).items()
            if what == "finish":
                exit_code = value
                break
            client.call(what, value)
        client.finish(exit_code)
    except ImportError:
        answer(gave_up="W&B is not installed (pip install wandb)")
    except BaseException as error:  # the library may raise anything, including SystemExit and assertions
        answer(gave_up=f"W&B failed ({_describe(error)})")
        os._exit(1)  # the library's exit handlers may take long
    answer(done="")


def _logged_in() -> bool:
    """Return whether the library finds an API key, without a prompt and without network."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an older release without these arguments
        return bool(os.environ.get("WANDB_API_KEY"))
    except Exception:  # a malformed key
        return False


if __name__ == "__main__":
    main()
