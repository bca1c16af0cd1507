"""What a connection writes: an answer's head leaves with what follows it."""

import asyncio

import pytest

from sasrec.serving.flow import CONTINUE, Joined

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"{}"


class Sent(asyncio.Transport):
    """Keeps each write, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def answers(sent: Sent) -> Joined:
    joined = Joined(sent)
    joined.begin()
    return joined


def test_an_answers_head_and_body_are_one_write(answers: Joined, sent: Sent) -> None:
    for data in (HEAD, BODY):
        answers.write(data)
    answers.begin()
    for data in (HEAD, BODY, BODY):  # a long one goes on in pieces
        answers.write(data)
    assert sent.writes == [HEAD + BODY, HEAD + BODY, BODY]


def test_a_head_without_a_body_is_written_when_the_answer_is_complete(answers: Joined, sent: Sent) -> None:
    answers.write(HEAD)
    assert sent.writes == []
    answers.flush()
    answers.flush()
    assert sent.writes == [HEAD]


def test_a_head_is_written_before_the_connection_closes(answers: Joined, sent: Sent) -> None:
    answers.write(HEAD)
    answers.close()
    assert (sent.writes, sent.is_closed, answers.is_closing()) == ([HEAD], True, True)


def test_a_head_is_dropped_where_the_connection_is_closed_already(answers: Joined, sent: Sent) -> None:
    answers.write(HEAD)
    sent.close()
    answers.flush()
    assert sent.writes == []


def test_a_client_that_waits_to_be_told_to_go_on_is_told_at_once(answers: Joined, sent: Sent) -> None:
    answers.write(CONTINUE)
    assert sent.writes == [CONTINUE]
    for data in (HEAD, BODY):
        answers.write(data)
    assert sent.writes == [CONTINUE, HEAD + BODY]
