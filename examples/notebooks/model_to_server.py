# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From model to server
#
# Train, save, serve over HTTP, ask, replace the model without a gap, stop. Everything runs on this machine, on a port
# that is free.

# %%
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import polars as pl

import sasrec

folder = Path(tempfile.mkdtemp())


# %% [markdown]
# ## A model in a folder


# %%
def made_log(seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events of 300 users, who stay with a kind of film for a while and go through it in steps of their own."""
    rng = np.random.default_rng(seed)
    kinds = ["Harbour", "Alibi", "Comet", "Orchard"]
    rows = []
    for user in range(1, 301):
        kind, place, seen = int(rng.integers(4)), int(rng.integers(17)), set[int]()
        while len(seen) < 12:
            film = 1 + 17 * kind + place
            if film not in seen:
                rows.append((user, film, len(seen)))
            seen.add(film)
            if rng.random() < 0.1:
                kind = int(rng.integers(4))
            place = (place + 1 + user % 3) % 17
    titles = [f"{kind} No. {number}" for kind in kinds for number in range(1, 18)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return log, pl.DataFrame({"item_id": range(1, 69), "title": titles})


log, titles = made_log()
settings = {"preset": "fast", "embedding_dim": 32, "learning_rate": 5e-3, "threads": 1}
recommender = sasrec.fit(log, titles=titles, output=folder / "monday", max_epochs=20, progress=True, **settings)
recommender

# %% [markdown]
# ## Start the server
#
# In a shell it is `sasrec serve runs/current`. `--port 0` takes a free port, which the first line tells. The folder
# is a link, as in production: another model is put in its place later.

# %%
current = folder / "current"
current.symlink_to("monday")
command = [
    sys.executable,
    "-m",
    "sasrec",
    "serve",
    str(current),
    "--port",
    "0",
    "--reload-seconds",
    "1",
    "--no-access-log",
]
server = subprocess.Popen([*command, "--reload-seconds", "1"], stderr=subprocess.PIPE, text=True)
said = next(line for line in server.stderr if "http://" in line)
address = re.search(r"http://[\w.]+:\d+", said)[0]
print(said.strip())

# %% [markdown]
# ## Ask it
#
# The same question as in Python, and the same answer.


# %%
def ask(path: str, body: dict | None = None) -> dict:
    """JSON for JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


answer = ask("/v1/recommend", {"history": [1, 3, 5], "k": 3})
assert [item["item_id"] for item in answer["items"]] == recommender.recommend([[1, 3, 5]], k=3)["item_id"].to_list()
assert answer["model_version"] == recommender.model_version
answer

# %% [markdown]
# Programs find all routes at `/openapi.json`; people find a page at the address itself.

# %%
print(*sorted(ask("/openapi.json")["paths"]), sep="\n")

# %% [markdown]
# ## Another model, without a gap
#
# Train again and move the link. Each second (`--reload-seconds`) the server looks where it leads; it loads the new
# model and lets it answer a few requests of its own, while the old one answers yours.

# %%
tuesday = sasrec.fit(log, titles=titles, output=folder / "tuesday", max_epochs=20, seed=1, **settings)
(folder / "next").symlink_to("tuesday")
(folder / "next").rename(current)
versions = [recommender.model_version]
while versions[-1] != tuesday.model_version and len(versions) < 600:
    time.sleep(0.1)
    versions.append(ask("/v1/recommend", {"history": [1], "k": 1})["model_version"])
print(f"{len(versions) - 1} requests were answered, by: {list(dict.fromkeys(versions))}")
assert versions[-1] == tuesday.model_version

# %% [markdown]
# ## Stop it
#
# On SIGTERM the server answers what it has accepted, and ends.

# %%
server.terminate()
assert server.wait(timeout=30) == 0
print("stopped")

# %% [markdown]
# [Serving](../../docs/serving.md) has limits, keys, metrics and several processes; [export](../../docs/export.md) the
# ways to serve elsewhere.
