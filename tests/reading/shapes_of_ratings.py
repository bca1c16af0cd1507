"""Small made files with the shape of public ratings and reviews; see `shapes.py`."""

from __future__ import annotations

import ast
import gzip
import json
import random
from typing import Any

from reading.drawn import (
    CAPITALS,
    DIGITS,
    HEX,
    LETTERS,
    MANY,
    NUMBERS,
    Row,
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

REVIEWERS = ids(12, 13, CAPITALS, "A")
PRODUCTS = [*ids(17, 7, CAPITALS, "B00"), *ids(2, 9, DIGITS, "0"), *ids(1, 9, DIGITS, "7"), *ids(1, 8, DIGITS, "07")]
REVIEW = 'Plays well, "mostly".\nWould buy again; it\'s fine \u2014 really.'


# files.grouplens.org/datasets/movielens/ml-100k-README.txt: u.data is tab separated and in random order; u.item has
# bars, 24 fields, Latin-1, and an "unknown" film without a date.
def ml_100k() -> Shape:
    rows = shuffled(log(NUMBERS, MANY, 880_000_000))
    titles = {j: f"Caf\xe9 {j}" + ", The" * (j % 4 == 0) + " (1995)" for j in MANY} | {5: "unknown"}
    films = [[j, title, "" if j == 5 else "01-Jan-1995", "", "", *[0, 1] * 9, 0] for j, title in titles.items()]
    data = text(([user, item, 3, time] for user, item, time in rows), "\t")
    files = {"u.data": data, "u.item": text(films, "|", encoding="latin-1")}
    return Shape("ml-100k", files, "u.data", rows, titles_file="u.item", titles=titles)


# ml-1m-README.txt, ml-10m-README.html: UserID::MovieID::Rating::Timestamp, sorted by user, ml-10M with half stars;
# movies.dat in Latin-1 (ml-1m).
def ml_1m() -> Shape:
    rows, titles = by_user(shuffled(log(NUMBERS, MANY, 978_000_000))), {j: f"L'\xe9t\xe9 {j} (1996)" for j in MANY}
    films = text(([j, title, "Comedy|Children's"] for j, title in titles.items()), "::", encoding="latin-1")
    files = {"ratings.dat": text(([u, i, 4, t] for u, i, t in rows), "::"), "movies.dat": films}
    return Shape("ml-1m", files, "ratings.dat", rows, titles_file="movies.dat", titles=titles)


def ml_10m() -> Shape:
    rows = by_user(log(NUMBERS, MANY, 838_000_000))
    return Shape("ml-10m", {"ratings.dat": text(([u, i, "3.5", t] for u, i, t in rows), "::")}, "ratings.dat", rows)


# ml-20m, ml-25m and ml-32m README: userId,movieId,rating,timestamp sorted by user, then film; movies.csv in UTF-8 with
# titles in double quotes where they hold a comma. Older archives end lines with CR LF.
def ml_20m(end: str = "\r\n", name: str = "ml-20m") -> Shape:
    rows = sorted(log(NUMBERS, MANY, 1_112_000_000))
    titles = {j: f"American Caf\xe9 {j}, The (1995)" for j in MANY} | {7: '"Great" Cats (1998)', 8: "Heat (1995)"}
    quoted = {j: '"' + title.replace('"', '""') + '"' if "," in title or '"' in title else title
              for j, title in titles.items()}  # fmt: skip
    films = [["movieId", "title", "genres"], *([j, title, "Drama|IMAX"] for j, title in quoted.items())]
    ratings = [["userId", "movieId", "rating", "timestamp"], *([u, i, "3.5", t] for u, i, t in rows)]
    files = {"ratings.csv": text(ratings, end=end), "movies.csv": text(films, end=end)}
    return Shape(name, files, "ratings.csv", rows, titles_file="movies.csv", titles=titles)


def ml_32m() -> Shape:
    return ml_20m("\n", "ml-32m")


# jmcauley.ucsd.edu/data/amazon (2014): ratings "user,item,rating,timestamp", one category after the other by item.
# nijianmo.github.io/amazon (2018): ratings "item,user,rating,timestamp". Times are whole days.
def amazon_ratings() -> list[Row]:
    return by_item((user, item, time - time % 86_400) for user, item, time in log(REVIEWERS, PRODUCTS))


def amazon_2014() -> Shape:
    rows = amazon_ratings()
    return Shape("amazon-2014", {"ratings_Beauty.csv": text([u, i, "5.0", t] for u, i, t in rows)},
                 "ratings_Beauty.csv", rows)  # fmt: skip


def amazon_2018() -> Shape:
    rows = amazon_ratings()
    return Shape("amazon-2018", {"Video_Games.csv": text([i, u, "1.0", t] for u, i, t in rows)}, "Video_Games.csv",
                 rows, {"columns": "item,user,rating,timestamp"})  # fmt: skip


def amazon_2014_reviews() -> Shape:
    rows = amazon_ratings()
    reviews = [
        {"reviewerID": u, "asin": i} | ({"reviewerName": "J. \u201cJo\u201d"} if j % 3 else {}) | {
            "helpful": [0, j], "reviewText": REVIEW, "overall": 5.0, "summary": "Fine", "unixReviewTime": t,
            "reviewTime": stamp(t, "%m %d, %Y")}
        for j, (u, i, t) in enumerate(rows)
    ]  # fmt: skip
    return Shape("amazon-2014-reviews", {"reviews_Beauty_5.json.gz": gzip.compress(json_lines(reviews))},
                 "reviews_Beauty_5.json.gz", rows)  # fmt: skip


# The same page of 2018: "vote" (a text), "style" and "image" are in some reviews only; "rank" of the metadata is a
# text in some lines and a list in others.
def amazon_2018_reviews() -> Shape:
    rows, titles = amazon_ratings(), {item: f"Game {item[-3:]} &amp; more" for item in PRODUCTS}
    reviews = [
        {"overall": 5.0} | ({"vote": "3"} if j % 5 == 4 else {}) | {
            "verified": j % 2 == 0, "reviewTime": stamp(t, "%m %d, %Y"), "reviewerID": u, "asin": i,
        } | ({"style": {"Format:": " Disc"}} if j % 4 == 3 else {}) | ({"image": ["https://a/b.jpg"]} if j > 90 else {})
        | {"reviewerName": "Jo", "reviewText": REVIEW, "summary": "Fine", "unixReviewTime": t}
        for j, (u, i, t) in enumerate(rows)
    ]  # fmt: skip
    facts = [
        {"category": ["Video Games"], "description": [] if j % 2 else ["Old"], "title": title, "brand": "",
         "rank": [">#1 in Games"] if j % 2 else "2,937 in Games (", "date": "", "price": "$9.99", "asin": item}
        for j, (item, title) in enumerate(titles.items())
    ]  # fmt: skip
    files = {"Video_Games_5.json.gz": gzip.compress(json_lines(reviews)),
             "meta_Video_Games.json.gz": gzip.compress(json_lines(facts))}  # fmt: skip
    return Shape("amazon-2018-reviews", files, "Video_Games_5.json.gz", rows,
                 titles_file="meta_Video_Games.json.gz", titles=titles)  # fmt: skip


# amazon-reviews-2023.github.io: user_id,parent_asin,rating,timestamp in milliseconds; "last out" splits in three files
# with a further column of earlier items; reviews with asin and parent_asin, metadata by parent_asin alone.
MEMBERS = ids(12, 26, CAPITALS, "A")


def amazon_2023() -> Shape:
    rows = milliseconds(by_user(log(MEMBERS, PRODUCTS)))
    lines = [["user_id", "parent_asin", "rating", "timestamp"], *([u, i, "4.0", t] for u, i, t in rows)]
    return Shape("amazon-2023", {"Video_Games.csv.gz": gzip.compress(text(lines))}, "Video_Games.csv.gz", rows)


def amazon_2023_splits() -> Shape:
    rows = milliseconds(by_user(log(MEMBERS, PRODUCTS)))
    last = {user: j for j, (user, *_) in enumerate(rows)}
    parts: dict[str, list[tuple[Any, ...]]] = {"test": [], "train": [], "valid": []}  # in the order of their names
    for j, row in enumerate(rows):
        parts["test" if j == last[row[0]] else "valid" if j + 1 == last[row[0]] else "train"].append(row)
    head = ["user_id", "parent_asin", "rating", "timestamp", "history"]
    files = {f"Video_Games.{part}.csv": text([head, *([u, i, "4.0", t, " ".join(PRODUCTS[: j % 3])]
             for j, (u, i, t) in enumerate(events))]) for part, events in parts.items()}  # fmt: skip
    return Shape("amazon-2023-splits", files, "Video_Games.*.csv", [row for part in parts.values() for row in part],
                 warnings=("'history' may hold more of them",))  # fmt: skip


def amazon_2023_reviews() -> Shape:
    rows, titles = milliseconds(by_user(log(MEMBERS, PRODUCTS))), {item: f"Game {item[-3:]}" for item in PRODUCTS}
    reviews = [
        {"rating": 4.0, "title": "Good", "text": REVIEW, "images": [{"small_image_url": "https://a"}] if j % 9 == 8
         else [], "asin": ids(1, 7, CAPITALS, "B0C", j)[0], "parent_asin": i, "user_id": u, "timestamp": t,
         "helpful_vote": 0, "verified_purchase": True}
        for j, (u, i, t) in enumerate(rows)
    ]  # fmt: skip
    facts = [
        {"main_category": None if j % 2 else "Games", "title": title, "average_rating": 4.2, "features": [],
         "price": [None, 9.5, "\u2014"][j % 3], "store": "Shop", "categories": ["Games"],
         "details": {"Date First Available": "June 1, 2019"} if j % 2 else {"Rank": {"Games": j}},
         "parent_asin": item, "bought_together": None}
        for j, (item, title) in enumerate(titles.items())
    ]  # fmt: skip
    files = {"Video_Games.jsonl.gz": gzip.compress(json_lines(reviews)),
             "meta_Video_Games.jsonl.gz": gzip.compress(json_lines(facts))}  # fmt: skip
    return Shape("amazon-2023-reviews", files, "Video_Games.jsonl.gz", rows,
                 titles_file="meta_Video_Games.jsonl.gz", titles=titles)  # fmt: skip


# cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data, RecBole's STEAMDataset: Python 2 dictionaries. "user_id" is in
# some reviews only, "username" in all. Here as converted with json.dumps(ast.literal_eval(line)).
def steam_reviews() -> list[tuple[Row, dict[str, Any]]]:
    rows = by_item(log(["Ann's", "b\xf6b", "x|y", *ids(9, 6, LETTERS)], ids(12, 5, DIGITS, "2"), 1_495_000_000))
    return [
        (row, {"username": row[0], "hours": 1.5 + j, "products": 41, "product_id": row[1], "page_order": j % 10,
               "date": stamp(row[2], "%Y-%m-%d"), "text": REVIEW, "early_access": False, "page": 1}
         | ({"user_id": ids(1, 17, DIGITS, "7656", j)[0], "compensation": "Product received for free"}
            if j % 3 == 2 else {}))
        for j, row in enumerate(rows)
    ]  # fmt: skip


def converted(content: bytes) -> bytes:
    """Lines of Python dictionaries as JSON lines, as docs/data.md says."""
    return "".join(json.dumps(ast.literal_eval(line)) + "\n" for line in content.decode().splitlines()).encode()


def steam() -> Shape:
    rows, reviews = zip(*steam_reviews(), strict=True)
    events = [(user, int(item), time) for user, item, time in days(rows)]
    files = {"steam_reviews.jsonl": converted(python_lines(reviews, "u"))}
    return Shape("steam", files, "steam_reviews.jsonl", events, {"user_column": "username"})


def steam_owners() -> tuple[list[tuple[Any, Any]], list[dict[str, Any]]]:
    """Events, and one object a user, of whom one has no items (australian_users_items.json.gz)."""
    draw, users, objects = random.Random(5), ["nil", *ids(12, 15, DIGITS, "76")], list[dict[str, Any]]()
    for j, user in enumerate(users):
        games = [{"item_id": str(item), "item_name": f"Game {item}", "playtime_forever": 6, "playtime_2weeks": 0}
                 for item in draw.sample(MANY, 5 * (j > 0))]  # fmt: skip
        objects.append({"user_id": user, "items_count": len(games), "steam_id": user, "user_url": "u", "items": games})
    return [(one["user_id"], int(game["item_id"])) for one in objects for game in one["items"]], objects


def steam_items() -> Shape:
    events, objects = steam_owners()
    files = {"australian_users_items.jsonl": converted(python_lines(objects))}
    events = [(int(user), item) for user, item in events]
    return Shape(
        "steam-items", files, "australian_users_items.jsonl", events, warnings=("have no events", "look like time")
    )


# sites.google.com/eng.ucsd.edu/ucsdbookgraph: a table of numbers without times, and JSON lines with the dates of
# Goodreads' API, of which "read_at" and "started_at" are mostly empty. All values of the books are texts; "asin" and
# "isbn" stand before "book_id".
def goodreads() -> Shape:
    rows = by_user(log(range(12), MANY))
    lines = [["user_id", "book_id", "is_read", "rating", "is_reviewed"], *([u, i, 1, 5, 0] for u, i, _ in rows)]
    return Shape("goodreads", {"goodreads_interactions.csv": text(lines)}, "goodreads_interactions.csv",
                 [(u, i) for u, i, _ in rows])  # fmt: skip


def goodreads_dates() -> Shape:
    rows, titles = newest_first(log(ids(12, 32, HEX), MANY, 1_343_700_000)), {j: f"Book {j} (Part, #1)" for j in MANY}
    form = "%a %b %d %H:%M:%S %z %Y"
    events = [
        {"user_id": u, "book_id": str(i), "review_id": ids(1, 32, HEX, "", j)[0], "is_read": j % 2 == 0, "rating": 5,
         "review_text_incomplete": "", "date_added": stamp(t, form, -7), "date_updated": stamp(t + 99_999, form, -8),
         "read_at": stamp(t, form, -7) if j % 2 else "", "started_at": ""}
        for j, (u, i, t) in enumerate(rows)
    ]  # fmt: skip
    books = [
        {"isbn": "", "text_reviews_count": "7", "series": [], "asin": "B00" if j % 2 else "", "popular_shelves":
         [{"count": "3", "name": "to-read"}] * (j % 2), "authors": [{"author_id": "604031", "role": ""}],
         "link": "https://a", "book_id": str(j), "title": title, "title_without_series": f"Book {j}"}
        for j, title in titles.items()
    ]  # fmt: skip
    files = {"goodreads_interactions_dedup.json.gz": gzip.compress(json_lines(events)),
             "goodreads_books.json.gz": gzip.compress(json_lines(books))}  # fmt: skip
    return Shape("goodreads-dates", files, "goodreads_interactions_dedup.json.gz", seconds(rows),
                 {"timestamp_column": "date_added"}, titles_file="goodreads_books.json.gz",
                 titles_options={"item_column": "book_id"}, titles=titles)  # fmt: skip


# BX-CSV-Dump (Ziegler 2005), RecBole's BOOKCROSSINGDataset: semicolons, all quoted, Latin-1, a quote within a field as
# backslash and quote, "&amp;" for &; no times; some ISBN are no such. In three lines of the books, such a quote stands
# before the semicolon, and a quote after the author: it ends the title.
def book_crossing() -> Shape:
    items = [*ids(17, 9, DIGITS, "0"), "034545104X", "\xa3 3.99", "0 907 062 008"]
    rows = by_user(log(NUMBERS, items))
    titles = {item: f"Caf\xe9 {j}; or, Life &amp; Letters" for j, item in enumerate(items)}
    titles[items[3]] = 'The Real "J. P." Rides Again'
    titles[items[4]] = 'X-Men (Level 4)";Jo Doe'
    lines = [["User-ID", "ISBN", "Book-Rating"], *([u, i, 0] for u, i, _ in rows)]
    facts = [["ISBN", "Book-Title", "Book-Author", "Year-Of-Publication"],
             *([i, title.replace('"', '\\"'), *["Jo \xc9"] * (i != items[4]), 2002]
               for i, title in titles.items())]  # fmt: skip
    files = {
        name: text(([f'"{value}"' for value in line] for line in table), ";", "\r\n", "latin-1")
        for name, table in (("BX-Book-Ratings.csv", lines), ("BX-Books.csv", facts))
    }
    titles[items[4]] = "X-Men (Level 4)\\"
    return Shape("book-crossing", files, "BX-Book-Ratings.csv", [(u, i) for u, i, _ in rows],
                 {"encoding": "latin-1"}, titles_file="BX-Books.csv", titles=titles)  # fmt: skip


# yelp.com/dataset/documentation: JSON lines; ids of 22 letters, digits, - and _.
def yelp() -> Shape:
    users, items = ids(12, 22, LETTERS + "-_"), ids(20, 22, LETTERS + "-_")
    rows, titles = shuffled(log(users, items, 1_530_900_000)), {item: f"Turning Point {item[:2]}" for item in items}
    reviews = [
        {"review_id": ids(1, 22, LETTERS, "", j)[0], "user_id": u, "business_id": i, "stars": 3.0, "useful": 0,
         "funny": 0, "cool": 0, "text": REVIEW, "date": stamp(t, "%Y-%m-%d %H:%M:%S")}
        for j, (u, i, t) in enumerate(rows)
    ]  # fmt: skip
    places = [
        {"business_id": item, "name": title, "city": "Tucson", "stars": 4.5, "attributes": {"WiFi": "u'no'"} if j % 2
         else None, "categories": "Food, Bars" if j % 3 else None, "hours": {"Monday": "8:0-22:0"} if j % 2 else None}
        for j, (item, title) in enumerate(titles.items())
    ]  # fmt: skip
    files = {"yelp_academic_dataset_review.json": json_lines(reviews),
             "yelp_academic_dataset_business.json": json_lines(places)}  # fmt: skip
    return Shape("yelp", files, "yelp_academic_dataset_review.json", seconds(rows),
                 titles_file="yelp_academic_dataset_business.json", titles=titles)  # fmt: skip
