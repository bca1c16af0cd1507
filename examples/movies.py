"""MovieLens 100K in a few lines: train, measure beside popularity, recommend after two films."""

import sasrec

log, titles = sasrec.load_dataset("ml-100k")  # fetched once
recommender = sasrec.fit(log, titles=titles, max_epochs=40)  # stops earlier if valid no longer improves

result = recommender.evaluate("test", protocol="full")
print("NDCG@10", result.metrics["ndcg@10"]["value"], "popularity", result.baselines["popularity"]["ndcg@10"]["value"])

star_wars, empire = 50, 172
frame = recommender.recommend([[star_wars, empire]], k=5)  # works for any history, also of new users
names = {} if titles is None else dict(titles.iter_rows())
for item_id, score in frame.select("item_id", "score").iter_rows():
    print(f"{score:6.2f}  {names.get(item_id, item_id)}")
