"""Small made files with the shape of public data sets: names, columns, order of rows, quotes, encodings, oddities.

No row is copied from a data set: users, items, times and titles are drawn here. What an entry expects is made from the
same rows as its file, without a reader. A comment names where the shape of each is described.
"""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from typing import Any

from reading.drawn import (
    DIGITS,
    HEX,
    MANY,
    NUMBERS,
    Refused,
    Shape,
    by_item,
    by_user,
    days,
    ids,
    json_lines,
    log,
    milliseconds,
    newest_first,
    python_lines,
    seconds,
    shuffled,
    stamp,
    text,
)
from reading.shapes_of_ratings import (
    amazon_2014,
    amazon_2014_reviews,
    amazon_2018,
    amazon_2018_reviews,
    amazon_2023,
    amazon_2023_reviews,
    amazon_2023_splits,
    book_crossing,
    goodreads,
    goodreads_dates,
    ml_1m,
    ml_10m,
    ml_20m,
    ml_32m,
    ml_100k,
    steam,
    steam_items,
    steam_owners,
    steam_reviews,
    yelp,
)


# 2015.recsyschallenge.com/challenge.html: no header. Clicks are sorted by session, the category is a number, 0 or "S";
# buys are not sorted by time.
def yoochoose_clicks() -> Shape:
    rows = by_user(log(NUMBERS, MANY, 1_396_800_000, 900))
    lines = [[u, iso_milliseconds(t), i, ["0", "S", "11"][j % 3]] for j, (u, i, t) in enumerate(rows)]
    return Shape("yoochoose-clicks", {"yoochoose-clicks.dat": text(lines)}, "yoochoose-clicks.dat",
                 [(u, i, t + 0.277) for u, i, t in rows], {"columns": "user,timestamp,item,-"})  # fmt: skip


def yoochoose_buys() -> Shape:
    rows = shuffled(log(NUMBERS, MANY, 1_396_800_000, 900))
    lines = ([u, iso_milliseconds(t), i, 12462, j % 3] for j, (u, i, t) in enumerate(rows))
    return Shape("yoochoose-buys", {"yoochoose-buys.dat": text(lines)}, "yoochoose-buys.dat",
                 [(u, i, t + 0.277) for u, i, t in rows], {"columns": "user,timestamp,item,-,-"})  # fmt: skip


def iso_milliseconds(time: int) -> str:
    return stamp(time, "%Y-%m-%dT%H:%M:%S.277Z")


# kaggle.com/datasets/retailrocket/ecommerce-dataset: milliseconds, in no order; transactionid is mostly empty.
def retailrocket() -> Shape:
    rows = milliseconds(shuffled(log(NUMBERS, MANY, 1_433_200_000)))
    lines = [["timestamp", "visitorid", "event", "itemid", "transactionid"],
             *([t, u, "transaction" if j % 9 == 8 else "view", i, j if j % 9 == 8 else ""]
               for j, (u, i, t) in enumerate(rows))]  # fmt: skip
    properties = text([["timestamp", "itemid", "property", "value"], [1435460400000, 5, "categoryid", "1338"]])
    return Shape("retailrocket", {"events.csv": text(lines), "item_properties_part1.csv": properties}, "events.csv",
                 rows)  # fmt: skip


# CIKM Cup 2016 track 2, RecBole's DIGINETICADataset: semicolons, "NA" for most users, milliseconds within the session
# and the day of it; a session's rows are not in order.
def diginetica() -> Shape:
    rows = [(u, i, t % 1_000_000) for u, i, t in by_user(shuffled(log(NUMBERS, MANY)))]
    lines = [["sessionId", "userId", "itemId", "timeframe", "eventdate"],
             *([u, 77 + j % 5 if j % 4 == 3 else "NA", i, t, f"2016-05-{u:02}"]
               for j, (u, i, t) in enumerate(rows))]  # fmt: skip
    return Shape("diginetica", {"train-item-views.csv": text(lines, ";")}, "train-item-views.csv", rows,
                 {"user_column": "sessionId", "timestamp_column": "timeframe"})  # fmt: skip


# ocelma.net/MusicRecommendationDataset: no headers. 360K is sorted by user and plays, some artists have no MBID;
# 1K is newest first, artist and track may have no MBID, names have single and lone double quotes.
ARTISTS = ["!!!", "311", "die \xc4rzte", '"weird al" yankovic', "guns n' roses", '12" mix', "\u5742\u672c", "a; b | c"]
KEYS = [f"{one[:8]}-{one[8:12]}-{one[12:]}" for one in ids(8, 24, HEX)]


def lastfm_360k() -> Shape:
    rows = by_user(log(ids(12, 40, HEX), range(8)))
    lines = ([u, KEYS[i] * (i != 3), ARTISTS[i], 2137 - j] for j, (u, i, _) in enumerate(rows))
    return Shape("lastfm-360k", {"usersha1-artmbid-artname-plays.tsv": text(lines, "\t")},
                 "usersha1-artmbid-artname-plays.tsv", [(u, ARTISTS[i]) for u, i, _ in rows],
                 {"columns": "user,-,item,-"})  # fmt: skip


def lastfm_1k() -> Shape:
    rows = newest_first(log([f"user_{j:06}" for j in NUMBERS], range(8), 1_238_000_000))
    lines = ([u, stamp(t, "%Y-%m-%dT%H:%M:%SZ"), KEYS[i] * (i != 2), ARTISTS[i], KEYS[-i] * (i != 3), f'Song {i}"']
             for u, i, t in rows)  # fmt: skip
    file = "userid-timestamp-artid-artname-traid-traname.tsv"
    return Shape("lastfm-1k", {file: text(lines, "\t")}, file,
                 seconds((u, KEYS[-i], t) for u, i, t in rows if i != 3),
                 {"columns": "user,timestamp,-,-,item,-", "drop_missing": True},
                 ("lack a user, an item or a time",))  # fmt: skip


# grouplens.org/datasets/hetrec-2011, RecBole's LASTFMDataset: tab separated with a header; artists.dat has titles.
# A few tags are dated before 1970.
def hetrec_artists() -> Shape:
    rows, titles = by_user(log(NUMBERS, MANY)), {j: f"Artist {j}'s \xe9" for j in MANY}
    facts = [["id", "name", "url", "pictureURL"], *([j, title, "http://a", "http://b"] for j, title in titles.items())]
    lines = [["userID", "artistID", "weight"], *([u, i, 13883 - j] for j, (u, i, _) in enumerate(rows))]
    files = {"user_artists.dat": text(lines, "\t", "\r\n"), "artists.dat": text(facts, "\t", "\r\n")}
    return Shape("hetrec-artists", files, "user_artists.dat", [(u, i) for u, i, _ in rows],
                 titles_file="artists.dat", titles=titles)  # fmt: skip


def hetrec_tags() -> Shape:
    rows = milliseconds(by_user(log(NUMBERS, MANY)))
    rows[3] = (*rows[3][:2], -428_720_400_000)
    lines = [["userID", "artistID", "tagID", "timestamp"], *([u, i, 13, t] for u, i, t in rows)]
    return Shape("hetrec-tags", {"user_taggedartists-timestamps.dat": text(lines, "\t", "\r\n")},
                 "user_taggedartists-timestamps.dat", rows, warnings=("lie outside of 1990 to 2100",))  # fmt: skip


# RecBole's LFM1bDataset: user, artist, album, track and seconds, no header. cp.jku.at/datasets/LFM-2b: a header and ISO
# times, bzip2.
def lfm_1b() -> Shape:
    rows = by_user(log(NUMBERS, MANY, 1_380_000_000))
    return Shape("lfm-1b", {"LFM-1b_LEs.txt": text(([u, i % 5, i % 7, i, t] for u, i, t in rows), "\t")},
                 "LFM-1b_LEs.txt", rows, {"columns": "user,-,-,item,timestamp"})  # fmt: skip


def lfm_2b() -> Shape:
    rows = by_user(log(NUMBERS, MANY, 1_580_000_000))
    lines = [["user_id", "track_id", "album_id", "timestamp"],
             *([u, i, i % 5, stamp(t, "%Y-%m-%d %H:%M:%S")] for u, i, t in rows)]  # fmt: skip
    return Shape("lfm-2b", {"listening_events.tsv.bz2": bz2.compress(text(lines, "\t"))}, "listening_events.tsv.bz2",
                 seconds(rows))  # fmt: skip


# kaggle.com/competitions/h-and-m-personalized-fashion-recommendations: sorted by day, ids of articles begin with 0.
def hm() -> Shape:
    rows = log(ids(12, 64, HEX), ids(20, 9, DIGITS, "0"), 1_537_400_000, 200_000)
    titles = {item: f"Top {item[-3:]}, 2-pack" for _, item, _ in rows}
    lines = [["t_dat", "customer_id", "article_id", "price", "sales_channel_id"],
             *([stamp(t, "%Y-%m-%d"), u, i, 0.05083, 2] for u, i, t in rows)]  # fmt: skip
    facts = [["article_id", "product_code", "prod_name", "product_type_no", "product_type_name", "detail_desc"],
             *([i, i[:7], f'"{title}"', 253, "Top", '"Soft, ""fine""."'] for i, title in titles.items())]  # fmt: skip
    return Shape("hm", {"transactions_train.csv": text(lines), "articles.csv": text(facts)}, "transactions_train.csv",
                 days(rows), titles_file="articles.csv", titles=titles)  # fmt: skip


# github.com/otto-de/recsys-dataset: one session a line, from 0, its events in order, milliseconds.
def otto() -> Shape:
    rows = milliseconds(sorted(log(range(12), MANY, 1_659_300_000), key=lambda row: row[0]))
    sessions = [
        {"session": session, "events": [
            {"aid": i, "ts": t, "type": ["clicks", "carts", "orders"][i % 3]} for u, i, t in rows if u == session]}
        for session in range(12)
    ]  # fmt: skip
    return Shape("otto", {"otto-recsys-train.jsonl": json_lines(sessions)}, "otto-recsys-train.jsonl", rows)


# kuairand.com: day and hour beside milliseconds; several files, sorted by user, then time.
def kuairand() -> Shape:
    rows, names = milliseconds(by_user(log(NUMBERS, MANY, 1_649_600_000))), "is_click is_like is_follow is_comment "
    names += "is_forward is_hate long_view play_time_ms duration_ms profile_stay_time comment_stay_time "
    head = ["user_id", "video_id", "date", "hourmin", "time_ms", *(names + "is_profile_enter is_rand tab").split()]
    lines = [[u, i, stamp(t / 1000, "%Y%m%d", 8), stamp(t / 1000, "%H00", 8), t, j % 2, 0, 0, 0, 0, 0, 0,
              1385 * j, 209900, 0, 0, 0, 0, 1] for j, (u, i, t) in enumerate(rows)]  # fmt: skip
    files = {"log_standard_4_08_to_4_21_pure.csv": text([head, *lines[:70]]),
             "log_standard_4_22_to_5_08_pure.csv": text([head, *lines[70:]])}  # fmt: skip
    return Shape("kuairand", files, "log_standard_*_pure.csv", rows, warnings=("looks like time",))


# snap.stanford.edu/data/loc-gowalla.html: no header, newest first.
def gowalla() -> Shape:
    rows = newest_first(log(range(12), MANY, 1_287_000_000))
    lines = ([u, stamp(t, "%Y-%m-%dT%H:%M:%SZ"), "30.2359091167", "-97.7951395833", i] for u, i, t in rows)
    return Shape("gowalla", {"loc-gowalla_totalCheckins.txt.gz": gzip.compress(text(lines, "\t"))},
                 "loc-gowalla_totalCheckins.txt.gz", seconds(rows), {"columns": "user,timestamp,-,-,item"})  # fmt: skip


# Foursquare, sites.google.com/site/yangdingqi: 8 columns without a header, Latin-1, in the order of time; the copy on
# Kaggle has a header.
def foursquare(header: bool = False) -> Shape:
    rows, kinds = log(NUMBERS, ids(20, 24, HEX), 1_333_476_000), ["Caf\xe9", "Arts & Crafts Store", "Home (private)"]
    lines = [[u, i, ids(3, 24, HEX, seed=1)[j % 3], kinds[j % 3], "40.719810375", "-74.002581", -240,
              stamp(t, "%a %b %d %H:%M:%S %z %Y")] for j, (u, i, t) in enumerate(rows)]  # fmt: skip
    if header:
        head = ["userId", "venueId", "venueCategoryId", "venueCategory", "latitude", "longitude", "timezoneOffset"]
        return Shape("foursquare-kaggle", {"dataset_TSMC2014_NYC.csv": text([[*head, "utcTimestamp"], *lines])},
                     "dataset_TSMC2014_NYC.csv", seconds(rows))  # fmt: skip
    return Shape("foursquare", {"dataset_TSMC2014_NYC.txt": text(lines, "\t", "\r\n", "latin-1")},
                 "dataset_TSMC2014_NYC.txt", seconds(rows),
                 {"columns": "user,item,-,-,-,-,-,timestamp", "encoding": "latin-1"})  # fmt: skip


def foursquare_kaggle() -> Shape:
    return foursquare(header=True)


# tianchi.aliyun.com/dataset/649: no header, sorted by user, then time; some times are impossible.
def taobao() -> Shape:
    rows = by_user(log(NUMBERS, MANY, 1_511_544_000, 9_000))
    rows[7] = (*rows[7][:2], -2_134_949_234)
    lines = ([u, i, 149192, ["pv", "buy", "cart", "fav"][j % 4], t] for j, (u, i, t) in enumerate(rows))
    return Shape("taobao", {"UserBehavior.csv": text(lines)}, "UserBehavior.csv", rows,
                 {"columns": "user,item,-,event,timestamp"}, ("lie outside of 1990 to 2100",))  # fmt: skip


# tianchi.aliyun.com/dataset/42 (IJCAI-15): time_stamp is month and day, brand_id may be empty. IJCAI-16 (RecBole's
# TMALLDataset): other names, days as numbers.
def ijcai_15() -> Shape:
    rows = [(u, i, int(stamp(t, "%m%d"))) for u, i, t in by_user(log(NUMBERS, MANY, 1_431_000_000, 300_000))]
    lines = [["user_id", "item_id", "cat_id", "seller_id", "brand_id", "time_stamp", "action_type"],
             *([u, i, 833, 2882, 2661 if j % 9 else "", t, j % 4] for j, (u, i, t) in enumerate(rows))]  # fmt: skip
    return Shape("ijcai-15", {"user_log_format1.csv": text(lines)}, "user_log_format1.csv", rows)


def ijcai_16() -> Shape:
    rows = [(u, i, int(stamp(t, "%Y%m%d"))) for u, i, t in by_user(log(NUMBERS, MANY, 1_435_700_000, 200_000))]
    lines = [["use_ID", "sel_ID", "ite_ID", "cat_ID", "act_ID", "time_ID"],
             *([u, 9, i, 3, j % 2, t] for j, (u, i, t) in enumerate(rows))]  # fmt: skip
    return Shape("ijcai-16", {"ijcai2016_taobao.csv": text(lines)}, "ijcai2016_taobao.csv", rows,
                 {"user_column": "use_ID", "item_column": "ite_ID", "timestamp_column": "time_ID"})  # fmt: skip


MAKERS: list[Callable[[], Shape]] = [
    ml_100k, ml_1m, ml_10m, ml_20m, ml_32m, amazon_2014, amazon_2014_reviews, amazon_2018, amazon_2018_reviews,
    amazon_2023, amazon_2023_splits, amazon_2023_reviews, steam, steam_items, yoochoose_clicks, yoochoose_buys,
    retailrocket, diginetica, lastfm_360k, lastfm_1k, hetrec_artists, hetrec_tags, lfm_1b, lfm_2b, hm, otto, kuairand,
    gowalla, foursquare, foursquare_kaggle, goodreads, goodreads_dates, book_crossing, yelp, taobao, ijcai_15, ijcai_16,
]  # fmt: skip
SHAPES = [make() for make in MAKERS]


MIND = log([f"U{j}" for j in NUMBERS], [f"N{j}" for j in MANY], 1_573_800_000)
NETFLIX = by_item(log(NUMBERS, [1, 2, 3], 1_120_000_000))


def mind() -> bytes:
    """behaviors.tsv (msnews.github.io): impression, user, time, clicked before, shown and whether clicked."""
    lines = ([j, u, stamp(t, "%-m/%-d/%Y %-I:%M:%S %p"), "N5 N7 N9" if j % 9 else "", f"{i}-1 N3-0"]
             for j, (u, i, t) in enumerate(MIND))  # fmt: skip
    return text(lines, "\t")


def clicked_news() -> list[tuple[Any, ...]]:
    return seconds(MIND)


def netflix() -> bytes:
    """combined_data_1.txt (kaggle.com/datasets/netflix-inc/netflix-prize-data): a line for the film, then ratings."""
    lines = list[list[Any]]()
    for j, (user, item, time) in enumerate(NETFLIX):
        lines += [] if j and NETFLIX[j - 1][1] == item else [[f"{item}:"]]
        lines.append([user, j % 5 + 1, stamp(time, "%Y-%m-%d")])
    return text(lines)


def netflix_ratings() -> list[tuple[Any, ...]]:
    return days(NETFLIX)


def without_times() -> bytes:
    """User, item and rating: three columns that could be a user, an item and a time."""
    return text((u, i, j % 5 + 1) for j, (u, i, _) in enumerate(by_user(log(NUMBERS, MANY))))


STEAM_REVIEWS = gzip.compress(python_lines(dict(steam_reviews()).values(), "u"))
HEADERLESS = [shape for shape in SHAPES if "columns" in shape.options]
REFUSED = [
    Refused("steam-reviews", {"steam_reviews.json.gz": STEAM_REVIEWS}, "steam_reviews.json.gz", "ast.literal_eval"),
    Refused("steam-items", {"australian_users_items.json.gz": gzip.compress(python_lines(steam_owners()[1]))},
            "australian_users_items.json.gz", "ast.literal_eval"),
    Refused("mind", {"behaviors.tsv": mind()}, "behaviors.tsv", "--columns"),
    Refused("netflix", {"combined_data_1.txt": netflix()}, "combined_data_1.txt", "line 1 of "),
    Refused("ratings without times", {"ratings.csv": without_times()}, "ratings.csv", "--columns"),
    *(Refused(shape.name, shape.files, shape.source, "--columns",
              {name: value for name, value in shape.options.items() if name != "columns"}) for shape in HEADERLESS),
]  # fmt: skip
