"""Descriptions of features by a stand-in for a language model, on this machine."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from regraft.features.descriptions import Endpoint, EndpointError, described, marked


def example(text, peak):
    tokens = text.split(" ")
    return {
        "tokens": [f" {token}" for token in tokens], "train_token_ind": peak,
        "tokens_acts_list": [1.0 if place == peak else 0.1 for place in range(len(tokens))],
    }  # fmt: skip


def feature(number, word, count=9):
    top = [example(f"{word} stands at {place}", 0) for place in range(count)]
    random = [example(f"also {word} near {place}", 1) for place in range(count)]
    groups = [("Top activations", top), ("Subsample interval 0", random)]
    return {
        "index": number,
        "examples_quantiles": [{"quantile_name": name, "examples": some} for name, some in groups],
    }  # fmt: skip


class Answers(BaseHTTPRequestHandler):
    """Describes by the marked word; detects by whether a text has the word of the description."""

    asked: list = []
    blind = False

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Answers.asked.append((self.path, self.headers.get("Authorization"), body["model"]))
        system, text = (message["content"] for message in body["messages"])
        if "described as" in system:
            word = re.search(r"described as: (\w+)", system)[1]
            rows = text.split("\n\n")
            found = [int(row.split(".")[0]) for row in rows if word in row.split()]
            said = json.dumps([] if Answers.blind else found)
        else:
            said = re.search(r"<< ?(\w+)>>", text)[1]
        told = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *words):
        pass


@pytest.fixture
def address():
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Answers.asked.clear()
    Answers.blind = False
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_description_is_scored_by_what_it_tells_apart(address, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    some = [feature(0, "cats"), feature(1, "dogs"), feature(2, "cows")]
    found = described(Endpoint(address, "some-model"), some[0], some)
    assert (found.text, found.top, found.random, found.score) == ("cats", 1.0, 1.0, 1.0)
    assert Answers.asked == [("/v1/chat/completions", "Bearer secret", "some-model")] * 3
    Answers.blind = True
    assert described(Endpoint(address, "some-model"), some[0], some).score == 0.5, "chance"
    assert marked(example("cats stand here", 0)) == "<< cats>> stand here"


def test_an_endpoint_that_does_not_answer_is_said():
    some = [feature(0, "cats"), feature(1, "dogs")]
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9 does not answer"):
        described(Endpoint("http://127.0.0.1:9", "m"), some[0], some)
    with pytest.raises(ValueError, match="is no address of an endpoint: write http"):
        Endpoint("file:///etc", "m")
    with pytest.raises(ValueError, match="too few contexts without the feature"):
        described(Endpoint("http://127.0.0.1:9", "m"), some[0], some[:1])
