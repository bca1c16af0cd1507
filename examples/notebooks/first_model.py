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
# # The first model
#
# From a log to recommendations in a few cells: read, train, look at the figures, recommend, ask why. The log is made
# here, so that nothing is fetched; with your own it is `sasrec.fit("events.csv")`.

# %%
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import sasrec

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A log
#
# A row an event: who, what, when. Titles are optional; with them lists can be read.


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
log.write_csv(folder / "events.csv")
log.head(4)

# %% [markdown]
# ## Train
#
# `fit` splits the log (each user's last event is the test target, the one before is the valid target), trains, keeps
# the epoch that is best on valid, and measures it on test. `output` keeps all of it in a folder. Without `preset` the
# most accurate preset, `best`, is used; `fast` is for a first look.
#
# One warning is said, and it is right: of a catalogue this small the `sampled` protocol says little. Read the `full`
# figures.

# %%
recommender = sasrec.fit(
    folder / "events.csv", titles=titles, preset="fast", output=folder / "run", max_epochs=25, threads=1, progress=True
)
recommender

# %% [markdown]
# ## What the figures mean
#
# A result carries its protocol. Look at the baselines first: a model that is not above `last_item`, what most often
# followed the last item, has not learned sequences. The interval says what other users like these might have given.

# %%
result = recommender.evaluate("test", protocol="full")
assert result.metrics["ndcg@10"]["value"] > result.baselines["popularity"]["ndcg@10"]["value"]
result

# %% [markdown]
# ## Recommend
#
# After any history, also of users who are not in the log. `recommend` gives a frame; `recommend_detailed` also says
# which items were unknown, and shows titles.

# %%
recommender.recommend([[1, 3, 5]], k=3)

# %%
recommender.recommend_detailed([[1, 3, 5], ["no such film"]], k=3)

# %%
recommender.recommend_users([1, 2], k=2)  # users of the log, after all of their events

# %% [markdown]
# ## Ask why, and what is alike

# %%
first = recommender.recommend([[1, 3, 5]], k=1)["item_id"][0]
recommender.explain([1, 3, 5], first)  # how much the score falls without each item

# %%
recommender.similar_items(1, k=3)

# %% [markdown]
# ## Keep it
#
# The folder has the model, the items, the histories, the results and a report. `load` gives the same recommender again.

# %%
again = sasrec.load(folder / "run")
assert again.recommend([[1, 3, 5]], k=3).equals(recommender.recommend([[1, 3, 5]], k=3))
print(sorted(path.name for path in (folder / "run").iterdir()))
again.model_version

# %% [markdown]
# Next: [your own events](your_own_events.py), [an honest comparison](honest_comparison.py),
# [settings](../../docs/config.md).
