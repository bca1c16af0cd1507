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
# # An honest comparison of two models
#
# Is B better than A, or was it luck? Luck has two sources: the users who were measured, and the seed of the training.
# This notebook measures both, on a made log where the truth is known.

# %%
import logging

import numpy as np
import polars as pl

import sasrec

logging.getLogger("sasrec").setLevel("ERROR")  # eight trainings would each warn of the sampled protocol, not used here

# %% [markdown]
# ## A log with something to learn


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
common = {"preset": "fast", "embedding_dim": 32, "learning_rate": 5e-3, "max_epochs": 20, "threads": 1}

# %% [markdown]
# ## Two candidates
#
# A reads only the last item of a history; B reads the last ten, so it can see in which steps a user goes. All else is
# equal: the same log, split, seeds and protocol.

# %%
seeds = (0, 1, 2)


def measured(**settings: object) -> list[sasrec.Result]:
    """A result on test for each seed."""
    return [sasrec.fit(log, seed=seed, **common, **settings).evaluate("test", protocol="full") for seed in seeds]


a = measured(max_seq_len=1)
b = measured(max_seq_len=10)
pl.DataFrame(
    [
        {"model": name, "seed": seed, "ndcg@10": result.metrics["ndcg@10"]["value"]}
        for name, results in (("A", a), ("B", b))
        for seed, result in zip(seeds, results, strict=True)
    ]
)

# %% [markdown]
# ## One result
#
# Every figure stands under its protocol, beside baselines and with its 95 % interval over users. Two intervals that
# overlap do not mean that the models are alike: both were measured on the same users, who are paired in a comparison.

# %%
b[0]

# %% [markdown]
# ## The comparison
#
# User by user, the mean over seeds of each side. `interval` and `p` are about users: would other users like these
# show the same difference? `± of seeds` is the standard error over training seeds. A difference is worth telling when
# it is large beside both.

# %%
comparison = sasrec.compare(a, b)
ndcg = comparison.metrics["ndcg@10"]
print(f"B - A: {ndcg['difference']:+.4f}, interval {ndcg['low']:+.4f} .. {ndcg['high']:+.4f}, p {ndcg['p_value']:.2g}")
assert ndcg["seeds_stderr"] is not None
comparison

# %% [markdown]
# The interval by hand, as a check: the differences of the users, their mean, and 1.96 standard errors.

# %%
mean_a, mean_b = (np.mean([result.per_user["ndcg@10"] for result in side], axis=0) for side in (a, b))
differences = mean_b - mean_a
half = 1.959964 * differences.std(ddof=1) / np.sqrt(len(differences))
print(f"{differences.mean():+.4f} ± {half:.4f} over {len(differences)} users")
assert np.isclose(differences.mean(), ndcg["difference"])
assert np.isclose(differences.mean() - half, ndcg["low"], atol=1e-4)

# %% [markdown]
# ## What no difference looks like
#
# The same model with another seed, against itself. Whatever differs is luck, and the comparison says so: intervals
# include 0. Of twenty such comparisons one will not, by chance. So look at the metric that you chose before, and at
# more seeds.

# %%
sasrec.compare(b[0], b[1])

# %% [markdown]
# ## What is refused
#
# Figures by different protocols say different things. They are not compared, also where the metric has the same name.

# %%
sampled = sasrec.fit(log, seed=0, **common, max_seq_len=10).evaluate("test", protocol="sampled")
try:
    sasrec.compare(a[0], sampled)
except sasrec.ConfigError as error:
    print(error)

# %% [markdown]
# On the command line: `sasrec train LOG --seeds 3 --output runs/a` for each side, then `sasrec compare runs/a runs/b`.
# [Evaluation](../../docs/evaluation.md) has the pitfalls.
