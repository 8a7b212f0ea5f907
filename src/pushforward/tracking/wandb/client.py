"""The process that talks to Weights & Biases: ``python -m pushforward.tracking.wandb.client``, started by the tracker.

It reads one JSON object a line from stdin, the first one saying what the run is, and answers on stdout with what the
user should hear. Whatever the client does to its process (it prints, keeps threads, waits, dies), it does to this one.
When stdin ends without a word, the fit was killed: the record is finished with what there is.
"""

import contextlib
import json
import os
import re
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


class Client:
    """A run of Weights & Biases, from what the tracker asks.

    Args:
        tell: Called with ``warning=`` or ``location=``.
        folder: The run folder.
        mode: ``auto``, ``online`` or ``offline``.
        options: Arguments of ``wandb.init``.
        fit: Process of the fit, whose use of the machine is recorded.
    """

    def __init__(
        self, tell: Callable[..., None], *, folder: str, mode: str, options: Mapping[str, Any], fit: int
    ) -> None:
        self._tell = tell
        self._folder = Path(folder)
        self._mode = mode
        self._options = dict(options)
        self._fit = fit
        self._left_out = ""
        self._run: Any = None

    def start(self) -> None:
        """Start the client, online if asked for and possible, else offline."""
        import wandb

        # The client stages tables and artifacts in the home folder, where a moved run loses them.
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
        with contextlib.suppress(Exception):  # silences what the client says before a run exists
            wandb.setup(settings=wandb.Settings(silent=True))
        mode = self._mode
        if mode in ("auto", "online") and not _logged_in():
            if mode == "online":
                self._tell(warning="W&B has no API key (wandb login); recording offline")
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
                self._tell(warning=f"W&B is not reachable ({short(error)}); recording offline")
                # The failed start holds on to the id inside the client's service, so that goes.
                wandb.teardown()
                wandb.setup(settings=wandb.Settings(silent=True))
        return self._started(wandb.init(mode="offline", **options))

    def call(self, what: str, value: Any) -> None:
        """Do what a line asks for."""
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
                self._ask("a table", lambda: run.log({value["key"]: table, "global_step": value["step"]}))
            case "summary":
                run.summary.update(value)
            case "alert":
                run.alert(value["title"], value["text"], level="ERROR")
            case "model":
                self._log_model(Path(value["folder"]), value["facts"])

    def finish(self, exit_code: int) -> None:
        """End the run, and say so where the server has not got all of it."""
        trouble = self._left_out
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            trouble = f"W&B did not take everything within {seconds_from('WANDB_FINISH_TIMEOUT', 60):g} s"
        if trouble:
            upload = f"pushforward wandb sync {self._folder}"
            self._tell(warning=f"{trouble}; it is in the run folder, upload it with: {upload}")

    def _log_model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        import wandb

        artifact = wandb.Artifact(f"model-{self._run.id}", type="model", metadata=dict(facts))
        for path in sorted(folder.iterdir()):
            # Told that the files do not change, the client points at them where they are and makes no copy.
            artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
        self._ask("the model", lambda: self._run.log_artifact(artifact, aliases=["best"]))

    def _ask(self, what: str, call: Callable[[], object]) -> None:
        """Make a call that asks the server before it records: without network each takes twenty seconds to fail."""
        if self._left_out:
            return
        try:
            if not self._run.offline and not _is_there(str(self._run.settings.base_url)):
                raise RuntimeError("no network")
            call()
        except OSError:  # the service of the client has gone
            raise
        except Exception as error:
            self._left_out = f"W&B did not take {what} ({short(error)})"

    def _started(self, run: Any) -> None:
        run.define_metric("global_step", hidden=True)
        run.define_metric("*", step_metric="global_step", step_sync=True)
        self._run = run
        self._tell(location=run.url or str(Path(run.dir).parent))

    def _run_id(self) -> str:
        """Return the id of this run: the one in the folder, or of the sweep, or a new one."""
        kept = self._folder / "wandb" / "id"
        with contextlib.suppress(OSError):
            if found := kept.read_text(encoding="utf-8").strip():
                return found
        alphabet = string.ascii_lowercase + string.digits
        new = os.environ.get("WANDB_RUN_ID") or "".join(secrets.choice(alphabet) for _ in range(8))
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(new + "\n", encoding="utf-8")
        return new


def seconds_from(variable: str, default: float) -> float:
    """A time limit from the environment."""
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return default


def short(error: BaseException) -> str:
    """An error of the client in one line that is not too long."""
    text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}").strip(": ")
    return text if len(text) <= 120 else f"{text[:117]}..."


def _is_there(url: str) -> bool:
    """Tell whether something listens at a URL; behind a proxy nobody can tell, and it is believed."""
    parts = urllib.parse.urlsplit(url)
    if parts.hostname is None or urllib.request.getproxies().get(parts.scheme):
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=5.0).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Do what stdin says until it ends."""
    # The fit comes first: threads of a product that wait for one whose core is taken are slow all together.
    with contextlib.suppress(OSError, AttributeError):
        os.nice(15)
    # Answers go where stdout went; what the client prints goes nowhere.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    # The fit decides when to end; a signal to all processes of a job reaches it too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def tell(**answer: str) -> None:
        with contextlib.suppress(OSError):  # the fit has been killed
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

    try:
        import wandb  # noqa: F401  # takes a while, and the first line may be as long in coming

        opening = sys.stdin.readline()
        if not opening:
            return  # the fit never came to its record
        client = Client(tell, **json.loads(opening)["open"])
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
        tell(gave_up="W&B is not installed (pip install wandb)")
    except BaseException as error:  # the client raises what it likes, SystemExit and assertions included
        tell(gave_up=f"W&B failed ({short(error)})")
        os._exit(1)  # what it does when a process ends in order has no point any more, and may take long
    tell(done="")


def _logged_in() -> bool:
    """Tell whether the client finds an API key, without a prompt and without the network."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an older client, which can only be asked for the variable
        return bool(os.environ.get("WANDB_API_KEY"))
    except Exception:  # a key that is malformed
        return False


if __name__ == "__main__":
    main()
