"""A Weights & Biases server for tests: in this process, on the loopback interface, on a free port, standard library.

The real client runs against it in processes of its own: online runs, resuming, media, artifacts, ``wandb sync``,
``wandb sweep`` and ``wandb agent``, workspaces, and the public ``wandb.Api``::

    def test_online(wandb_server: WandbServer) -> None:
        subprocess.run([sys.executable, "-c", PROGRAM], env=wandb_server.environment, check=True, timeout=60)
        run = wandb_server.run("my-id")                 # or: (run,) = wandb_server.runs.values()
        assert (run.state, run.exit_code) == ("finished", 0)
        assert [row["loss"] for row in run.history] == [3, 2, 1]
        assert run.summary["best"] == 1 and run.config["flow.layers"] == 5
        assert run.alerts == [("title", "text")]
        artifact = run.artifact("model-my-id")
        assert (artifact.state, artifact.aliases) == ("COMMITTED", ["latest", "best"])
        assert artifact.files["model.safetensors"] == b"..."

``environment`` is a whole environment for a subprocess: a home of its own, a key, this server; take ``WANDB_API_KEY``
out of it for a user who has not logged in. ``sweep_configurations`` are handed to agents, one for each dictionary,
then they are told to exit. ``views`` are the saved workspaces.

Trouble: ``server.misbehave("silent")`` reads requests and never answers, ``"refuse"`` closes the port, ``"error"``
answers 500; ``after_rows=10`` begins when so many rows of history have come. ``server.behave()`` ends it.
``server.delay = 0.2`` is how long every answer takes. ``server.lose = {"model.safetensors"}`` takes uploads of these
files and forgets them. What the client asks and this server does not know stands in ``server.unknown``; the fixture
``wandb_server`` fails the test if there is any.
"""

import base64
import contextlib
import gzip
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from tests.graphql_answers import answer
from tests.lent_caches import lend_caches

KEY = "0123456789abcdef" * 2 + "01234567"
ENTITY = "tester"
_NOW = "2026-01-01T00:00:00Z"
# Reports of the client about itself.
_TELEMETRY = ("/sdk/otel", "/sentry", "/api/sdk/otel")


def _id(*parts: object) -> str:
    return base64.b64encode(":".join(map(str, parts)).encode()).decode()


def _edges(nodes: list[Any]) -> dict[str, Any]:
    """A page that holds all there is."""
    return {
        "totalCount": len(nodes),
        "pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False},
        "edges": [{"node": node, "cursor": str(place)} for place, node in enumerate(nodes)],
    }


@dataclass
class Artifact:
    """One version of an artifact, as the server has it."""

    index: int
    entity: str
    project: str
    run: str
    name: str
    type: str
    digest: str
    aliases: list[str]
    metadata: Any = None
    description: str | None = None
    version: int = 0
    state: str = "PENDING"
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Identity in GraphQL."""
        return _id("Artifact", self.index)

    @property
    def references(self) -> dict[str, str]:
        """Entries of the manifest that lie elsewhere."""
        entries = self.manifest.get("contents", {})
        return {path: entry["ref"] for path, entry in entries.items() if "ref" in entry}


@dataclass
class Run:
    """A run, as the server has it."""

    id: str
    entity: str
    project: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    internal_config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    alerts: list[tuple[str, str]] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    starts: int = 0
    state: str = "running"
    exit_code: int | None = None

    def artifact(self, name: str) -> Artifact:
        """The last artifact that the run logged under a name."""
        return next(artifact for artifact in reversed(self.artifacts) if artifact.name == name)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows by step: one that comes again takes the place of the first."""
        return [self.rows[step] for step in sorted(self.rows)]

    @property
    def tags(self) -> list[str]:
        """Tags."""
        return list(self.fields.get("tags") or [])

    @property
    def group(self) -> str | None:
        """Group."""
        return self.fields.get("groupName")

    @property
    def name(self) -> str | None:
        """Displayed name."""
        return self.fields.get("displayName")


class WandbServer:
    """The server; use it as a context manager.

    Args:
        home: A folder for the environment's home, caches and configuration.
    """

    def __init__(self, home: Path) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.views: list[dict[str, Any]] = []
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.sweep_configurations: list[dict[str, Any]] = []
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.delay = 0.0
        self.lose: set[str] = set()
        self._home = home
        self._trouble: str | None = None
        self._after_rows = 0
        self._ended = threading.Event()
        self._lock = threading.RLock()
        self._blobs: dict[str, bytes] = {}
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a process whose client talks to this server and sees nothing of the user's own settings."""
        home = self._home
        home.mkdir(parents=True, exist_ok=True)
        lend_caches(home / "xdg-cache")
        dropped = ("WANDB", "XDG_", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        found = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return found | {
            "HOME": str(home),
            "NETRC": str(home / "netrc"),
            "XDG_CONFIG_HOME": str(home / "xdg-config"),
            "XDG_DATA_HOME": str(home / "xdg-data"),
            "XDG_CACHE_HOME": str(home / "xdg-cache"),
            "WANDB_CACHE_DIR": str(home / "cache"),
            "WANDB_CONFIG_DIR": str(home / "config"),
            "WANDB_API_KEY": KEY,
            "WANDB_BASE_URL": self.url,
            "OMP_NUM_THREADS": "1",
        }

    def run(self, run_id: str) -> Run:
        """The run with an id."""
        return self.runs[run_id]

    def misbehave(self, how: Literal["silent", "refuse", "error"], *, after_rows: int = 0) -> None:
        """Begin with trouble, now or after so many rows of history."""
        with self._lock:
            self._trouble, self._after_rows = how, after_rows
            self._start_trouble()

    def behave(self) -> None:
        """End the trouble; requests that wait for an answer lose their connection."""
        with self._lock:
            self._trouble = None
            self._ended.set()
            self._ended = threading.Event()
            self._drop_connections()
            if self._server is None:
                self._listen()

    def __enter__(self) -> "WandbServer":
        self._listen()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._hang_up()

    def _listen(self) -> None:
        server = self

        class Handler(_Handler):
            owner = server

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """The client resets its connections when it ends."""

        self._server = Listener(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _hang_up(self) -> None:
        listener, self._server = self._server, None
        if listener is not None:
            listener.shutdown()
            listener.server_close()
        self._drop_connections()

    def _drop_connections(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _in_trouble(self) -> str | None:
        rows = sum(len(run.rows) for run in self.runs.values())
        return self._trouble if rows >= self._after_rows else None

    def _start_trouble(self) -> None:
        if self._in_trouble() == "refuse" and self._server is not None:
            threading.Thread(target=self._hang_up, daemon=True).start()

    # What the client sends.

    def _stream(self, run_id: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Take rows of history, summary and output, each at its place in its file."""
        run = self.runs[run_id]
        for name, part in (sent.get("files") or {}).items():
            lines, offset = part["content"], part.get("offset", 0)
            if name == "wandb-history.jsonl":
                rows = [json.loads(line) for line in lines]
                run.rows |= {row["_step"]: row for row in rows}
            elif name == "wandb-events.jsonl":
                run.events[offset:] = [json.loads(line) for line in lines]
            elif name == "wandb-summary.json":
                run.summary = json.loads(lines[-1])
            elif name == "output.log":
                run.output[offset:] = lines
            else:
                self.unknown.append(f"file_stream: {name}")
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")
            run.state = "finished" if run.exit_code == 0 else "failed"
        self._start_trouble()
        return {"limits": {}}

    def _upload(self, path: str, body: bytes) -> None:
        """Keep a file that was uploaded where :meth:`_place` said."""
        kind, owner, name = path.split("/", 2)
        if Path(name).name in self.lose:
            return
        self._blobs[path] = body
        if kind == "run":
            self.runs[owner].files[name] = body
        elif kind == "manifest":
            self.artifacts[int(owner)].manifest = json.loads(body)
        elif kind == "artifact":
            self.artifacts[int(owner)].files[name] = body

    def _place(self, kind: str, owner: object, name: str) -> str:
        return f"{self.url}/blobs/{kind}/{owner}/{quote(name)}"

    def _graphql(self, sent: dict[str, Any]) -> dict[str, Any]:
        found = answer(sent["query"], sent.get("variables") or {}, self._root(), self.unknown.append)
        return {"data": found}

    def _root(self) -> dict[str, Any]:
        viewer = self._user()
        return {
            "viewer": viewer,
            "serverInfo": {
                "features": [],
                "cliVersionInfo": {"max_cli_version": "99.0.0"},
                "latestLocalVersionInfo": None,
            },
            "entity": lambda name: self._entity(name),
            "project": lambda name=None, entityName=None: self._project(name, entityName),
            "model": lambda name=None, entityName=None: self._project(name, entityName),
            "models": lambda entityName=None, **page: _edges(
                [self._project(name, entityName) for name in sorted({run.project for run in self.runs.values()})]
            ),
            "artifact": lambda id: next((self._artifact(a) for a in self.artifacts if a.id == id), None),
            "artifactCollection": lambda id: next(
                (self._collection(a) for a in self.artifacts if self._collection_id(a) == id), None
            ),
            "clientIDMapping": lambda clientID: None,
            "upsertBucket": lambda input: self._upsert_run(input),
            "createRunFiles": lambda input: {
                "runID": _id("Run", input["runName"]),
                "uploadHeaders": [],
                "files": [
                    {"name": name, "uploadUrl": self._place("run", input["runName"], name)} for name in input["files"]
                ],
            },
            "markRunFilesUploaded": lambda input: {"success": True},
            "createArtifact": lambda input: self._create_artifact(input),
            "createArtifactManifest": lambda input: self._manifest(input["artifactID"]),
            "updateArtifactManifest": lambda input: self._manifest(input["artifactManifestID"]),
            "createArtifactFiles": lambda input: {
                "files": _edges([self._create_artifact_file(spec) for spec in input["artifactFiles"]])
            },
            "commitArtifact": lambda input: self._commit(input["artifactID"]),
            "useArtifact": lambda input: {"artifact": self._artifact(self._by_id(input["artifactID"]))},
            "notifyScriptableRunAlert": lambda input: self._alert(input),
            "upsertSweep": lambda input: self._upsert_sweep(input),
            "createAgent": lambda input: {"agent": {"id": _id("Agent", 1)}},
            "agentHeartbeat": lambda input: self._heartbeat(input),
            "upsertView": lambda input: self._upsert_view(input),
        }

    def _user(self) -> dict[str, Any]:
        return {
            "__typename": "User",
            "id": _id("User", 1),
            "name": "Tester",
            "username": ENTITY,
            "email": "tester@example.org",
            "entity": ENTITY,
            "admin": False,
            "flags": "{}",
            "deletedAt": None,
            "apiKeys": _edges([]),
            "teams": _edges([{"name": ENTITY}]),
            "organizations": [],
        }

    def _entity(self, name: str | None) -> dict[str, Any]:
        name = name or ENTITY
        return {
            "id": _id("Entity", name),
            "name": name,
            "organization": None,
            "xxhashDigestsEnabled": False,
            "isTeam": False,
        }

    def _project(self, name: str | None, entity: str | None) -> dict[str, Any] | None:
        entity, project = entity or ENTITY, name or "uncategorized"

        def run_named(name: str, missingOk: bool = False) -> dict[str, Any] | None:
            run = self.runs.get(name)
            return self._run(run) if run and (run.entity, run.project) == (entity, project) else None

        def here() -> list[Artifact]:
            return [a for a in self.artifacts if (a.entity, a.project) == (entity, project)]

        def collection(name: str, type: str | None = None) -> dict[str, Any] | None:
            found = [a for a in here() if a.name == name and type in (None, a.type)]
            return self._collection(found[-1]) if found else None

        def artifact_type(name: str) -> dict[str, Any] | None:
            if not any(a.type == name for a in here()):
                return None
            return {
                "__typename": "ArtifactType",
                "id": _id("ArtifactType", name),
                "name": name,
                "description": None,
                "createdAt": _NOW,
                "artifactCollection": lambda name: collection(name),
            }

        def artifact(name: str) -> dict[str, Any] | None:
            found = self._named(here(), name)
            return self._artifact(found) if found else None

        def membership(name: str) -> dict[str, Any] | None:
            found = self._named(here(), name)
            return self._membership(found) if found else None

        def views(viewName: str | None = None, **rest: Any) -> dict[str, Any]:
            nodes = [view for view in self.views if (view["entityName"], view["projectName"]) == (entity, project)]
            return _edges([view for view in nodes if viewName in (None, view["name"])])

        runs = [run for run in self.runs.values() if (run.entity, run.project) == (entity, project)]
        return {
            "__typename": "Project",
            "id": _id("Project", entity, project),
            "internalId": _id("Project", "v1", 1),
            "name": project,
            "entity": self._entity(entity),
            "entityName": entity,
            "createdAt": _NOW,
            "isBenchmark": False,
            "readOnly": False,
            "user": None,
            "run": run_named,
            "bucket": run_named,
            "runCount": len(runs),
            "runs": lambda **page: _edges([self._run(run) for run in runs]),
            "artifact": artifact,
            "artifactType": artifact_type,
            "artifactCollection": collection,
            "artifactCollectionMembership": membership,
            "sweep": lambda sweepName: self._sweep(sweepName),
            "allViews": views,
        }

    # Runs.

    def _upsert_run(self, sent: dict[str, Any]) -> dict[str, Any]:
        name = sent.get("name") or next(run.id for run in self.runs.values() if _id("Run", run.id) == sent["id"])
        new = name not in self.runs
        run = self.runs.setdefault(
            name, Run(name, sent.get("entityName") or ENTITY, sent.get("modelName") or "uncategorized")
        )
        run.fields |= {key: value for key, value in sent.items() if value is not None}
        if sent.get("config"):
            config = {key: value["value"] for key, value in json.loads(sent["config"]).items()}
            run.internal_config = config.pop("_wandb", {})
            run.config = config
        if run.state != "running":
            run.state, run.exit_code = "running", None
            run.starts += 1
        return {"bucket": self._run(run), "inserted": new}

    def _run(self, run: Run) -> dict[str, Any]:
        config = {key: {"value": value} for key, value in run.config.items()}
        config["_wandb"] = {"value": run.internal_config}
        last = [json.dumps(json.dumps(row)) for row in run.history[-1:]]
        files = [
            {
                "id": _id("File", run.id, name),
                "name": name,
                "url": self._place("run", run.id, name),
                "directUrl": self._place("run", run.id, name),
                "sizeBytes": len(body),
                "mimetype": None,
                "updatedAt": _NOW,
                "md5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode(),
            }
            for name, body in run.files.items()
        ]
        return {
            "__typename": "Run",
            "id": _id("Run", run.id),
            "projectId": 1,
            "name": run.id,
            "displayName": run.name or run.id,
            "description": "",
            "notes": run.fields.get("notes") or "",
            "config": json.dumps(config),
            "wandbConfig": lambda keys: json.dumps({key: run.internal_config.get(key) for key in keys}),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "historyKeys": {"sets": [], "keys": {}, "lastStep": max(run.rows, default=-1)},
            "historyLineCount": len(run.rows),
            "eventsLineCount": len(run.events),
            "logLineCount": len(run.output),
            "historyTail": f"[{','.join(last)}]",
            "eventsTail": json.dumps([json.dumps(row) for row in run.events[-1:]]),
            "history": lambda **page: [json.dumps(row) for row in run.history],
            "sampledHistory": lambda **page: [],
            "state": run.state,
            "exitcode": run.exit_code,
            "heartbeatAt": _NOW,
            "shouldStop": False,
            "failed": run.state == "failed",
            "stopped": False,
            "running": run.state == "running",
            "stopRun": False,
            "group": run.group,
            "jobType": run.fields.get("jobType"),
            "tags": run.tags,
            "sweepName": run.fields.get("sweep"),
            "commit": None,
            "readOnly": False,
            "createdAt": _NOW,
            "user": {"name": "Tester", "username": ENTITY},
            "project": lambda: self._project(run.project, run.entity),
            "fileCount": len(run.files),
            "files": lambda names=None, **page: _edges([f for f in files if not names or f["name"] in names]),
            "outputArtifacts": lambda **page: _edges([self._artifact(artifact) for artifact in run.artifacts]),
            "inputArtifacts": lambda **page: _edges([]),
        }

    def _alert(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.runs[sent["runName"]].alerts.append((sent["title"], sent["text"]))
        return {"success": True}

    # Artifacts.

    def _by_id(self, identity: str) -> Artifact:
        return next(artifact for artifact in self.artifacts if artifact.id == identity)

    def _named(self, artifacts: list[Artifact], name: str) -> Artifact | None:
        """The version that ``name:alias`` stands for."""
        collection, _, alias = name.partition(":")
        found = [a for a in artifacts if a.name == collection and (not alias or alias in self._aliases(a))]
        return found[-1] if found else None

    def _aliases(self, artifact: Artifact) -> list[str]:
        """An alias belongs to the last version that was given it."""
        later = [a for a in self.artifacts if a.name == artifact.name and a.version > artifact.version]
        taken = {alias for other in later if other.state == "COMMITTED" for alias in other.aliases}
        return [alias for alias in artifact.aliases if alias not in taken] + [f"v{artifact.version}"]

    def _create_artifact(self, sent: dict[str, Any]) -> dict[str, Any]:
        name = sent.get("artifactCollectionName") or sent["artifactCollectionNames"][0]
        # `wandb sync` of a run without an entity names none here either: it is the user's.
        entity, project = sent["entityName"] or ENTITY, sent["projectName"]
        same = [a for a in self.artifacts if (a.entity, a.project, a.name) == (entity, project, name)]
        artifact = next((a for a in same if a.digest == sent["digest"] and a.state == "COMMITTED"), None)
        aliases = [alias["alias"] for alias in sent.get("aliases") or []]
        if artifact is None:
            artifact = Artifact(
                index=len(self.artifacts),
                entity=entity,
                project=project,
                run=sent.get("runName") or "",
                name=name,
                type=sent["artifactTypeName"],
                digest=sent["digest"],
                aliases=aliases,
                metadata=json.loads(sent.get("metadata") or "null"),
                description=sent.get("description"),
                version=len(same),
            )
            self.artifacts.append(artifact)
        else:
            artifact.aliases += [alias for alias in aliases if alias not in artifact.aliases]
        run = self.runs.get(sent.get("runName") or "")
        if run is not None and artifact not in run.artifacts:
            run.artifacts.append(artifact)
        return {"__typename": "CreateArtifactPayload", "artifact": self._artifact(artifact)}

    def _manifest(self, identity: str) -> dict[str, Any]:
        index = self._by_id(identity).index
        file = {
            "id": _id("File", "manifest", index),
            "uploadUrl": self._place("manifest", index, "wandb_manifest.json"),
            "uploadHeaders": [],
        }
        return {"artifactManifest": {"id": identity, "file": file}}

    def _create_artifact_file(self, spec: dict[str, Any]) -> dict[str, Any]:
        artifact = self._by_id(spec["artifactID"])
        return {
            "id": _id("File", artifact.index, spec["name"]),
            "name": spec["name"],
            "storagePath": f"wandb_artifacts/{artifact.index}/{spec['name']}",
            "uploadUrl": self._place("artifact", artifact.index, spec["name"]),
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": artifact.id},
        }

    def _commit(self, identity: str) -> dict[str, Any]:
        artifact = self._by_id(identity)
        artifact.state = "COMMITTED"
        return {"artifact": {"id": artifact.id, "digest": artifact.digest}}

    def _collection_id(self, artifact: Artifact) -> str:
        return _id("ArtifactSequence", artifact.entity, artifact.project, artifact.name)

    def _collection(self, artifact: Artifact) -> dict[str, Any]:
        key = (artifact.entity, artifact.project, artifact.name)
        versions = [a for a in self.artifacts if (a.entity, a.project, a.name) == key]

        def member(aliasName: str) -> dict[str, Any] | None:
            found = self._named(versions, f"{artifact.name}:{aliasName}")
            return self._membership(found) if found else None

        return {
            "__typename": "ArtifactSequence",
            "id": self._collection_id(artifact),
            "name": artifact.name,
            "description": None,
            "createdAt": _NOW,
            "updatedAt": _NOW,
            "project": lambda: self._project(artifact.project, artifact.entity),
            "defaultArtifactType": {"name": artifact.type},
            "tags": _edges([]),
            "digestAlgorithm": "MANIFEST_MD5",
            "latestArtifact": lambda: next(({"id": a.id} for a in reversed(versions) if a.state == "COMMITTED"), None),
            "artifacts": lambda **page: {
                **_edges([]),
                "totalCount": len(versions),
                "edges": [{"version": f"v{a.version}", "node": self._artifact(a)} for a in reversed(versions)],
            },
            "artifactMembership": member,
            "aliases": lambda **page: _edges(
                [{"__typename": "ArtifactAlias", "id": _id(n), "alias": n} for a in versions for n in self._aliases(a)]
            ),
        }

    def _membership(self, artifact: Artifact) -> dict[str, Any]:
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": _id("Member", artifact.index),
            "versionIndex": artifact.version,
            "createdAt": _NOW,
            "aliases": self._artifact(artifact)["aliases"],
            "artifactCollection": lambda: self._collection(artifact),
            "artifact": lambda: self._artifact(artifact),
            "files": self._artifact(artifact)["files"],
        }

    def _artifact(self, artifact: Artifact) -> dict[str, Any]:
        digests = {path: entry.get("digest") for path, entry in artifact.manifest.get("contents", {}).items()}

        def files(names: list[str] | None = None, **page: Any) -> dict[str, Any]:
            return _edges(
                [
                    {
                        "__typename": "File",
                        "id": _id("File", artifact.index, name),
                        "name": name,
                        "displayName": name,
                        "url": self._place("artifact", artifact.index, name),
                        "directUrl": self._place("artifact", artifact.index, name),
                        "sizeBytes": len(body),
                        "storagePath": f"wandb_artifacts/{artifact.index}/{name}",
                        "mimetype": None,
                        "updatedAt": _NOW,
                        "digest": digests.get(name),
                        "md5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode(),
                    }
                    for name, body in artifact.files.items()
                    if not names or name in names
                ]
            )

        return {
            "__typename": "Artifact",
            "id": artifact.id,
            "artifactSequence": lambda: self._collection(artifact),
            "artifactType": {"__typename": "ArtifactType", "id": _id("ArtifactType", artifact.type)}
            | {"name": artifact.type},
            "versionIndex": artifact.version,
            "description": artifact.description,
            "metadata": json.dumps(artifact.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": artifact.state,
            "size": sum(map(len, artifact.files.values())),
            "digest": artifact.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": None,
            "fileCount": len(artifact.files),
            "createdAt": _NOW,
            "updatedAt": _NOW,
            "aliases": [
                {
                    "__typename": "ArtifactAlias",
                    "id": _id("Alias", artifact.name, alias),
                    "alias": alias,
                    "artifactCollection": lambda: self._collection(artifact),
                }
                for alias in self._aliases(artifact)
            ],
            "currentManifest": {
                "id": _id("Manifest", artifact.index),
                "file": {"directUrl": self._place("manifest", artifact.index, "wandb_manifest.json")},
            },
            "files": files,
            "createdBy": lambda: self._run(self.runs[artifact.run]),
        }

    # Sweeps and workspaces.

    def _upsert_sweep(self, sent: dict[str, Any]) -> dict[str, Any]:
        known = {_id("Sweep", name): name for name in self.sweeps}
        name = known.get(sent.get("id") or "") or f"sweep{len(self.sweeps) + 1}"
        sweep = self.sweeps.setdefault(name, {"state": "RUNNING", "runs": []})
        sweep |= {key: value for key, value in sent.items() if value is not None}
        project = self._project(sent.get("projectName"), sent.get("entityName"))
        return {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}

    def _sweep(self, name: str) -> dict[str, Any] | None:
        sweep = self.sweeps.get(name)
        if sweep is None:
            return None
        return {
            "__typename": "Sweep",
            "id": _id("Sweep", name),
            "name": name,
            "displayName": sweep.get("displayName"),
            "method": "bayes",
            "state": sweep["state"],
            "description": "",
            "config": sweep.get("config", ""),
            "createdAt": _NOW,
            "heartbeatAt": None,
            "updatedAt": None,
            "earlyStopJobRunning": False,
            "bestLoss": None,
            "controller": None,
            "scheduler": None,
            "runCount": len(sweep["runs"]),
            "runCountExpected": None,
            "runs": lambda **page: _edges([self._run(self.runs[run]) for run in sweep["runs"] if run in self.runs]),
        }

    def _heartbeat(self, sent: dict[str, Any]) -> dict[str, Any]:
        """Hand out the next configuration when the agent has nothing to do."""
        commands: list[dict[str, Any]] = []
        if not json.loads(sent.get("runState") or "{}"):
            if self.sweep_configurations:
                arguments = {key: {"value": value} for key, value in self.sweep_configurations.pop(0).items()}
                name = f"sweeprun{sum(len(sweep['runs']) for sweep in self.sweeps.values()) + 1}"
                sweep = next(reversed(self.sweeps.values()))
                sweep["runs"].append(name)
                found = re.search(r"^program: (.+)$", sweep.get("config", ""), re.MULTILINE)
                program = found[1] if found else None
                commands = [{"type": "run", "run_id": name, "program": program, "args": arguments}]
            else:
                commands = [{"type": "exit"}]
        return {"agent": {"id": sent["id"]}, "commands": json.dumps(commands)}

    def _upsert_view(self, sent: dict[str, Any]) -> dict[str, Any]:
        old = next((view for view in self.views if view["id"] == sent.get("id")), None)
        view = old if old is not None else {"id": _id("View", len(self.views)), "name": f"view{len(self.views)}"}
        view |= {key: value for key, value in sent.items() if value is not None}
        if old is None:
            self.views.append(view)
        return {"view": view, "inserted": old is None}


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    owner: WandbServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.owner._connections.add(self.connection)

    def finish(self) -> None:
        self.owner._connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        body = b"".join(self._chunks())
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _chunks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return
        while length := int(self.rfile.readline().split(b";")[0].strip() or b"0", 16):
            yield self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, content: Any, status: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        owner = self.owner
        body = self._body()
        if owner.delay:
            time.sleep(owner.delay)
        ended = owner._ended
        trouble = owner._in_trouble()
        if trouble == "silent":
            ended.wait()
        if trouble in ("silent", "refuse"):
            self.close_connection = True
            return
        if trouble == "error":
            self._answer({"errors": [{"message": "something is broken"}]}, 500)
            return
        try:
            with owner._lock:
                self._answer(*self._found(unquote(urlsplit(self.path).path), body))
        except (OSError, ConnectionError):
            raise
        except Exception as error:  # the test must hear of it, not only the client
            owner.unknown.append(f"{self.command} {self.path}: {type(error).__name__}: {error}")
            self._answer({"errors": [{"message": str(error)}]}, 500)

    def _found(self, path: str, body: bytes) -> tuple[Any, int]:
        owner = self.owner
        if self.command == "POST" and path == "/graphql":
            sent = json.loads(body)
            owner.operations.append(sent.get("operationName") or sent["query"].split("(")[0].split("{")[0].split()[-1])
            if self.headers.get("Authorization") != "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode():
                return {"errors": [{"message": "user is not logged in"}]}, 401
            return owner._graphql(sent), 200
        if self.command == "POST" and path.endswith("/file_stream"):
            return owner._stream(path.split("/")[-2], json.loads(body)), 200
        if path.startswith("/blobs/"):
            name = path.removeprefix("/blobs/")
            if self.command == "PUT":
                owner._upload(name, body)
                return {}, 200
            if name in owner._blobs:
                return owner._blobs[name], 200
            return {"error": "not found"}, 404
        if not path.startswith(_TELEMETRY) and (self.command, path) != ("GET", "/"):
            owner.unknown.append(f"{self.command} {path}")
            return {"error": "not found"}, 404
        return {}, 200

    do_GET = do_POST = do_PUT = do_HEAD = _handle
