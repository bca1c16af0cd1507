"""Small files that have the shape of public data sets as they are published; their rows are made here."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Event = tuple[Any, Any, Any]  # user, item, time in seconds since 1970


@dataclass(frozen=True)
class Shape:
    """A published log: how its file is written, and what reads it."""

    file: str  # its name, or the source to read where there are several files
    write: Callable[[list[Event]], bytes | dict[str, bytes]]
    options: dict[str, Any] = field(default_factory=dict)  # of `Reading`
    user: Callable[[int], Any] = int  # the id of user number n, and of item number n
    item: Callable[[int], Any] = int
    time: Callable[[int], Any] | None = int  # what is read for a time in seconds; None = there is none
    refused: bool = False  # whether it is refused without the options
    warns: str = ""  # part of a warning


def made_events(shape: Shape, n: int = 150) -> list[Event]:
    """Events in the order in which they are written: by time, as most logs are."""
    rng = random.Random(7)
    times = sorted(rng.sample(range(1_400_000_000, 1_400_900_000), n))
    return [(shape.user(rng.randrange(1, 16)), shape.item(rng.randrange(1, 31)), time) for time in times]


def when(seconds: int) -> datetime:
    """A time as a datetime."""
    return datetime.fromtimestamp(seconds, UTC)


def rows(separator: str, row: Callable[[Event, int], list[Any]], header: str = "") -> Callable[[list[Event]], bytes]:
    """A writer of delimited lines."""

    def write(events: list[Event]) -> bytes:
        lines = [separator.join(map(str, row(event, j))) for j, event in enumerate(events)]
        return "".join(f"{line}\n" for line in ([header] if header else []) + lines).encode()

    return write


def objects(row: Callable[[Event], dict[str, Any]]) -> Callable[[list[Event]], bytes]:
    """A writer of JSON lines in gzip."""
    return lambda events: gzip.compress("".join(json.dumps(row(e)) + "\n" for e in events).encode(), mtime=0)


def sessions(events: list[Event]) -> bytes:
    """OTTO: one object a session."""
    users = dict.fromkeys(user for user, _, _ in events)
    kinds = ("clicks", "carts", "orders")
    lines = [
        {"session": u, "events": [{"aid": i, "ts": t * 1000, "type": kinds[t % 3]} for v, i, t in events if v == u]}
        for u in users
    ]
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()


def rating(j: int) -> int:
    """A rating of row j."""
    return j * 7 % 5 + 1


def reviewer(n: int) -> str:
    """A user as Amazon writes them."""
    return f"A{n * 7919:013d}"


def asin(n: int) -> str:
    """A product as Amazon writes them."""
    return f"B00{n:07d}"


def long_id(n: int) -> str:
    """A hash."""
    return f"{n * 2654435761 % 2**32:08x}" * 5


HASHED = {"user": reviewer, "item": asin}
SHAPES = {
    "MovieLens 100K": Shape("u.data", rows("\t", lambda e, j: [e[0], e[1], rating(j), e[2]])),
    "MovieLens 1M": Shape("ratings.dat", rows("::", lambda e, j: [e[0], e[1], rating(j), e[2]])),
    "MovieLens 20M, 25M, 32M": Shape(
        "ratings.csv", rows(",", lambda e, j: [e[0], e[1], rating(j) - 0.5, e[2]], "userId,movieId,rating,timestamp")
    ),
    "Amazon 2014, ratings": Shape(
        "ratings_Beauty.csv", rows(",", lambda e, j: [e[0], e[1], float(rating(j)), e[2]]), **HASHED
    ),
    "Amazon 2014, reviews": Shape(
        "reviews_Beauty_5.json.gz",
        objects(
            lambda e: {
                "reviewerID": e[0],
                "asin": e[1],
                "reviewerName": "A. B",
                "helpful": [0, 1],
                "reviewText": 'it "works"',
                "overall": 5.0,
                "summary": "ok",
                "unixReviewTime": e[2],
                "reviewTime": when(e[2]).strftime("%m %d, %Y"),
            }
        ),
        **HASHED,
    ),
    "Amazon 2018, ratings": Shape(
        "Video_Games.csv",
        rows(",", lambda e, j: [e[1], e[0], float(rating(j)), e[2]]),
        {"columns": "item,user,rating,timestamp"},
        **HASHED,
        refused=True,
    ),
    "Amazon 2023, ratings": Shape(
        "Video_Games.csv",
        rows(",", lambda e, j: [e[0], e[1], rating(j), e[2] * 1000], "user_id,parent_asin,rating,timestamp"),
        **HASHED,
        time=lambda t: t * 1000,
    ),
    "Amazon 2023, reviews": Shape(
        "Video_Games.jsonl.gz",
        objects(
            lambda e: {
                "rating": 4.0,
                "title": "good",
                "text": "line\nbreak",
                "images": [],
                "asin": f"C{e[1][1:]}",
                "parent_asin": e[1],
                "user_id": e[0],
                "timestamp": e[2] * 1000,
                "helpful_vote": 0,
                "verified_purchase": True,
            }
        ),
        **HASHED,
        time=lambda t: t * 1000,
    ),
    "Steam": Shape("Steam.txt", rows(" ", lambda e, j: [e[0], e[1]]), time=None),
    "Yoochoose, clicks": Shape(
        "yoochoose-clicks.dat",
        rows(",", lambda e, j: [e[0], when(e[2]).strftime("%Y-%m-%dT%H:%M:%S.000Z"), e[1], "S" if j % 9 == 0 else 0]),
        {"columns": "user,timestamp,item,-"},
        refused=True,
    ),
    "Yoochoose, buys": Shape(
        "yoochoose-buys.dat",
        rows(",", lambda e, j: [e[0], when(e[2]).strftime("%Y-%m-%dT%H:%M:%S.000Z"), e[1], 12462 + j, 1]),
        {"columns": "user,timestamp,item,-,-"},
        refused=True,
    ),
    "RetailRocket": Shape(
        "events.csv",
        rows(
            ",",
            lambda e, j: [
                e[2] * 1000,
                e[0],
                ("view", "addtocart", "transaction")[j % 3],
                e[1],
                j if j % 3 == 2 else "",
            ],
            "timestamp,visitorid,event,itemid,transactionid",
        ),
        time=lambda t: t * 1000,
    ),
    "Diginetica": Shape(
        "train-item-views.csv",
        rows(
            ";",
            lambda e, j: [e[0], "NA", e[1], e[2] - 1_400_000_000, when(e[2]).strftime("%Y-%m-%d")],
            "sessionId;userId;itemId;timeframe;eventdate",
        ),
        {"user_column": "sessionId", "timestamp_column": "timeframe"},
        time=lambda t: t - 1_400_000_000,
    ),
    "Last.fm 360K": Shape(
        "usersha1-artmbid-artname-plays.tsv",
        rows("\t", lambda e, j: [e[0], e[1], f'the "{e[1][:3]}" band', j * 37 % 400 + 1]),
        {"columns": "user,item,-,-"},
        user=long_id,
        item=long_id,
        time=None,
        refused=True,
    ),
    "Last.fm 1K": Shape(
        "userid-timestamp-artid-artname-traid-traname.tsv",
        lambda events: rows(
            "\t",
            lambda e, j: [e[0], when(e[2]).strftime("%Y-%m-%dT%H:%M:%SZ"), "" if j % 5 else "f1b1", "Ann", "", e[1]],
        )(events[::-1]),
        {"columns": "user,timestamp,-,-,-,item"},
        user=lambda n: f"user_{n:06d}",
        item=lambda n: f"A song, no. {n}",
        refused=True,
    ),
    "Last.fm HetRec": Shape(
        "user_artists.dat",
        rows("\t", lambda e, j: [e[0], e[1], 13883 + j], "userID\tartistID\tweight"),
        time=None,
    ),
    "H&M": Shape(
        "transactions_train.csv",
        rows(
            ",",
            lambda e, j: [when(e[2]).strftime("%Y-%m-%d"), e[0], e[1], 0.05083, 2],
            "t_dat,customer_id,article_id,price,sales_channel_id",
        ),
        user=long_id,
        item=lambda n: f"0{663713000 + n}",
        time=lambda t: t // 86_400 * 86_400,
    ),
    "OTTO": Shape("train.jsonl", sessions, time=lambda t: t * 1000),
    "KuaiRand": Shape(
        "log_standard_4_08_to_4_21_pure.csv",
        rows(
            ",",
            lambda e, j: [
                e[0],
                e[1],
                when(e[2]).strftime("%Y%m%d"),
                when(e[2]).strftime("%H00"),
                e[2] * 1000,
                j % 2,
                0,
                0,
                0,
                0,
                1,
                1234 + j,
                60_000 + j,
                0,
                0,
            ],
            "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,long_view,"
            "play_time_ms,duration_ms,profile_stay_time,comment_stay_time",
        ),
        time=lambda t: t * 1000,
        warns="'date' looks like time and is not read; times are read from 'time_ms'",
    ),
    "Gowalla": Shape(
        "loc-gowalla_totalCheckins.txt.gz",
        lambda events: gzip.compress(
            rows(
                "\t",
                lambda e, j: [e[0], when(e[2]).strftime("%Y-%m-%dT%H:%M:%SZ"), f"30.{j:05d}", f"-97.{j:05d}", e[1]],
            )(events[::-1]),
            mtime=0,
        ),
        {"columns": "user,timestamp,-,-,item"},
        refused=True,
    ),
    "Goodreads, interactions": Shape(
        "goodreads_interactions.csv",
        rows(",", lambda e, j: [e[0], e[1], 1, rating(j), 0], "user_id,book_id,is_read,rating,is_reviewed"),
        time=None,
    ),
    "Goodreads, with times": Shape(
        "goodreads_interactions_dedup.json.gz",
        objects(
            lambda e: {
                "user_id": e[0],
                "book_id": str(e[1]),
                "review_id": "b",
                "is_read": True,
                "rating": 5,
                "review_text_incomplete": "",
                "date_added": when(e[2]).strftime("%a %b %d %H:%M:%S +0000 %Y"),
                "date_updated": when(e[2] + 99).strftime("%a %b %d %H:%M:%S +0000 %Y"),
                "read_at": "",
                "started_at": "",
            }
        ),
        user=long_id,
    ),
    "Book-Crossing": Shape(
        "BX-Book-Ratings.csv",
        lambda events: (
            rows(";", lambda e, j: [f'"{e[0]}"', f'"{e[1]}"', f'"{j % 11}"'], '"User-ID";"ISBN";"Book-Rating"')(events)
            .decode()
            .encode("latin-1")
        ),
        {"encoding": "latin-1"},
        item=lambda n: f"03\u00bb{n:06d}X",
        time=None,
        refused=True,
    ),
    "Taobao": Shape(
        "UserBehavior.csv",
        rows(",", lambda e, j: [e[0], e[1], 4_756_105 + j % 9, ("pv", "cart", "fav", "buy")[j % 4], e[2]]),
        {"columns": "user,item,-,event,timestamp"},
        refused=True,
    ),
    "Foursquare": Shape(
        "dataset_TSMC2014_NYC.txt",
        rows(
            "\t",
            lambda e, j: [
                e[0],
                e[1],
                f"4bf58dd8d4898{j:03d}",
                "Arts & Crafts Store",
                f"40.{j:05d}",
                f"-74.{j:05d}",
                -240,
                when(e[2]).strftime("%a %b %d %H:%M:%S +0000 %Y"),
            ],
        ),
        {"columns": "user,item,-,-,-,-,-,timestamp"},
        item=lambda n: f"49bbd6c0f964a520f453{n:04d}",
        refused=True,
    ),
    "Yelp": Shape(
        "yelp_academic_dataset_review.json",
        lambda events: gzip.decompress(
            objects(
                lambda e: {
                    "review_id": "r",
                    "user_id": e[0],
                    "business_id": e[1],
                    "stars": 3.0,
                    "useful": 0,
                    "text": "fine\n\nagain",
                    "date": when(e[2]).strftime("%Y-%m-%d %H:%M:%S"),
                }
            )(events)
        ),
        user=lambda n: f"mh_-eMZ6K5RLWhZyISBhwA{n}",
        item=lambda n: f"XQfwVwDr-v0ZS3_CbbE5Xw{n}",
    ),
    "a rating a line, without times": Shape(
        "ratings.txt",
        rows(" ", lambda e, j: [e[0], e[1], rating(j)]),
        {"columns": "user,item,rating"},
        time=None,
        refused=True,
    ),
}
