"""Settings: validation, round trips, presets."""

import dataclasses
import json
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from sasrec.core.config import (
    CONFIGS,
    EvalConfig,
    ModelConfig,
    Padding,
    TrainConfig,
    from_dict,
    parse_metric,
    split_settings,
    to_dict,
)
from sasrec.core.errors import ConfigError
from sasrec.core.presets import PRESETS, LogStatistics, resolve
from sasrec.core.server_config import ServerConfig

LONG = LogStatistics(6040, 3416, 987_531, 163.5)
SHORT = LogStatistics(31_013, 23_715, 225_305, 7.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": "resnet"}, "block='resnet' is not one of sasrec, post_norm, pre_norm, ligr"),
        ({"embedding_dim": 0}, "embedding_dim=0 is too small; the least is 1"),
        ({"dropout": 1.0}, "dropout=1.0 is too large"),
        ({"embedding_dim": 2.5}, "embedding_dim=2.5 is not of type int"),
        ({"tied": 1}, "tied=1 is not of type bool"),
        ({"n_heads": 3}, "n_heads=3 does not divide embedding_dim=50"),
        ({"maxlen": 5}, "unknown setting 'maxlen'"),
        ({5: 1, "a": 2}, "unknown setting 5"),
        ({"dropout": float("nan")}, "dropout=nan is not a finite number"),
        ({"dropout": "0.1"}, "dropout='0.1' is not of type float"),
        ({"block": ["sasrec"]}, "is not one of sasrec"),
    ],
)
def test_wrong_setting_is_refused_by_name_and_value(settings: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(ModelConfig, settings)


@pytest.mark.parametrize("value", ["ndcg", "ndcg@0", "ndcg@x", "auc@10", "ndcg@-1", ""])
def test_metric_that_does_not_exist_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="is not a metric"):
        TrainConfig(valid_metric=value)


def test_metric_name_is_split_into_name_and_cutoff() -> None:
    assert parse_metric("hr@25") == ("hr", 25)


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)
def test_config_survives_a_round_trip_through_json_values(cls: type[Any]) -> None:
    assert from_dict(cls, json.loads(json.dumps(to_dict(cls())))) == cls()
    changed = {"model": {"block": "ligr"}, "train": {"learning_rate": 0.1 + 0.2}, "eval": {"k": (5, 10)}}
    config = cls(**next(changed[part] for part, other in CONFIGS.items() if other is cls))
    assert config != cls()
    assert from_dict(cls, json.loads(json.dumps(to_dict(config)))) == config


def test_a_servers_config_survives_the_same_and_names_an_unknown_key() -> None:
    config = ServerConfig(port=0, read_timeout=0.3, access_log=False, events="e.db")
    assert from_dict(ServerConfig, json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(
        ConfigError, match=r"unknown setting 'prot' \(did you mean 'port'\?\); ServerConfig has: host, port"
    ):
        from_dict(ServerConfig, {"prot": 1})
    with pytest.raises(ConfigError, match="max_requests=11 is more than queue_size=10"):
        ServerConfig(queue_size=10, max_requests=11)


def test_one_cutoff_may_be_given_bare() -> None:
    assert EvalConfig(k=5).k == (5,)
    with pytest.raises(ConfigError, match="k=0 is too small"):
        EvalConfig(k=(10, 0))
    with pytest.raises(ConfigError, match="k is empty"):
        EvalConfig(k=())


@pytest.mark.parametrize("value", [5.5, None, "10", True, [1.5], (3, "5")])
def test_cutoff_that_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"k=.* is not of type int"):
        EvalConfig(k=value)


FIELDS = [(cls, field) for cls in (*CONFIGS.values(), ServerConfig) for field in dataclasses.fields(cls)]
RANGES = [(cls, f) for cls, f in FIELDS if f.metadata["low"] is not None]
CHOICES = [(cls, f) for cls, f in FIELDS if get_args(get_type_hints(cls)[f.name]) not in ((), (int, ...))]


@pytest.mark.parametrize(("cls", "field"), RANGES, ids=[f.name for _, f in RANGES])
def test_both_ends_of_a_range_are_allowed_and_nothing_beyond(cls: type[Any], field: Any) -> None:
    low, high = field.metadata["low"], field.metadata["high"]
    needs = {
        "n_heads": {"embedding_dim": 256},
        "max_requests": {"queue_size": 10**6},
        "queue_size": {"max_requests": 1},
    }
    rest = needs.get(field.name, {})
    for value in (low, high):
        assert getattr(cls(**rest, **{field.name: value}), field.name) in (value, (value,))
    with pytest.raises(ConfigError, match=f"^{field.name}=.* is too small"):
        cls(**{field.name: low - 1})
    with pytest.raises(ConfigError, match=f"^{field.name}=.* is too large"):
        cls(**{field.name: high + 1})


@pytest.mark.parametrize(("cls", "field"), CHOICES, ids=[f.name for _, f in CHOICES])
def test_every_choice_is_accepted_and_listed_when_another_is_refused(cls: type[Any], field: Any) -> None:
    choices = get_args(get_type_hints(cls)[field.name])
    for choice in choices:
        assert getattr(cls(**{field.name: choice}), field.name) == choice
    with pytest.raises(ConfigError, match=f"^{field.name}='nothing' is not one of {', '.join(choices)}$"):
        cls(**{field.name: "nothing"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_cut_in_time_must_be_a_number(value: float) -> None:
    with pytest.raises(ConfigError, match=r"test_cut=.* is not a finite number"):
        EvalConfig(test_cut=value)


def test_learning_rate_rises_over_the_warm_up_and_falls_along_half_a_cosine() -> None:
    config = TrainConfig(learning_rate=0.4, warmup_steps=4, schedule="cosine", max_epochs=10)
    plain = TrainConfig(learning_rate=0.4)
    assert [plain.learning_rate_at(step, 10) for step in (0, 50, 99)] == [0.4, 0.4, 0.4]
    assert config.learning_rate_at(0, 10) == pytest.approx(0.1)
    assert config.learning_rate_at(50, 10) == pytest.approx(0.2)
    assert config.learning_rate_at(100, 10) == pytest.approx(0.0)
    falling = [config.learning_rate_at(step, 10) for step in range(4, 101)]
    assert falling == sorted(falling, reverse=True)


def test_average_forgets_initial_weights_and_then_keeps_its_decay() -> None:
    config = TrainConfig(ema_decay=0.99)
    assert config.ema_decay_at(0) == pytest.approx(0.1)
    assert config.ema_decay_at(90) == pytest.approx(0.91)
    assert config.ema_decay_at(10_000) == 0.99
    with pytest.raises(ConfigError, match="lazy_adam"):
        TrainConfig(ema_decay=0.99, lazy_adam=True)


def test_whole_number_is_taken_for_a_decimal_setting() -> None:
    assert repr(TrainConfig(learning_rate=1).learning_rate) == "1.0"


def test_attended_padding_needs_one_more_position() -> None:
    rows = {padding: ModelConfig(max_seq_len=7, padding=padding).n_positions for padding in get_args(Padding)}
    assert rows == {"none": 7, "attended": 8, "zeroed": 7}


def test_temporal_fractions_must_leave_something_to_train_on() -> None:
    with pytest.raises(ConfigError, match="leave some of the log"):
        EvalConfig(split_method="temporal", valid_fraction=0.5, test_fraction=0.5)


def test_configs_are_frozen_and_every_field_has_help_text() -> None:
    for cls in CONFIGS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            cls().seed = 3
        assert all(field.metadata["help"] for field in dataclasses.fields(cls))


def test_settings_find_their_config_by_name_which_is_unique() -> None:
    names = [field.name for cls in CONFIGS.values() for field in dataclasses.fields(cls)]
    assert len(names) == len(set(names))
    parts = split_settings({"dropout": 0.1, "seed": 3, "ties": "strict"})
    assert parts == {"model": {"dropout": 0.1}, "train": {"seed": 3}, "eval": {"ties": "strict"}}


def test_paper_preset_is_the_published_setting() -> None:
    model, train, _ = resolve("paper", LONG, {})
    assert (model.block, model.embedding_dim, model.n_blocks, model.n_heads) == ("sasrec", 50, 2, 1)
    assert (model.max_seq_len, model.dropout) == (200, 0.2)
    assert (train.loss, train.n_negatives, train.batch_size, train.learning_rate) == ("bce", 1, 128, 1e-3)
    assert (train.adam_beta1, train.adam_beta2, train.l2_embedding, train.patience) == (0.9, 0.98, 0.0, 20)
    model, _, _ = resolve("paper", SHORT, {})
    assert (model.max_seq_len, model.dropout) == (50, 0.5)


@pytest.mark.parametrize(
    ("n_items", "mean_train_len", "protocol"),
    [
        (12, 8, "full"), (999, 0, "full"), (1000, 0, "sampled"), (1000, 1, "full"), (1200, 500, "full"),
        (1682, 104, "sampled"), (3416, 163, "sampled"), (10**6, 8, "sampled"),
    ],
)  # fmt: skip
def test_paper_chooses_the_epoch_by_full_ranking_where_draws_would_repeat(
    n_items: int, mean_train_len: float, protocol: str
) -> None:
    sizes = dataclasses.replace(LONG, n_items=n_items, mean_train_len=mean_train_len)
    assert resolve("paper", sizes, {})[1].valid_protocol == protocol
    for own in ("full", "sampled"):
        assert resolve("paper", sizes, {"valid_protocol": own})[1].valid_protocol == own


@pytest.mark.parametrize(("mean_train_len", "max_seq_len"), [(49.9, 50), (50.0, 200)])
def test_histories_are_long_from_a_mean_of_fifty_on(mean_train_len: float, max_seq_len: int) -> None:
    model, _, _ = resolve("paper", dataclasses.replace(LONG, mean_train_len=mean_train_len), {})
    assert model.max_seq_len == max_seq_len


@pytest.mark.parametrize(("events_per_item", "dropout"), [(1, 0.5), (20, 0.5), (63.2, 0.35), (200, 0.2), (9000, 0.2)])
def test_dropout_of_best_falls_with_events_per_item(events_per_item: float, dropout: float) -> None:
    statistics = dataclasses.replace(LONG, n_items=100, n_events=round(100 * events_per_item))
    assert resolve("best", statistics, {})[0].dropout == pytest.approx(dropout, abs=0.005)


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_presets_score_all_items_where_that_is_affordable_and_else_as_many_as_are(preset: str) -> None:
    assert resolve(preset, LONG, {})[1].loss == "cross_entropy"
    assert resolve(preset, dataclasses.replace(SHORT, n_items=7), {})[1].loss == "cross_entropy"
    drawn = []
    for n_events in (10**6, 10**7, 10**9):
        train = resolve(preset, LogStatistics(n_events // 10, 10**6, n_events, 10.0), {})[1]
        assert (train.loss, train.shared_negatives) == ("sampled_softmax", True)
        drawn.append(train.n_negatives)
    assert drawn == sorted(drawn, reverse=True)
    assert drawn[-1] == 512


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_presets_mask_seen_items_where_they_are_hidden_from_recommendations(preset: str) -> None:
    for statistics in (LONG, SHORT):
        for hides_seen in (True, False):
            train = resolve(preset, dataclasses.replace(statistics, hides_seen=hides_seen), {})[1]
            assert train.mask_seen == hides_seen


@pytest.mark.parametrize(
    ("n_users", "batch_size", "max_epochs", "patience"),
    [(31_013, 128, 60, 5), (10_000, 128, 60, 6), (9999, 64, 60, 5), (1090, 64, 195, 23), (1, 64, 300, 50)],
)
def test_few_users_with_short_histories_get_small_batches_more_epochs_and_more_patience(
    n_users: int, batch_size: int, max_epochs: int, patience: int
) -> None:
    train = resolve("best", dataclasses.replace(SHORT, n_users=n_users), {})[1]
    assert (train.batch_size, train.max_epochs, train.patience) == (batch_size, max_epochs, patience)
    assert resolve("fast", dataclasses.replace(SHORT, n_users=n_users), {})[1].max_epochs <= max(20, max_epochs // 2)


@pytest.mark.parametrize(
    ("n_users", "max_epochs", "patience", "fast_epochs"),
    [(6040, 40, 10, 5), (943, 40, 10, 30), (200, 172, 43, 129), (1, 300, 100, 150)],
)
def test_few_users_with_long_histories_get_more_epochs_and_more_patience(
    n_users: int, max_epochs: int, patience: int, fast_epochs: int
) -> None:
    statistics = dataclasses.replace(LONG, n_users=n_users, n_events=round(n_users * LONG.mean_train_len))
    train = resolve("best", statistics, {})[1]
    assert (train.batch_size, train.max_epochs, train.patience) == (32, max_epochs, patience)
    assert resolve("fast", statistics, {})[1].max_epochs == fast_epochs


@pytest.mark.parametrize(("n_users", "patience"), [(31_013, 20), (6040, 20), (1090, 100), (1, 900)])
def test_patience_of_paper_has_steps_enough(n_users: int, patience: int) -> None:
    assert resolve("paper", dataclasses.replace(LONG, n_users=n_users), {})[1].patience == patience


@pytest.mark.parametrize(
    ("mean_train_len", "max_seq_len"), [(7.3, 50), (12.5, 50), (20.1, 81), (46.2, 185), (49.9, 200), (50.0, 200)]
)
def test_best_sees_four_times_the_mean_history(mean_train_len: float, max_seq_len: int) -> None:
    model, _, _ = resolve("best", dataclasses.replace(SHORT, mean_train_len=mean_train_len), {})
    assert model.max_seq_len == max_seq_len


def test_own_settings_win_over_the_preset() -> None:
    model, train, _ = resolve("paper", LONG, {"max_seq_len": 20, "seed": 5})
    assert (model.max_seq_len, train.seed) == (20, 5)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_valid_settings_for_any_log(preset: str) -> None:
    for statistics in (LONG, SHORT, LogStatistics(1, 1, 3, 1.0), LogStatistics(10**8, 10**7, 10**10, 100.0)):
        resolve(preset, statistics, {})


def test_unknown_preset_or_setting_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"preset 'papers' is not known \(did you mean 'paper'\?\); there are: paper"):
        resolve("papers", LONG, {})
    with pytest.raises(ConfigError, match=r"unknown setting 'lr'; known settings: .*learning_rate"):
        resolve("paper", LONG, {"lr": 1})


def test_numpys_scalars_are_stored_as_pythons_own() -> None:
    train = TrainConfig(
        max_epochs=np.int64(3), seed=np.uint8(7), learning_rate=np.float64(0.5), gbce_t=np.float32(0.25),
        clip_norm=np.int32(2), lazy_adam=np.True_, loss=np.str_("gbce"), valid_metric=np.str_("hr@5"),
    )  # fmt: skip
    wanted = TrainConfig(
        max_epochs=3, seed=7, learning_rate=0.5, gbce_t=0.25, clip_norm=2, lazy_adam=True, loss="gbce",
        valid_metric="hr@5",
    )  # fmt: skip
    assert train == wanted
    assert json.dumps(to_dict(train)) == json.dumps(to_dict(wanted))
    assert {type(value) for value in to_dict(train).values()} == {int, float, bool, str}
    for several in (np.array([5, 10]), range(5, 11, 5), [np.int8(5), np.int16(10)]):
        assert json.dumps(to_dict(from_dict(EvalConfig, {"k": several}))["k"]) == "[5, 10]"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_blocks": True}, "n_blocks=True is not of type int"),
        ({"n_blocks": np.True_}, "n_blocks=True is not of type int"),
        ({"n_blocks": 2.0}, "n_blocks=2.0 is not of type int"),
        ({"n_blocks": np.float32(2)}, "n_blocks=2.0 is not of type int"),
        ({"n_blocks": np.array(2)}, r"n_blocks=array\(2\) is not of type int"),
        ({"n_blocks": np.int64(-1)}, "n_blocks=-1 is too small"),
        ({"dropout": True}, "dropout=True is not of type float"),
        ({"dropout": np.float32("nan")}, "dropout=nan is not a finite number"),
        ({"dropout": 10**400}, "dropout=inf is not a finite number"),
        ({"tied": np.int64(1)}, "tied=1 is not of type bool"),
        ({"block": np.array(["ligr", "sasrec"])}, "block=array.* is not one of sasrec"),
        ({"block": True}, "block=True is not one of sasrec"),
    ],
)
def test_what_only_looks_like_the_type_of_a_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(ModelConfig, settings)
