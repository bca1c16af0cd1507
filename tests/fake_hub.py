"""A Hub on localhost: what huggingface_hub calls to make a repository, commit to it and fetch files, large ones by LFS.

It keeps every byte that it is sent, and which files are asked for.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

LARGE = (".safetensors", ".parquet", ".npy", ".png")  # by LFS, whatever their size
OWNER, GUEST = "hf_owner", "hf_guest"  # tokens: of one who may write, and of one who may read what is public


@dataclass
class Repository:
    """Commits of a model, each with all of its files."""

    private: bool
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        told = f"{len(self.commits)} {sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())}"
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[sha], self.refs["main"] = files, sha
        return sha

    def at(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        """Of the newest commit."""
        return self.commits[self.refs["main"]]


@dataclass
class FakeHub:
    """The state of the Hub, and what it was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # of LFS, by their SHA-256
    received: list[bytes] = field(default_factory=list)  # bodies and what they decode to
    asked: list[str] = field(default_factory=list)  # METHOD path
    broken: int = 0  # the status of all answers, while it is not 0
    url: str = ""

    @property
    def fetched(self) -> set[str]:
        """The names of the files that were asked for."""
        return {line.split("/", 5)[5] for line in self.asked if "/resolve/" in line}


def _error(status: int, code: str = "", message: str = "") -> Response:
    headers = {"X-Error-Code": code} if code else {}
    return JSONResponse({"error": message or code}, status, headers | {"X-Error-Message": message or code})


class Endpoints:
    """The answers."""

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub

    async def _open(self, request: Request, *, write: bool = False) -> Repository | Response:
        """The repository of a request; an answer where it may not be seen."""
        name = "{user}/{model}".format(**request.path_params)
        found = self.hub.repositories.get(name)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in ("", OWNER, GUEST):
            return _error(401, "", "Invalid credentials in Authorization header")
        if found is None or (found.private and token != OWNER):
            return _error(404 if token else 401, "RepoNotFound", "Repository not found")
        if write and token != OWNER:
            return _error(403, "", "You don't have the rights to write here.")
        if found.gated and token != OWNER:
            return _error(403, "GatedRepo", "Access to this model is restricted.")
        return found

    async def create(self, request: Request) -> Response:
        asked = json.loads(await self._body(request))
        if request.headers.get("authorization") != f"Bearer {OWNER}":
            return _error(401, "", "Invalid username or password.")
        if asked["organization"] not in (None, "me"):
            return _error(403, "", f"You don't have the rights to create a model under {asked['organization']}.")
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            return JSONResponse(answer | {"error": "You already created this model repo"}, 409)
        made = self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        made.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return JSONResponse(answer)

    async def info(self, request: Request) -> Response:
        found = await self._open(request)
        if isinstance(found, Response):
            return found
        sha = found.at(request.path_params.get("revision", "main"))
        if sha is None:
            return _error(404, "RevisionNotFound", "Invalid rev id")
        names = [{"rfilename": name} for name in found.commits[sha]]
        told = {"id": "{user}/{model}".format(**request.path_params), "sha": sha, "private": found.private}
        return JSONResponse(told | {"siblings": names, "tags": [], "downloads": 0})

    async def tree(self, request: Request) -> Response:
        found = await self._open(request)
        if isinstance(found, Response):
            return found
        files = found.commits[found.at(request.path_params["revision"]) or ""]
        told = [{"type": "file", "path": n, "size": len(data), "oid": _git_oid(data)} for n, data in files.items()]
        return JSONResponse(told)

    async def validate(self, request: Request) -> Response:
        await self._body(request)
        return JSONResponse({"errors": [], "warnings": []})

    async def preupload(self, request: Request) -> Response:
        found, asked = await self._open(request, write=True), json.loads(await self._body(request))
        if isinstance(found, Response):
            return found
        self.hub.received += [base64.b64decode(file["sample"]) for file in asked["files"]]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
            for f in asked["files"]
        ]
        return JSONResponse({"files": modes})

    async def batch(self, request: Request) -> Response:
        found, asked = await self._open(request, write=True), json.loads(await self._body(request))
        if isinstance(found, Response):
            return found
        assert asked["operation"] == "upload"
        told = []
        for one in asked["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.url}/lfs-verify", "header": {}},
            }
            told.append(one | ({} if one["oid"] in self.hub.objects else {"actions": actions}))
        return JSONResponse({"transfer": "basic", "objects": told})

    async def put(self, request: Request) -> Response:
        data = await self._body(request)
        if hashlib.sha256(data).hexdigest() != request.path_params["oid"]:
            return _error(400, "", "the content has another SHA-256")
        self.hub.objects[request.path_params["oid"]] = data
        return Response()

    async def verify(self, request: Request) -> Response:
        asked = json.loads(await self._body(request))
        is_there = len(self.hub.objects.get(asked["oid"], b"")) == asked["size"]
        return Response() if is_there else _error(404, "", "no such object")

    async def commit(self, request: Request) -> Response:
        found = await self._open(request, write=True)
        lines = [json.loads(line) for line in (await self._body(request)).splitlines()]
        if isinstance(found, Response):
            return found
        files = dict(found.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.hub.received.append(files[value["path"]])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = found.commit(files)
        return JSONResponse({"commitUrl": f"{self.hub.url}/me/x/commit/{sha}", "commitOid": sha})

    async def resolve(self, request: Request) -> Response:
        found, name = await self._open(request), request.path_params["name"]
        if isinstance(found, Response):
            return found
        sha = found.at(request.path_params["revision"])
        if sha is None:
            return _error(404, "RevisionNotFound", "Invalid rev id")
        if name not in found.commits[sha]:
            missing = _error(404, "EntryNotFound", "Entry not found")
            missing.headers["X-Repo-Commit"] = sha
            return missing
        data = found.commits[sha][name]
        told = {"X-Repo-Commit": sha, "ETag": f'"{_git_oid(data)}"'}
        if not name.endswith(LARGE):
            return Response(data, headers=told)
        oid = hashlib.sha256(data).hexdigest()
        self.hub.objects[oid] = data  # also where a test put it into a repository
        told |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}
        return RedirectResponse(f"{self.hub.url}/lfs/{oid}".replace("127.0.0.1", "localhost"), 302, told)  # a CDN

    async def get(self, request: Request) -> Response:
        data = self.hub.objects[request.path_params["oid"]]
        return Response(data, headers={"ETag": f'"{request.path_params["oid"]}"'})

    async def _body(self, request: Request) -> bytes:
        data = await request.body()
        self.hub.received.append(data)
        return data

    def routes(self) -> list[Route]:
        model, api = "/{user}/{model}", "/api/models/{user}/{model}"
        return [
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/validate-yaml", self.validate, methods=["POST"]),
            Route(api, self.info),
            Route(f"{api}/revision/{{revision}}", self.info),
            Route(f"{api}/tree/{{revision}}", self.tree),
            Route(f"{api}/preupload/{{revision}}", self.preupload, methods=["POST"]),
            Route(f"{api}/commit/{{revision}}", self.commit, methods=["POST"]),
            Route(f"{model}.git/info/lfs/objects/batch", self.batch, methods=["POST"]),
            Route("/lfs-verify", self.verify, methods=["POST"]),
            Route("/lfs/{oid}", self.put, methods=["PUT"]),
            Route("/lfs/{oid}", self.get),
            Route(f"{model}/resolve/{{revision}}/{{name:path}}", self.resolve),
        ]


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def running_hub() -> Iterator[FakeHub]:
    """The Hub while it runs."""
    hub = FakeHub()
    app = Starlette(routes=Endpoints(hub).routes())

    async def answer(scope: dict, receive: object, send: object) -> None:
        if scope["type"] == "http":
            hub.asked.append(f"{scope['method']} {scope['path']}")
            if hub.broken:
                await _error(hub.broken, "", "out of order")(scope, receive, send)
                return
        await app(scope, receive, send)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        hub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(answer, log_config=None, lifespan="off", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield hub
        finally:
            server.should_exit = True
            thread.join(30)
