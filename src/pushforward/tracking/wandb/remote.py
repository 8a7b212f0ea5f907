"""Ask the Weights & Biases server what it has of a run, through the public API of the W&B library.

The library is called in a separate process, because it prints, keeps threads and a service, and waits without a limit
for a server that does not answer. A process can be given a time limit.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pushforward.common.errors import RunError
from pushforward.common.text import one_line, shorten

RUN_VARIABLES = (
    "WANDB_RUN_ID",
    "WANDB_RESUME",
    "WANDB_NAME",
    "WANDB_RUN_NAME",  # undocumented
    "WANDB_RUN_GROUP",
    "WANDB_SWEEP_ID",
    "WANDB_SWEEP_PARAM_PATH",
)
"""Environment variables that belong to one run; processes of other runs must not inherit them."""


class WandbServerError(RunError):
    """The server cannot be reached, or gives a wrong answer."""


class WandbLoginError(RunError):
    """There is no API key, or the server rejects it."""

    exit_code = 2


@dataclass(frozen=True)
class RemoteArtifact:
    """An artifact on the server; ``files`` are (size, digest) by name."""

    name: str
    version: str
    type: str
    state: str
    digest: str
    aliases: tuple[str, ...]
    files: dict[str, tuple[int, str | None]]


@dataclass(frozen=True)
class RemoteRun:
    """A run on the server: number of history rows, names of files, logged artifacts."""

    state: str
    rows: int
    url: str
    files: frozenset[str]
    artifacts: tuple[RemoteArtifact, ...]


def default_entity(timeout: float = 20.0) -> str:
    """Return the default entity (user or team) of the API key.

    Raises:
        WandbLoginError: If there is no valid API key.
        WandbServerError: If the server does not answer in time.
    """
    return str(_ask({"timeout": timeout})["entity"])


def remote_run(entity: str, project: str, run_id: str, timeout: float = 60.0) -> RemoteRun | None:
    """Return a run as the server has it, ``None`` if it does not have the run.

    Raises:
        WandbLoginError: If there is no valid API key.
        WandbServerError: If the server does not answer in time.
    """
    found = _ask({"timeout": timeout, "run": [entity, project, run_id]})["run"]
    if found is None:
        return None
    artifacts = []
    for facts in found.pop("artifacts"):
        files = {name: (size, digest) for name, size, digest in facts.pop("files")}
        artifacts.append(RemoteArtifact(**facts | {"aliases": tuple(facts["aliases"])}, files=files))
    return RemoteRun(**found | {"files": frozenset(found["files"])}, artifacts=tuple(artifacts))


def client_environment(scratch: Path) -> dict[str, str]:
    """Return the environment for a W&B process that is not a run and writes only to the folder ``scratch``."""
    found = {name: value for name, value in os.environ.items() if name not in (*RUN_VARIABLES, "WANDB_MODE")}
    return found | {"WANDB_DIR": str(scratch)}


def _ask(question: Mapping[str, Any]) -> dict[str, Any]:
    """Run :func:`_answer` in a separate process."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__, json.dumps(question)],
                env=client_environment(Path(scratch)),
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=3 * question["timeout"] + 15,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise WandbServerError(f"the W&B server {_server()} does not answer") from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise WandbServerError(f"the W&B client failed: {last}") from None
    match answer.pop("failure", None):
        case "none":
            raise WandbServerError("W&B is not installed (pip install wandb)")
        case "key":
            raise WandbLoginError("W&B has no API key: run `wandb login`, or set WANDB_API_KEY")
        case "login":
            detail = answer["detail"]
            raise WandbLoginError(f"W&B does not take the API key ({detail}): run `wandb login`, or set WANDB_API_KEY")
        case "server":
            raise WandbServerError(f"the W&B server {answer['server']} cannot be reached ({answer['detail']})")
    return dict(answer)


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "")


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the server in this process."""
    try:
        import requests
        import wandb
        from wandb.errors import AuthenticationError, CommError, UsageError
    except ImportError:
        return {"failure": "none"}
    timeout = float(question["timeout"])
    settings = wandb.setup().settings
    server = str(settings.base_url)
    key = settings.api_key or settings.identity_token_file or requests.utils.get_netrc_auth(server)
    try:
        # Without network, the library waits long and then reports wrong credentials.
        requests.get(server, timeout=(min(timeout, 10.0), timeout), allow_redirects=False)
        api = wandb.Api(timeout=max(1, round(timeout)))
        entity = api.default_entity
        if "run" not in question:
            return {"entity": entity}
        try:
            run = api.run("/".join(question["run"]))
        except (CommError, ValueError) as error:
            if "Could not find run" in str(error):
                return {"run": None}
            raise
        return {"run": _facts(run)}
    except AuthenticationError as error:
        text = shorten(one_line(error), 160)
        return {"failure": "server" if "did not respond" in text else "login", "server": server, "detail": text}
    except UsageError:
        return {"failure": "key"}
    except requests.RequestException as error:
        if not key:
            return {"failure": "key"}
        return {"failure": "server", "server": server, "detail": type(error).__name__}
    except Exception as error:
        return {"failure": "server", "server": server, "detail": shorten(one_line(error), 160)}


def _facts(run: Any) -> dict[str, Any]:
    """Return the fields of a :class:`RemoteRun` as JSON values."""
    artifacts = []
    for artifact in run.logged_artifacts():
        collection, _, version = artifact.name.partition(":")
        artifacts.append(
            {
                "name": collection,
                "version": version,
                "type": artifact.type,
                "state": artifact.state,
                "digest": artifact.digest,
                "aliases": artifact.aliases,
                "files": [(file.name, file.size, file.digest or file.md5) for file in artifact.files()],
            }
        )
    return {
        "state": run.state,
        "rows": run.historyLineCount or 0,
        "url": run.url,
        "files": [file.name for file in run.files(per_page=500)],
        "artifacts": artifacts,
    }


if __name__ == "__main__":
    print("\n" + json.dumps(_answer(json.loads(sys.argv[1]))))
