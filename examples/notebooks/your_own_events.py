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
# # Your own events, from DuckDB or pandas
#
# Events mostly lie in a table whose columns have names of their own. This notebook takes them from a SQL query and
# from a pandas frame, looks at what sasrec understood, and gives recommendations back as pandas.

# %%
import duckdb
import pandas as pd

import sasrec

# %% [markdown]
# ## A table in DuckDB
#
# A shop: views and purchases of 200 customers.

# %%
shop = duckdb.connect()
shop.sql("""
    create table events as
    select 'customer-' || (i % 200) as customer,
           'sku-' || ((i % 200) * 7 + (i // 200) * 11 + (i % 3)) % 50 as sku,
           timestamp '2024-03-01' + to_minutes(i) as bought_at,
           case when i % 4 = 0 then 'view' else 'purchase' end as kind
    from range(2400) t(i)
""")
query = "select customer, sku, bought_at from events where kind = 'purchase'"
shop.sql(query + " limit 4")

# %% [markdown]
# ## Read it
#
# A relation is a frame: no file between, no copy in pandas. Say which column is which where the names are not the usual
# ones. Times may be dates, seconds or milliseconds.

# %%
columns = {"user_column": "customer", "item_column": "sku", "timestamp_column": "bought_at"}
log = sasrec.read_interactions(shop.sql(query), **columns)
log.head(3)

# %% [markdown]
# The same from pandas: the same events, in the same order, so the models will be the same, too.

# %%
frame: pd.DataFrame = shop.sql(query).df()
assert sasrec.read_interactions(frame, **columns).equals(log)
frame.head(3)

# %% [markdown]
# ## What cannot be right is refused
#
# In one sentence that says what, where, and what to do.

# %%
damaged = frame.assign(sku=frame["sku"].where(frame.index != 5))
try:
    sasrec.read_interactions(damaged, **columns)
except sasrec.DataError as error:
    print(error)

# %% [markdown]
# ## Train, and recommend in your kind of frame
#
# Histories in a pandas frame give a pandas frame. Users are who they are in the table.

# %%
recommender = sasrec.fit(log, preset="fast", max_epochs=6, threads=1, progress=True)
histories = frame.rename(columns={"customer": "user_id", "sku": "item_id", "bought_at": "timestamp"})
some = histories[histories["user_id"].isin(["customer-1", "customer-7"])]
lists = recommender.recommend(some, k=3)
assert isinstance(lists, pd.DataFrame)
lists

# %% [markdown]
# And back into the database, to join with what else is known of the items:

# %%
shop.register("lists", lists)
shop.sql("""
    select lists.user_id, lists.rank, lists.item_id, count(*) as events
    from lists join events on events.sku = lists.item_id
    group by all order by 1, 2
""")

# %% [markdown]
# ## Types of events
#
# Views are history too, but only a purchase is what is predicted. Name the column of types, and the type that is a
# target ([types and weights](../../docs/events.md)).

# %%
everything = sasrec.read_interactions(shop.sql("select * from events"), event_column="kind", **columns)
typed = sasrec.fit(everything, event_column="event", target_events="purchase", preset="fast", max_epochs=2, threads=1)
typed.results[1]

# %% [markdown]
# [Data](../../docs/data.md) has all forms, and what is said of each odd thing in a log.
