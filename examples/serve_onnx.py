"""Serve an exported model with onnxruntime, NumPy and the standard library. It needs neither sasrec nor torch.

    sasrec export runs/mine --output exported
    python examples/serve_onnx.py exported --history tt0003,tt0006
    python examples/serve_onnx.py exported --port 8000
    curl -d '{"history": ["tt0003", "tt0006"], "k": 5}' http://127.0.0.1:8000/recommend

Requests are answered one by one. A service for many users would put several histories into one call of the graph.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime


class Model:
    """The graph, and the items that its numbers stand for."""

    def __init__(self, folder: Path) -> None:
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.facts = self.session.get_modelmeta().custom_metadata_map
        lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
        self.items = {item["item_index"]: item for item in map(json.loads, lines)}
        self.index = {str(item["item_id"]): index for index, item in self.items.items()}

    def recommend(self, histories: list[list], k: int = 10, hide_seen: bool | None = None) -> list[list[dict]]:
        """The k best items after each history (oldest item first). Unknown items are skipped."""
        padded = np.zeros((len(histories), max([1, *map(len, histories)])), np.int64)  # 0 is padding, anywhere in a row
        for row, history in zip(padded, histories, strict=True):
            row[: len(history)] = [self.index.get(str(item), 0) for item in history]
        if hide_seen is None:
            hide_seen = self.facts["hide_seen"] == "true"
        given = {"histories": padded, "k": np.array([k]), "hide_seen": np.array([hide_seen])}
        items, scores = self.session.run(["items", "scores"], given)
        return [
            [
                {**self.items[index], "score": score, "rank": rank}
                for rank, (index, score) in enumerate(zip(row.tolist(), values.tolist(), strict=True), 1)
                if index  # 0 fills up a list when no more items can be recommended
            ]
            for row, values in zip(items, scores, strict=True)
        ]


def handler_of(model: Model) -> type[BaseHTTPRequestHandler]:
    """A handler that answers POST requests such as {"history": [ids], "k": 10}."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                found = model.recommend([request["history"]], int(request.get("k", 10)))[0]
                status, answer = 200, {"items": found, "model_version": model.facts["model_version"]}
            except (ValueError, KeyError, TypeError) as error:
                status, answer = 422, {"error": f"send a JSON object with a history, a list of item ids: {error!r}"}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main() -> None:
    """Print the list after one history, or serve."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("folder", type=Path, help="what sasrec export wrote")
    flags.add_argument("--history", help="item ids, oldest first, separated by commas")
    flags.add_argument("-k", type=int, default=10)
    flags.add_argument("--port", type=int, default=8000)
    arguments = flags.parse_args()
    model = Model(arguments.folder)
    if arguments.history is not None:
        print(json.dumps(model.recommend([arguments.history.split(",")], arguments.k)[0], indent=1))
        return
    with ThreadingHTTPServer(("127.0.0.1", arguments.port), handler_of(model)) as server:
        print(f"model {model.facts['model_version']} on http://127.0.0.1:{server.server_port}/recommend", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
