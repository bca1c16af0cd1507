"""Peers, driven by their own unmodified code. In: requests of harness.Session; out: seconds and metrics.

This file runs under the peer's interpreter: `python peers.py NAME`, set up by the first line on stdin. An adapter
reads the log with the peer's own reader or pandas, gives the peer our settings, and calls what its documentation
or its main script calls. What a peer cannot do it has no method for; what it cannot be set to is refused.

Each adapter has    about() -> versions, what differs from our setting
                    load() -> seconds from the file to what the peer trains on
                    train(steps, epochs) -> mean seconds of an epoch or of its first steps, steps per epoch
                    evaluate(protocol, users) -> seconds, users, ndcg@10 and hr@10
and, where the peer can, score_user(n), recommend_user(n) and
                    recommend_users(users) -> seconds for the top 10 of all users or the first few, after all they had
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from harness import Answer, latency, seconds_of, serve, versions

K = 10
EVALUATION_BATCH = 512
RECOMMEND_BATCH = 128
N_CANDIDATES = 101


class Pmixer:
    """pmixer/SASRec.pytorch, from a folder that holds its main.py, model.py and utils.py.

    The loop is main.py's (revision fde8a9c): its sampler with 3 processes, its loss line printed each step.
    """

    def __init__(self, setup: Answer) -> None:
        settings = setup["settings"]
        _require(settings, loss="bce", n_negatives=1, attention_output=True, tied=True, activation="relu")
        sys.path.insert(0, setup["source"])
        self.torch = _torch(setup["threads"])
        self.utils, model = importlib.import_module("utils"), importlib.import_module("model")
        _link(setup["data"], Path("data") / "log.txt")
        self.args = Namespace(
            batch_size=settings["batch_size"],
            lr=settings["learning_rate"],
            maxlen=settings["max_seq_len"],
            hidden_units=settings["embedding_dim"],
            num_blocks=settings["n_blocks"],
            num_heads=settings["n_heads"],
            dropout_rate=settings["dropout"],
            l2_emb=settings["l2_embedding"],
            device=setup.get("device", "cpu"),
            norm_first=settings["block"] == "pre_norm",
        )
        _seed(settings["seed"])
        self.dataset = self.utils.data_partition("log")
        self.user_train, _, self.user_test, self.n_users, self.n_items = self.dataset
        self.sampler = self.utils.WarpSampler(
            self.user_train, self.n_users, self.n_items, self.args.batch_size, self.args.maxlen, n_workers=3
        )
        self.model = self._initialised(model.SASRec(self.n_users, self.n_items, self.args).to(self.args.device))
        self.optimizer = self.torch.optim.Adam(self.model.parameters(), lr=self.args.lr, betas=(0.9, 0.98))
        self.loss = self.torch.nn.BCEWithLogitsLoss()
        self.epochs = 0

    def _initialised(self, model: Any) -> Any:
        for parameter in model.parameters():
            if parameter.dim() >= 2:  # main.py tries all and lets vectors fail
                self.torch.nn.init.xavier_normal_(parameter.data)
        model.pos_emb.weight.data[0, :] = 0
        model.item_emb.weight.data[0, :] = 0
        return model

    def about(self) -> Answer:
        block = "pre_norm" if self.args.norm_first else "post_norm"
        return {"versions": _versions("torch", "numpy"), "differs": f"block {block}; 3 more processes draw its batches"}

    def load(self) -> Answer:
        """Its data_partition; main.py's build_index, which nothing reads, is left out."""
        return {"seconds": seconds_of(lambda: self.utils.data_partition("log"))}

    def train(self, steps: int | None = None, epochs: int = 1) -> Answer:
        per_epoch = (len(self.user_train) - 1) // self.args.batch_size + 1
        steps = min(steps or per_epoch, per_epoch)
        self.model.train()
        self._wait_for_sampler()
        seconds = seconds_of(lambda: self._epoch(steps), epochs)
        self._wait_for_sampler()  # so that it rests while the other side is timed
        on_gpu = self.args.device != "cpu"
        memory = {"peak_mib": self.torch.cuda.max_memory_allocated() / 2**20} if on_gpu else {}
        return {"seconds": seconds / epochs, "steps": steps, "steps_per_epoch": per_epoch, **memory}

    def _wait_for_sampler(self) -> None:
        """Its queue of batches is full before and after an epoch, as in the middle of a long run."""
        while not self.sampler.result_queue.full():
            time.sleep(0.01)

    def _epoch(self, steps: int) -> None:
        torch, args = self.torch, self.args
        self.epochs += 1
        for step in range(steps):
            u, seq, pos, neg = (np.array(part) for part in self.sampler.next_batch())
            pos_logits, neg_logits = self.model(u, seq, pos, neg)
            pos_labels = torch.ones(pos_logits.shape, device=args.device)
            neg_labels = torch.zeros(neg_logits.shape, device=args.device)
            self.optimizer.zero_grad()
            indices = np.where(pos != 0)
            loss = self.loss(pos_logits[indices], pos_labels[indices])
            loss += self.loss(neg_logits[indices], neg_labels[indices])
            for parameter in self.model.item_emb.parameters():
                loss += args.l2_emb * torch.sum(parameter**2)
            loss.backward()
            self.optimizer.step()
            print(f"loss in epoch {self.epochs} iteration {step}: {loss.item()}")

    def evaluate(self, protocol: str, users: int | None = None) -> Answer:
        """What its utils.py evaluates: 100 negatives, at most 10,000 users, one by one."""
        if protocol != "sampled":
            return {"unsupported": "its evaluation is sampled"}
        train, valid, test, n_users, n_items = self.dataset
        dataset = [train, valid, test, min(users or n_users, n_users), n_items]
        self.model.eval()
        began = time.perf_counter()
        ndcg, hr = self.utils.evaluate(self.model, dataset, self.args)
        seconds = time.perf_counter() - began
        wanted = range(1, dataset[3] + 1)
        share = sum(1 for u in wanted if test[u] and train[u]) / len(wanted)
        evaluated = round(share * min(len(wanted), 10_000))
        return {"seconds": seconds, "n_users": evaluated, "metrics": {"ndcg@10": float(ndcg), "hr@10": float(hr)}}

    def score_user(self, n: int) -> Answer:
        rng = np.random.default_rng(0)
        requests = [(u, rng.integers(1, self.n_items + 1, N_CANDIDATES)) for u in self._users(n)]
        self.model.eval()
        return latency(lambda request: self._predict(*request), requests)

    def recommend_user(self, n: int) -> Answer:
        """Its predict() for all items, then the best 10."""
        items = np.arange(1, self.n_items + 1)
        self.model.eval()
        return latency(lambda user: self.torch.topk(self._predict(user, items)[0], K), self._users(n))

    def recommend_users(self, users: int | None = None) -> Answer:
        """Its predict() for batches of users and all items, their own items hidden, then the best 10.

        predict() multiplies the table with each user by itself; the details have the rate with one product instead.
        """
        histories = {u: [*self.user_train[u], *self.dataset[1][u], *self.user_test[u]] for u in self.user_train}
        chosen = [histories[u] for u in list(histories)[:users]]
        items = np.arange(1, self.n_items + 1)
        self.model.eval()
        seconds = seconds_of(lambda: self._tops(chosen, lambda seq: self.model.predict(None, seq, items)))
        better = seconds_of(lambda: self._tops(chosen, self._product))
        return {"seconds": seconds, "n_users": len(chosen), "users/s as one product": len(chosen) / better}

    def _product(self, seq: Any) -> Any:
        return self.model.log2feats(seq)[:, -1] @ self.model.item_emb.weight[1:].T

    def _tops(self, histories: list[list[int]], scores_of: Callable[[Any], Any]) -> None:
        for start in range(0, len(histories), RECOMMEND_BATCH):
            batch = histories[start : start + RECOMMEND_BATCH]
            seq = np.zeros([len(batch), self.args.maxlen], np.int32)
            for row, history in enumerate(batch):
                recent = history[-self.args.maxlen :]
                seq[row, -len(recent) :] = recent
            rows = np.repeat(np.arange(len(batch)), [len(history) for history in batch])
            with self.torch.no_grad():
                scores = scores_of(seq)
                scores[rows, np.concatenate(batch) - 1] = -np.inf
                best = self.torch.topk(scores, K)
            best.indices.numpy() + 1, best.values.numpy()

    def _users(self, n: int) -> list[int]:
        return random.Random(0).choices([u for u in self.user_test if self.user_test[u]], k=n)

    def _predict(self, user: int, items: Any) -> Any:
        recent = (self.dataset[0][user] + self.dataset[1][user])[-self.args.maxlen :]
        seq = np.zeros([self.args.maxlen], np.int32)
        seq[-len(recent) :] = recent
        with self.torch.no_grad():
            return self.model.predict(np.array([user]), np.array([seq]), items)

    def close(self) -> None:
        self.sampler.close()


class Gsasrec:
    """asash/gSASRec-pytorch, from a checkout: gBCE with t = 0 and our number of negatives, which is BCE.

    The loop is train_gsasrec.py's (revision 7e35028), without its limit of 100 batches an epoch.
    """

    def __init__(self, setup: Answer) -> None:
        settings = setup["settings"]
        _require(settings, loss="bce")
        sys.path.insert(0, setup["source"])
        self.torch = _torch(setup["threads"])
        self.data, self.settings = setup["data"], settings
        _seed(settings["seed"])
        self._write_dataset()
        config = importlib.import_module("config")
        self.metrics = importlib.import_module("ir_measures")
        self.config = config.GSASRecExperimentConfig(
            "log",
            sequence_length=settings["max_seq_len"],
            embedding_dim=settings["embedding_dim"],
            train_batch_size=settings["batch_size"],
            num_heads=settings["n_heads"],
            num_blocks=settings["n_blocks"],
            dropout_rate=settings["dropout"],
            negs_per_pos=settings["n_negatives"],
            gbce_t=0.0,
        )
        self.model = importlib.import_module("utils").build_model(self.config)
        self.load()
        self.optimizer = self.torch.optim.Adam(self.model.parameters(), lr=settings["learning_rate"])

    def _write_dataset(self) -> None:
        """The folder its loaders read: inputs as lines of items, outputs as a target a line."""
        histories = list(_histories(self.data).values())
        self.n_items = max(max(h) for h in histories)
        long = [h for h in histories if len(h) >= 3]
        train = [h[:-2] if len(h) >= 3 else h for h in histories]
        parts = {
            "train/input": [h for h in train if len(h) >= 2],
            "val/input": [h[:-2] for h in long],
            "val/output": [h[-2:-1] for h in long],
            "test/input": [h[:-1] for h in long],
            "test/output": [h[-1:] for h in long],
        }
        root = Path("datasets") / "log"
        for name, rows in parts.items():
            path = root / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
        stats = {"num_items": self.n_items, "num_users": len(histories)}
        (root / "dataset_stats.json").write_text(json.dumps(stats))

    def about(self) -> Answer:
        return {
            "versions": _versions("torch", "numpy", "ir-measures"),
            "differs": "untied table; negatives may be items of the user",
        }

    def load(self) -> Answer:
        """Its loaders on the folder it wants, whose writing is not counted."""
        began = time.perf_counter()
        loaders = importlib.import_module("dataset_utils")
        length = self.config.sequence_length
        self.train_loader = loaders.get_train_dataloader(
            "log", self.config.train_batch_size, length, self.config.negs_per_pos
        )
        self.test_loader = loaders.get_test_dataloader("log", EVALUATION_BATCH, length)
        return {"seconds": time.perf_counter() - began}

    def train(self, steps: int | None = None, epochs: int = 1) -> Answer:
        per_epoch = len(self.train_loader)
        steps = min(steps or per_epoch, per_epoch)
        self.model.train()
        seconds = seconds_of(lambda: self._epoch(steps), epochs)
        return {"seconds": seconds / epochs, "steps": steps, "steps_per_epoch": per_epoch}

    def _epoch(self, steps: int) -> None:
        torch = self.torch
        for positives, negatives in itertools.islice(iter(self.train_loader), steps):
            model_input, labels = positives[:, :-1], positives[:, 1:]
            last_hidden_state, _ = self.model(model_input)
            pos_neg_concat = torch.cat([labels.unsqueeze(-1), negatives[:, 1:, :]], dim=-1)
            pos_neg_embeddings = self.model.get_output_embeddings()(pos_neg_concat)
            mask = (model_input != self.n_items + 1).float()
            logits = torch.einsum("bse, bsne -> bsn", last_hidden_state, pos_neg_embeddings)
            gt = torch.zeros_like(logits)
            gt[:, :, 0] = 1
            logits = self._calibrated(logits)
            per_element = torch.nn.functional.binary_cross_entropy_with_logits(logits, gt, reduction="none").mean(-1)
            loss = (per_element * mask).sum() / mask.sum()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            print(loss.item())

    def _calibrated(self, logits: Any) -> Any:
        """Its gBCE transformation of the positive logits, in float64."""
        torch, t = self.torch, self.config.gbce_t
        alpha = self.config.negs_per_pos / (self.n_items - 1)
        beta = alpha * ((1 - 1 / alpha) * t + 1 / alpha)
        positive, negative = logits[:, :, 0:1].to(torch.float64), logits[:, :, 1:].to(torch.float64)
        eps, largest = 1e-10, torch.finfo(torch.float64).max
        probabilities = torch.clamp(torch.sigmoid(positive), eps, 1 - eps)
        adjusted = torch.clamp(probabilities.pow(-beta), 1 + eps, largest)
        to_log = torch.clamp(torch.div(1.0, (adjusted - 1)), eps, largest)
        return torch.cat([to_log.log(), negative], -1)

    def evaluate(self, protocol: str, users: int | None = None) -> Answer:
        """What its eval_utils.py evaluates: full ranking, seen items hidden, metrics by ir-measures."""
        if protocol != "full":
            return {"unsupported": "its evaluation is full"}
        ir, evaluation = self.metrics, importlib.import_module("eval_utils")
        loader = _Bounded(self.test_loader, users or len(self.test_loader.dataset))
        began = time.perf_counter()
        result = evaluation.evaluate(self.model, loader, [ir.nDCG @ K, ir.R @ K], K, True, "cpu")
        seconds = time.perf_counter() - began
        metrics = {"ndcg@10": result[ir.nDCG @ K], "hr@10": result[ir.R @ K]}
        return {"seconds": seconds, "n_users": loader.n_users, "metrics": metrics}

    def recommend_user(self, n: int) -> Answer:
        dataset = self.test_loader.dataset
        self.model.eval()
        chosen = [dataset[i] for i in np.random.default_rng(0).choice(len(dataset), n)]
        return latency(lambda one: self.model.get_predictions(one[0][None], K, [one[1]]), chosen)


class Rectools:
    """RecTools' SASRecModel, from an environment where rectools[torch] is installed."""

    LOSSES: ClassVar = {"bce": "BCE", "cross_entropy": "softmax"}  # its names

    def __init__(self, setup: Answer) -> None:
        settings = setup["settings"]
        if settings["loss"] not in self.LOSSES:
            raise ValueError(f"this peer is run with loss={' or '.join(self.LOSSES)}, not {settings['loss']!r}")
        self.torch = _torch(setup["threads"])
        self.data, self.settings = setup["data"], settings
        _seed(settings["seed"])
        self.load()
        lightning = importlib.import_module("pytorch_lightning")
        self.timer_type = _epoch_timer(lightning.Callback)
        self.trainer_type = lightning.Trainer
        self.model = importlib.import_module("rectools.models").SASRecModel(
            n_blocks=settings["n_blocks"],
            n_heads=settings["n_heads"],
            n_factors=settings["embedding_dim"],
            dropout_rate=settings["dropout"],
            session_max_len=settings["max_seq_len"],
            loss=self.LOSSES[settings["loss"]],
            n_negatives=settings["n_negatives"],
            lr=settings["learning_rate"],
            batch_size=settings["batch_size"],
            item_net_block_types=(importlib.import_module("rectools.models.nn.item_net").IdEmbeddingsItemNet,),
            get_trainer_func=self._trainer,
        )

    def _trainer(self) -> Any:
        return self.trainer_type(callbacks=[self.timer_type()], **_quiet_trainer())

    def about(self) -> Answer:
        found = _versions("torch", "numpy", "rectools", "pytorch-lightning")
        differs = {"bce": "negatives may be items of the user", "cross_entropy": ""}[self.settings["loss"]]
        return {"versions": found, "differs": differs}

    def load(self) -> Answer:
        """The file by pandas, then its Dataset.construct of the train part."""
        began = time.perf_counter()
        self.log = _frame(self.data).rename(columns={"timestamp": "datetime"}).assign(weight=1.0)
        dataset = importlib.import_module("rectools.dataset").Dataset
        self.train_set = dataset.construct(self.log[self.log["from_end"] >= 2])
        seconds = time.perf_counter() - began
        self.history_set = dataset.construct(self.log[self.log["from_end"] >= 1])
        self.test = self.log[self.log["is_test"]].set_index("user_id")["item_id"]
        return {"seconds": seconds}

    def train(self, steps: int | None = None, epochs: int = 1) -> Answer:
        if self.model.fit_trainer is None:
            self.model._trainer.limit_train_batches = steps or 1.0
        else:
            self.model.fit_trainer.limit_train_batches = steps or 1.0
        self.model.fit_partial(self.train_set, epochs, epochs)
        timer = next(c for c in self.model.fit_trainer.callbacks if isinstance(c, self.timer_type))
        per_epoch = len(self.model.data_preparator.get_dataloader_train())
        seconds = timer.take() / epochs
        return {"seconds": seconds, "steps": min(steps or per_epoch, per_epoch), "steps_per_epoch": per_epoch}

    def evaluate(self, protocol: str, users: int | None = None) -> Answer:
        """Its recommend() of 10 items, seen ones hidden, and the ranks of the targets."""
        if protocol != "full":
            return {"unsupported": "it recommends from all items"}
        wanted = self.test.index.to_numpy()[:users]
        began = time.perf_counter()
        lists = self.model.recommend(wanted, self.history_set, k=K, filter_viewed=True)
        hits = lists[lists["item_id"].to_numpy() == self.test.loc[lists["user_id"]].to_numpy()]
        metrics = _metrics(hits["rank"].to_numpy(), len(wanted))
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "n_users": len(wanted), "metrics": metrics}

    def recommend_users(self, users: int | None = None) -> Answer:
        """Its recommend() of 10 items, seen ones hidden, of the users of whom it has known items."""
        dataset = importlib.import_module("rectools.dataset").Dataset.construct(self.log)
        wanted = self.log["user_id"].unique()[:users]
        began = time.perf_counter()
        lists = self.model.recommend(wanted, dataset, k=K, filter_viewed=True, on_unsupported_targets="ignore")
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "n_users": lists["user_id"].nunique()}

    def recommend_user(self, n: int) -> Answer:
        users = np.random.default_rng(0).choice(self.test.index.to_numpy(), n)
        return latency(
            lambda user: self.model.recommend([user], self.history_set, k=K, filter_viewed=True), list(users)
        )


class Replay:
    """RePlay's SasRec of replay.nn, from an environment where replay-rec[torch] is installed (0.22 or later)."""

    def __init__(self, setup: Answer) -> None:
        settings = setup["settings"]
        _require(settings, loss="bce")
        self.torch = _torch(setup["threads"])
        self.data, self.settings = setup["data"], settings
        _seed(settings["seed"])
        self.load()
        sequential = importlib.import_module("replay.nn.sequential")
        lightning = importlib.import_module("replay.nn.lightning")
        optimizer = importlib.import_module("replay.nn.lightning.optimizer")
        network = sequential.SasRec.from_params(
            schema=self.schema,
            embedding_dim=settings["embedding_dim"],
            num_heads=settings["n_heads"],
            num_blocks=settings["n_blocks"],
            max_sequence_length=settings["max_seq_len"],
            dropout=settings["dropout"],
        )
        network.loss = importlib.import_module("replay.nn.loss").BCESampled()
        network.loss.logits_callback = network.get_logits
        factory = optimizer.OptimizerFactory(learning_rate=settings["learning_rate"])
        self.model = lightning.LightningModule(network, optimizer_factory=factory)
        self.lightning = importlib.import_module("lightning")
        self.timer = _epoch_timer(self.lightning.Callback)()

    def about(self) -> Answer:
        found = _versions("torch", "numpy", "replay-rec", "lightning")
        return {"versions": found, "differs": "negatives are shared by the batch and may be items of the user"}

    def load(self) -> Answer:
        """The file by pandas, its encoder and grouping, and the Parquet files its modules read."""
        began = time.perf_counter()
        preprocessing = importlib.import_module("replay.preprocessing")
        rules = [preprocessing.LabelEncodingRule(column) for column in ("user_id", "item_id")]
        log = _frame(self.data)
        self.encoder = preprocessing.LabelEncoder(rules)
        log[["user_id", "item_id"]] = self.encoder.fit_transform(log[["user_id", "item_id"]])
        self.n_items = len(self.encoder.mapping["item_id"])
        self._group(log[log["from_end"] >= 2]).to_parquet("train.parquet")
        seconds = time.perf_counter() - began
        test = self._group(log[(log["from_end"] >= 1) & log["has_test"]])
        test["seen_ids"] = test["item_id"]
        test["ground_truth"] = [[item] for item in log[log["is_test"]].set_index("user_id")["item_id"][test["user_id"]]]
        test.to_parquet("test.parquet")
        self.longest, self.n_test = int(test["item_id"].map(len).max()), len(test)
        self._describe()
        return {"seconds": seconds}

    def _group(self, events: Any) -> Any:
        group = importlib.import_module("replay.data.nn.utils").groupby_sequences
        return group(events=events[["user_id", "item_id", "timestamp"]], groupby_col="user_id", sort_col="timestamp")

    def _describe(self) -> None:
        """Its schema, transforms and data module."""
        data, nn = importlib.import_module("replay.data"), importlib.import_module("replay.data.nn")
        self.schema = nn.TensorSchema(
            [
                nn.TensorFeatureInfo(
                    name="item_id",
                    is_seq=True,
                    padding_value=self.n_items,
                    cardinality=self.n_items,
                    embedding_dim=self.settings["embedding_dim"],
                    feature_type=data.FeatureType.CATEGORICAL,
                    feature_hint=data.FeatureHint.ITEM_ID,
                )
            ]
        )
        templates = importlib.import_module("replay.nn.transform.template")
        negatives = importlib.import_module("replay.nn.transform").UniformNegativeSamplingTransform
        self.transforms = templates.make_default_sasrec_transforms(self.schema)
        self.transforms["train"].append(negatives(self.n_items, self.settings["n_negatives"]))

    def _module(self, part: str, path: str, batch_size: int, **columns: Any) -> Any:
        module = importlib.import_module("replay.data.nn").ParquetModule
        paths = {f"{part}_path": path}
        return module(batch_size, metadata={part: columns}, transforms=self.transforms, **paths)

    def train(self, steps: int | None = None, epochs: int = 1) -> Answer:
        columns = {"item_id": {"shape": self.settings["max_seq_len"] + 1, "padding": self.n_items}}
        module = self._module("train", "train.parquet", self.settings["batch_size"], **columns)
        limits = {"limit_train_batches": steps or 1.0, "limit_val_batches": 0}
        trainer = self.lightning.Trainer(max_epochs=epochs, callbacks=[self.timer], **limits, **_quiet_trainer())
        trainer.fit(self.model, datamodule=module)
        per_epoch = len(module.train_dataloader())
        seconds = self.timer.take() / epochs
        return {"seconds": seconds, "steps": min(steps or per_epoch, per_epoch), "steps_per_epoch": per_epoch}

    def evaluate(self, protocol: str, users: int | None = None) -> Answer:
        """Its Trainer.test with its metrics, seen items hidden."""
        if protocol != "full":
            return {"unsupported": "it ranks all items"}
        callbacks = importlib.import_module("replay.nn.lightning.callback")
        seen = importlib.import_module("replay.nn.lightning.postprocessor").SeenItemsFilter(self.n_items)
        metrics = callbacks.ComputeMetricsCallback(
            metrics=["ndcg", "recall"], ks=[K], postprocessors=[seen], item_count=self.n_items, verbose=False
        )
        module = self._module(
            "test",
            "test.parquet",
            EVALUATION_BATCH,
            item_id={"shape": self.settings["max_seq_len"], "padding": self.n_items},
            seen_ids={"shape": self.longest, "padding": self.n_items},
            ground_truth={"shape": 1, "padding": -1},
        )
        batches = 1.0 if users is None else -(-users // EVALUATION_BATCH)
        trainer = self.lightning.Trainer(callbacks=[metrics], limit_test_batches=batches, **_quiet_trainer())
        began = time.perf_counter()
        (found,) = trainer.test(self.model, datamodule=module, verbose=False)
        seconds = time.perf_counter() - began
        n_users = self.n_test if users is None else min(batches * EVALUATION_BATCH, self.n_test)
        return {
            "seconds": seconds,
            "n_users": n_users,
            "metrics": {"ndcg@10": found[f"ndcg@{K}"], "hr@10": found[f"recall@{K}"]},
        }


class Recbole:
    """RecBole's SASRec, from an environment where recbole is installed. One row per prefix; BPR for our BCE."""

    def __init__(self, setup: Answer) -> None:
        settings = setup["settings"]
        _require(settings, loss="bce", n_negatives=1)
        self.torch = _torch(setup["threads"])
        self.data, self.settings = setup["data"], settings
        self.load()
        utils = importlib.import_module("recbole.utils")
        utils.init_seed(settings["seed"], True)
        self.model = utils.get_model("SASRec")(self.config, self.train_data._dataset)
        self.trainer = utils.get_trainer(self.config["MODEL_TYPE"], "SASRec")(self.config, self.model)
        self.trainer.eval_collector.data_collect(self.train_data)
        self.epochs = 0

    def about(self) -> Answer:
        return {
            "versions": _versions("torch", "numpy", "recbole"),
            "differs": "BPR; one row per prefix, so a batch is as many positions; seen items stay in the ranking",
        }

    def load(self) -> Answer:
        """Its atomic file, whose writing is not counted, to its three data loaders."""
        folder = Path("dataset") / "log"
        folder.mkdir(parents=True, exist_ok=True)
        log = _frame(self.data)[["user_id", "item_id", "timestamp"]]
        header = ["user_id:token", "item_id:token", "timestamp:float"]
        log.to_csv(folder / "log.inter", sep="\t", index=False, header=header)
        began = time.perf_counter()
        config = importlib.import_module("recbole.config").Config
        data = importlib.import_module("recbole.data")
        self.config = config(model="SASRec", dataset="log", config_dict=self._config())
        importlib.import_module("recbole.utils").init_logger(self.config)
        loaders = data.data_preparation(self.config, data.create_dataset(self.config))
        self.train_data, _, self.test_data = loaders
        return {"seconds": time.perf_counter() - began}

    def _config(self) -> Answer:
        settings = self.settings
        return {
            "data_path": "dataset",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": settings["max_seq_len"],
            "n_layers": settings["n_blocks"],
            "n_heads": settings["n_heads"],
            "hidden_size": settings["embedding_dim"],
            "inner_size": settings["ffn_dim"] or settings["embedding_dim"],
            "hidden_dropout_prob": settings["dropout"],
            "attn_dropout_prob": settings["dropout"],
            "loss_type": "BPR",
            "train_batch_size": settings["batch_size"],
            "learning_rate": settings["learning_rate"],
            "eval_batch_size": 4096,
            "eval_args": {
                "split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"
            },
            "metrics": ["NDCG", "Hit"],
            "topk": [K],
            "valid_metric": "NDCG@10",
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
            "seed": settings["seed"],
        }  # fmt: skip

    def train(self, steps: int | None = None, epochs: int = 1) -> Answer:
        """Its Trainer._train_epoch, on all or the first batches of its loader."""
        per_epoch = len(self.train_data)
        steps = min(steps or per_epoch, per_epoch)
        seconds = seconds_of(lambda: self._epoch(steps), epochs)
        return {"seconds": seconds / epochs, "steps": steps, "steps_per_epoch": per_epoch}

    def _epoch(self, steps: int) -> None:
        self.trainer._train_epoch(itertools.islice(self.train_data, steps), self.epochs)
        self.epochs += 1

    def evaluate(self, protocol: str, users: int | None = None) -> Answer:
        """Its Trainer.evaluate, of all users however few are asked for."""
        if protocol != "full":
            return {"unsupported": "it is set to rank all items"}
        began = time.perf_counter()
        found = self.trainer.evaluate(self.test_data, load_best_model=False)
        seconds = time.perf_counter() - began
        metrics = {"ndcg@10": float(found["ndcg@10"]), "hr@10": float(found["hit@10"])}
        return {"seconds": seconds, "n_users": len(self.test_data.dataset), "metrics": metrics}


class _Bounded:
    """The first batches of a loader, as many as the users need."""

    def __init__(self, loader: Any, users: int) -> None:
        self.loader = loader
        self.n_batches: int = min(-(-users // loader.batch_size), len(loader))
        self.n_users = min(self.n_batches * loader.batch_size, len(loader.dataset))

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Any:
        return itertools.islice(iter(self.loader), self.n_batches)


def _epoch_timer(base: Any) -> Any:
    """A Lightning callback class that adds up the wall seconds of training epochs; base is the peer's Callback."""

    class EpochTimer(base):
        seconds = began = 0.0

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.seconds += time.perf_counter() - self.began

        def take(self) -> float:
            """The seconds so far, from now on zero."""
            seconds, self.seconds = self.seconds, 0.0
            return seconds

    return EpochTimer


def _quiet_trainer() -> Answer:
    """Lightning's Trainer without what costs time and measures nothing."""
    return {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def _require(settings: Answer, **values: Any) -> None:
    """Refuse settings that the peer cannot have."""
    for name, value in values.items():
        if settings[name] != value:
            raise ValueError(f"this peer has {name}={value} only, and the preset sets {settings[name]!r}")


def _torch(threads: int) -> Any:
    """The peer's torch with as many threads as ours."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    return torch


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the peers draw from it
    importlib.import_module("torch").manual_seed(seed)


def _versions(*names: str) -> dict[str, str]:
    return dict(versions(names))


def _link(source: str, target: Path) -> None:
    """The data under the name the peer wants."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def _histories(path: str) -> dict[int, list[int]]:
    """Items of each user in the file's order."""
    histories: dict[int, list[int]] = {}
    with Path(path).open() as lines:
        for line in lines:
            user, item = map(int, line.split())
            histories.setdefault(user, []).append(item)
    return histories


def _frame(path: str) -> Any:
    """user_id, item_id, timestamp (the line's number), from_end (0 = the user's last), is_test, has_test.

    Users with fewer than 3 events only train: all of theirs have from_end 2.
    """
    pandas = importlib.import_module("pandas")
    log = pandas.read_csv(path, sep=" ", names=["user_id", "item_id"], dtype=np.int64)
    log["timestamp"] = np.arange(len(log))
    by_user = log.groupby("user_id")["item_id"]
    log["has_test"] = by_user.transform("size") >= 3
    log["from_end"] = by_user.cumcount(ascending=False).where(log["has_test"], 2)
    log["is_test"] = log["from_end"] == 0
    return log


def _metrics(ranks: Any, n_users: int) -> dict[str, float]:
    """NDCG@10 and HR@10 from the ranks of the targets that were hit."""
    return {"ndcg@10": float((1 / np.log2(1 + ranks)).sum() / n_users), "hr@10": len(ranks) / n_users}


ADAPTERS = {"pmixer": Pmixer, "gsasrec": Gsasrec, "rectools": Rectools, "replay": Replay, "recbole": Recbole}


def main(name: str) -> None:
    """Serve one peer in a folder of its own, which goes when it ends."""
    if name not in ADAPTERS:
        sys.exit(f"there is no adapter for {name!r}; there are: {', '.join(ADAPTERS)}")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        serve(ADAPTERS[name])
        os.chdir("/")


if __name__ == "__main__":
    main(sys.argv[1])
