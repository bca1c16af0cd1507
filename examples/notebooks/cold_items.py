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
# # Items with features, and items that nobody had yet
#
# A model of ids alone knows nothing of an item without events. With features (a brand, a price, a vector of its
# picture or text) it does. This notebook makes a shop, learns its attributes, and recommends an article on its first
# day.

# %%
import numpy as np
import polars as pl

import sasrec

# %% [markdown]
# ## A shop
#
# 60 articles of 4 brands. Customers stay with a brand, and go from an article to one that costs a little more. The last
# article of each brand is new: nobody has bought it.


# %%
def made_shop(seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events of 300 customers, and what is known of all articles."""
    rng = np.random.default_rng(seed)
    brands, size = ["lego", "mattel", "brio", "haba"], 15
    items = pl.DataFrame(
        {
            "item_id": [f"{brand}-{i}" for brand in brands for i in range(size)],
            "title": [f"{brand.title()} set {i}" for brand in brands for i in range(size)],
            "brand": [brand for brand in brands for _ in range(size)],
            "price": [10.0 + 5 * i for _ in brands for i in range(size)],
        }
    )
    rows = []
    for user in range(300):
        brand, i = brands[rng.integers(4)], int(rng.integers(size - 1))
        for time in range(8):
            rows.append((f"customer-{user}", f"{brand}-{i}", time))
            i = (i + int(rng.integers(1, 3))) % (size - 1)  # the last of each brand is new
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"), items


log, items = made_shop()
items.filter(~pl.col("item_id").is_in(log["item_id"].implode()))  # the new ones

# %% [markdown]
# ## Train with features
#
# Text becomes a feature for each value, numbers become bins. In some training steps an item's own embedding is left
# out, so that the features learn to stand alone.

# %%
recommender = sasrec.fit(
    log, items=items, item_features=["brand", "price"], preset="fast", embedding_dim=32, max_epochs=15, threads=1,
    filter_seen="yes", progress=True,
)  # fmt: skip
recommender

# %% [markdown]
# ## The new article
#
# After articles of one brand, going up in price, the new and most expensive one should be among the first.

# %%
history = [f"lego-{i}" for i in (6, 8, 10, 12, 13)]
found = recommender.recommend_detailed([history], k=5)
assert "lego-14" in found.frame["item_id"].to_list()
found

# %% [markdown]
# A rule of the shop is a filter on the same attributes ([filters](../../docs/filters.md)):

# %%
recommender.recommend([history], k=3, where="brand = 'brio' and price < 50")

# %% [markdown]
# ## An article of tomorrow
#
# `add_items` needs no training: the features are known, so its row in the table is, too. Answers without it stay the
# same.

# %%
tomorrow = pl.DataFrame({"item_id": ["lego-99"], "title": ["Lego castle"], "brand": ["lego"], "price": [82.0]})
larger = recommender.add_items(tomorrow)
assert len(larger.vocabulary) == len(recommender.vocabulary) + 1
larger.recommend_detailed([history], k=5)

# %% [markdown]
# ## How good are cold items?
#
# Hide some articles from training: all events of theirs but those that are a user's last, the test targets. In the
# result `warm` are targets that occur in train, `cold` those that never do. Beside the model stands
# `shared_features`: the articles that have most features in common with the user's last one.

# %%
hidden = pl.col("item_id").is_in([f"{brand}-{i}" for brand in ("lego", "mattel", "brio", "haba") for i in (3, 7, 11)])
is_last = pl.col("timestamp") == pl.col("timestamp").max().over("user_id")
blind = sasrec.fit(
    log.filter(~hidden | is_last), items=items, item_features=["brand", "price"], preset="fast", embedding_dim=32,
    max_epochs=15, threads=1, filter_seen="yes",
)  # fmt: skip
result = blind.evaluate("test", protocol="full")
print({group: values["n_targets"] for group, values in result.groups.items()})
result

# %% [markdown]
# [Items](../../docs/items.md) has all forms, vectors, and what is said when a file of items does not fit the log.
