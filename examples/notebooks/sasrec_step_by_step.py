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
# # SASRec, step by step
#
# This notebook computes the whole model by hand, on a small log, beside the paper (Kang & McAuley 2018, *Self-Attentive
# Sequential Recommendation*). At each step there are the shapes, real numbers, and a check that the package computes
# the same. You need NumPy, and the equations of the paper's section III; nothing is hidden in a library call.
#
# Letters: `B` users of a batch, `L` positions (`max_seq_len`), `D` the width of an embedding, `V` = items + 1, since
# row 0 is padding.

# %%
import numpy as np
import polars as pl
import torch

import sasrec
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.batches import TrainBatches
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import split_leave_one_out
from sasrec.engine.layout import lay_out
from sasrec.model.losses import bce
from sasrec.model.sasrec import SASRec

np.set_printoptions(precision=3, suppress=True, linewidth=110)
torch.set_num_threads(1)

# %% [markdown]
# ## 1. A log
#
# 200 users, 40 items. Most of the time, item `i` is followed by item `7 i + 3` (modulo 40): there is something to
# learn, and it lies in the order. Histories have different lengths, because real ones do.


# %%
def made_log(n_users: int = 200, n_items: int = 40, randomness: float = 0.15, seed: int = 0) -> pl.DataFrame:
    """Events in time order: mostly from item i to item 7 i + 3, never one that the user had."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(1, n_users + 1):
        items = [int(rng.integers(n_items))]
        while len(items) < 5 + user % 8:
            follows = (7 * items[-1] + 3) % n_items
            others = [item for item in range(n_items) if item not in items]
            items.append(follows if follows in others and rng.random() > randomness else int(rng.choice(others)))
        rows += [(user, f"item-{item:02}", time) for time, item in enumerate(items)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


log = made_log()
log.head(6)

# %% [markdown]
# ## 2. Sequences (the paper's `S`, one for each user)
#
# Ids become dense indices from 1, and each user's items stand in time order. All users lie end to end in one array;
# `offsets` says where each begins.

# %%
sequences, vocabulary = build_sequences(log)
user = 0
history = sequences.history(user)
print("items of all users, end to end:", sequences.items.shape, sequences.items.dtype)
print("one user's items by index:", history)
print("and by id:", vocabulary.ids_of(history).to_list())
assert len(history) == sequences.offsets[user + 1] - sequences.offsets[user]
assert history.min() >= 1  # 0 is padding, and no item

# %% [markdown]
# ## 3. Partition (section IV.B)
#
# The last item of a user is the test target, the one before is the valid target, all others are train. Valid chooses
# the epoch, test is measured once.

# %%
split = split_leave_one_out(sequences)
train_part = sequences.items[sequences.offsets[user] : split.train_ends[user]]
valid_target, test_target = split.valid.items(sequences)[user], split.test.items(sequences)[user]
print("train", train_part, " valid", valid_target, " test", test_target)
assert [*train_part, valid_target, test_target] == history.tolist()

# %% [markdown]
# ## 4. Sampling (section III.E)
#
# A training row: the input is the train part without its last item, the target of each position is the item that
# follows, and the negative is a random item that the user has not got in train. `Batch` is ragged; `to_padded` lays
# it out as the paper has it, `(B, L)` with zeros on the left. Of longer rows the newest positions stay.

# %%
L, D = 8, 16
model_config = ModelConfig(block="sasrec", embedding_dim=D, n_blocks=2, n_heads=1, max_seq_len=L, dropout=0.0)
train_config = TrainConfig(loss="bce", n_negatives=1, batch_size=4, seed=0)
batch = next(TrainBatches(split, model_config, train_config).epoch(0))
seq, pos, neg = batch.to_padded(L)
print("seq, pos, neg:", seq.shape, pos.shape, neg.shape)
print("seq\n", seq, "\npos\n", pos, "\nneg\n", neg, sep="")

for row, batch_user in enumerate(batch.users):
    items = sequences.items[sequences.offsets[batch_user] : split.train_ends[batch_user]]
    n = min(len(items) - 1, L)
    assert seq[row, L - n :].tolist() == items[-n - 1 : -1].tolist()
    assert pos[row, L - n :].tolist() == items[-n:].tolist()
    assert not set(neg[row, L - n :]) & set(items)
    assert not seq[row, : L - n].any()  # padding

# %% [markdown]
# ## 5. Embedding with padding (equation 1)
#
# `E = √D · M[s] + P`: the row of the item table `M`, times `√D`, plus the row of the position table
# `P`. The newest item always has the last position. Row 0 of `M` is padding: zero, and it stays zero. The weights are
# those that the package draws for a new model.

# %%
n_items = len(vocabulary)
model = SASRec(model_config, n_items, np.random.default_rng(0)).eval()
weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
for name, value in weights.items():
    print(f"{name:38} {value.shape}")

# %%
M, P = weights["item_embedding.weight"], weights["position_embedding.weight"]
assert not M[0].any()
keep_mask = seq != 0  # (B, L) True = real
x = M[seq] * np.sqrt(D) + P[None]  # (B, L, D)
print("embedded:", x.shape)
print("first four numbers of each position of row 0, with its item:")
print(np.column_stack([seq[0], x[0, :, :4]]))

# %% [markdown]
# ## 6. A block
#
# First a LayerNorm: each position by itself, to mean 0 and variance 1, then scaled. What is normalised is the query;
# keys and values come from what was not (that is how the authors' code has it, [the model](../../docs/model.md) says
# more).


# %%
def layer_norm(x: np.ndarray, name: str, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Mean 0, variance 1 over the last axis, scaled and shifted."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + model_config.norm_eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, name: str, weights: dict[str, np.ndarray]) -> np.ndarray:
    """A matrix and a bias."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


query_from = layer_norm(x, "blocks.0.attention_norm", weights)
print("means:", query_from[0, -1].mean().round(4), " variances:", query_from[0, -1].var().round(4))

# %% [markdown]
# ### Attention and its mask (equations 2 and 3)
#
# `softmax(Q Kᵀ / √d) V`. Two things must not be seen: positions to the right, or the model would
# look up the answer (the causal mask), and padding. A score of `-∞` becomes a weight of 0.

# %%
q = linear(query_from, "blocks.0.attention.query", weights)  # (B, L, D)
k, v = np.split(linear(x, "blocks.0.attention.key_value", weights), 2, axis=-1)  # (B, L, D) each
scores = q @ k.transpose(0, 2, 1) / np.sqrt(D)  # (B, L, L)

causal = np.tril(np.ones((L, L), bool))  # (L, L) position i sees 0..i
visible = causal & keep_mask[:, None, :]  # (B, L, L)
print("causal mask, 1 = seen:\n", causal.astype(int), sep="")


# %%
def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis; rows that see nothing (padding) become zeros."""
    highest = scores.max(-1, keepdims=True)
    e = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
    return e / np.maximum(e.sum(-1, keepdims=True), 1e-30)


attention = softmax(np.where(visible, scores, -np.inf))  # (B, L, L)
shortest = int(keep_mask.sum(1).argmin())
print("items of the shortest row:", seq[shortest])
print("what each of its positions looks at:\n", attention[shortest], sep="")
assert np.allclose(attention[keep_mask].sum(-1), 1, atol=1e-6)
assert not attention[~visible].any()  # neither the future nor padding

# %% [markdown]
# The mixed values go through one more matrix, and the query is added back (a residual connection).

# %%
attended = query_from + linear(attention @ v, "blocks.0.attention.output", weights)  # (B, L, D)
print(attended.shape)

# %% [markdown]
# ### Feed-forward (equation 4)
#
# Two layers with a ReLU between, at each position by itself, on what a second LayerNorm gives; and a residual again.

# %%
h = layer_norm(attended, "blocks.0.ffn_norm", weights)
up = np.maximum(linear(h, "blocks.0.ffn.up", weights), 0)
after_block = h + linear(up, "blocks.0.ffn.down", weights)  # (B, L, D)
print(f"{(up[keep_mask] == 0).mean():.0%} of the hidden numbers are zero after the ReLU")

# %% [markdown]
# ## 7. All of it, and the package's own numbers
#
# The second block and a last LayerNorm: that is the whole network, in thirty lines.


# %%
def features_of(seq: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """(B, L) item indices, zeros on the left, to (B, L, D) features; rows of padding mean nothing."""
    x = weights["item_embedding.weight"][seq] * np.sqrt(D) + weights["position_embedding.weight"][None]
    visible = causal & (seq != 0)[:, None, :]
    for block in (f"blocks.{i}" for i in range(model_config.n_blocks)):
        query_from = layer_norm(x, f"{block}.attention_norm", weights)
        q = linear(query_from, f"{block}.attention.query", weights)
        k, v = np.split(linear(x, f"{block}.attention.key_value", weights), 2, axis=-1)
        attention = softmax(np.where(visible, q @ k.transpose(0, 2, 1) / np.sqrt(D), -np.inf))
        x = query_from + linear(attention @ v, f"{block}.attention.output", weights)
        h = layer_norm(x, f"{block}.ffn_norm", weights)
        x = h + linear(np.maximum(linear(h, f"{block}.ffn.up", weights), 0), f"{block}.ffn.down", weights)
    return layer_norm(x, "norm", weights)


by_hand = features_of(seq, weights)  # (B, L, D)
print(by_hand.shape)

# %% [markdown]
# The package computes no padding at all: it pads on the right, where the causal mask alone hides it. At the real
# positions the numbers must be the same.

# %%
laid_out = lay_out(batch.inputs, model_config, np.inf, torch.from_numpy)
with torch.no_grad():
    tokens = model(laid_out.items, laid_out.positions, laid_out.groups)  # (T, D)
    by_model = tokens[laid_out.real].numpy()
print("real positions of the batch:", by_model.shape)
print("largest difference:", np.abs(by_hand[keep_mask] - by_model).max())
assert np.allclose(by_hand[keep_mask], by_model, atol=1e-5)

# %% [markdown]
# ## 8. Prediction (equation 6) and loss (section III.E)
#
# The score of an item is the dot product of its row in the same table `M` with the features. The loss takes two
# scores a position: up with the target's, down with the negative's.

# %%
positive = (by_hand * M[pos]).sum(-1)[keep_mask]  # (T,)
negative = (by_hand * M[neg]).sum(-1)[keep_mask]  # (T,)
loss_by_hand = (np.log1p(np.exp(-positive)) + np.log1p(np.exp(negative))).mean()
with torch.no_grad():
    target_scores = model.scores(tokens[laid_out.real], torch.from_numpy(batch.targets).long())
    negative_scores = model.scores(tokens[laid_out.real], torch.from_numpy(batch.negatives).long())
    loss_by_model = bce(target_scores, negative_scores).item()
print(f"by hand {loss_by_hand:.6f}, by the package {loss_by_model:.6f}; of pure chance: {2 * np.log(2):.6f}")
assert np.isclose(loss_by_hand, loss_by_model, atol=1e-5)

# %% [markdown]
# ## 9. Training
#
# Adam, epoch by epoch; valid says which epoch to keep. Without `engine="torch"` the compiled core would train: the same
# steps, faster, and on some CPUs with products in bf16, whose last digits differ.

# %%
recommender = sasrec.fit(
    log, preset="paper", embedding_dim=D, max_seq_len=L, dropout=0.1, max_epochs=30, batch_size=32,
    learning_rate=3e-3, valid_protocol="full", filter_seen="yes", engine="torch", threads=1, progress=True,
)  # fmt: skip
recommender

# %% [markdown]
# With the trained weights the same thirty lines give what the recommender says, for any history: the newest item's
# features times the table, without padding and without what the user had.

# %%
trained = {name: np.asarray(value) for name, value in recommender.engine.weights().items()}


def scores_of(histories: list[np.ndarray]) -> np.ndarray:
    """(n, V) scores after each history, -inf for padding and for what is in the history."""
    padded = np.zeros((len(histories), L), np.int32)
    for row, items in enumerate(histories):
        padded[row, -min(len(items), L) :] = items[-L:]
    scores = features_of(padded, trained)[:, -1] @ trained["item_embedding.weight"].T
    for row, items in enumerate(histories):
        scores[row, [0, *items]] = -np.inf
    return scores


scores_of_one = scores_of([history])[0]
top = np.argsort(-scores_of_one)[:5]
by_package = recommender.recommend([vocabulary.ids_of(history).to_list()], k=5)
print("by hand:", vocabulary.ids_of(top).to_list(), scores_of_one[top])
assert by_package["item_id"].to_list() == vocabulary.ids_of(top).to_list()
assert np.allclose(by_package["score"], scores_of_one[top], atol=1e-4)
by_package

# %% [markdown]
# ## 10. Evaluation (section IV.C)
#
# A user's test target is ranked among all items but those that the user had before. Its rank gives HR@10 (is it among
# the first ten?) and NDCG@10 (and how high?): `1 / log2(1 + rank)`. The figure is the mean over users.

# %%
targets = split.test.items(sequences)
before = split.test.histories(sequences)  # all items before each target
all_scores = scores_of([before.row(row) for row in range(len(targets))])
own = all_scores[np.arange(len(targets)), targets][:, None]
ranks = 1 + (all_scores > own).sum(1)
found = ranks <= 10
ndcg, hr = np.where(found, 1 / np.log2(1 + ranks), 0).mean(), found.mean()
print(f"ranks of the first users' targets: {ranks[:10]}")
print(f"by hand: NDCG@10 {ndcg:.6f}, HR@10 {hr:.6f}")

result = recommender.evaluate("test", protocol="full")
assert np.isclose(ndcg, result.metrics["ndcg@10"]["value"])
assert np.isclose(hr, result.metrics["hr@10"]["value"])
result

# %% [markdown]
# That is all of it. [The model](../../docs/model.md) has the other blocks and losses,
# [evaluation](../../docs/evaluation.md) says what a figure means and what it does not, [the
# engine](../../docs/engine.md) how the same becomes fast.
