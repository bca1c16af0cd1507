"""JSON lines and arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sasrec.core.errors import DataError
from sasrec.reading.readers import read_interactions

Save = Callable[[str, str | bytes], Path]
EVENT = '{"user":1,"item":2}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EVENT + '\n{"user":1,"it', "line 2 of .* is not JSON: .*truncated; give one object a line"),
        ("null\n" + EVENT, "line 1 of .* is a JSON value, but no object"),
        (EVENT + EVENT + "\n" + EVENT, "line 1 of .* is not JSON: .*trailing characters"),
        (EVENT + ",\n" + EVENT, "line 1 of .* is not JSON"),
        ('{\n"user":1,\n"item":2\n}\n', "line 1 of .* is not JSON"),
        ("{'user':1,'item':2}\n", "holds Python dictionaries, not JSON"),
        ("[[1,2],[3,4]]", "element 0 of the array in .* is no JSON object"),
        ("[1", "line 1 of .* is a JSON value|is not JSON|neither JSON lines nor one JSON array"),
        ("[]", "has no columns and no events"),
        ("{}\n", "has no columns and no events"),
        ('{"user":[1,1],"item":[2,3]}\n', r"column 'user' of .*log.json holds List\(Int64\); ids are integers or text"),
        ('{"user":{"id":1},"item":2}\n', r"column 'user' of .*log.json holds Struct"),
        (EVENT + '\n{"user":1}\n', "line 2 of .* has nothing in column 'item'"),
        (f"[{EVENT}," + '{"user":1}]', "element 1 of .* has nothing in column 'item'"),
        ('{"user":"\\ud83d","item":1}\n', r"line 1 of .* has .* in column 'user': a NUL or half a character"),
        ('[{"user":"a\\ud83db","item":1}]', r"element 0 of .* has .* in column 'user': a NUL or half a character"),
        (
            "".join(f'{{"user{n}":1}}\n' for n in range(1001)),
            "have 1,001 keys, and 1,000 is the most; is each id a key",
        ),
        ('{"user":1,"item":2,"x":{' + ",".join(f'"{n}":1' for n in range(998)) + "}}", "have 1,001 keys"),
        ('[{"user":1,"item":2,"x":' + "[" * 32 + "]" * 32 + "}]", "log.json are nested 33 deep, and 32 is the most"),
        ('{"user":1,"item":2,"x":' + '{"a":' * 500 + "1" + "}" * 500 + "}\n", "are nested 501 deep"),
        ('{"user":1,"item":2,"x":' + "[" * 2000 + "]" * 2000 + "}\n", "line 1 of .* is not JSON: .*recursion"),
    ],
)
def test_json_that_is_no_log_is_refused(text: str, message: str, save: Save) -> None:
    with pytest.raises(DataError, match=message):
        read_interactions(save("log.json", text))


def test_many_keys_and_deep_ones_are_read_up_to_a_bound(save: Save) -> None:
    keys = ",".join(f'"{n}":1' for n in range(998))
    deep = '{"user":1,"item":2,"x":' + "[" * 31 + "]" * 31 + "}\n"
    for text in (f'{{"user":1,"item":2,{keys}}}\n', deep):
        assert read_interactions(save("log.json", text)).rows() == [(1, 2)]


def test_key_of_a_late_line_is_seen(save: Save) -> None:
    text = '{"user":1,"item":2}\n' * 5000 + '{"user":1,"item":"x","time":5}\n'
    with pytest.raises(DataError, match="has nothing in column 'time'"):
        read_interactions(save("log.json", text))


def test_ids_of_several_types_meet_where_they_are_the_same(save: Save) -> None:
    log = read_interactions(save("log.jsonl", '{"user":"1","item":1.0}\n{"user":1,"item":1}\n'))
    assert log.rows() == [(1, 1), (1, 1)]
    large = read_interactions(save("large.jsonl", '{"user":123456789012345678901,"item":1}\n{"user":1,"item":1}\n'))
    assert large["user_id"].to_list() == ["123456789012345678901", "1"]


def test_format_that_is_asked_for_is_surer_than_what_a_line_begins_with(save: Save) -> None:
    file = save("log.txt", '{"a"} 1\n{"b"} 2\n')
    assert read_interactions(file, format="pairs").rows() == [('{"a"}', 1), ('{"b"}', 2)]


def test_files_may_differ_in_columns_that_are_not_read_and_lack_none_that_is(save: Save, tmp_path: Path) -> None:
    save("a/1.jsonl", '{"user":1,"item":2,"more":{"a":1}}\n')
    save("a/2.jsonl", '{"user":1,"item":3,"more":{"b":"x"},"price":5}\n')
    assert read_interactions(tmp_path / "a").rows() == [(1, 2), (1, 3)]
    save("a/3.jsonl", '{"user":1,"item":3,"time":5}\n')
    with pytest.raises(DataError, match=r"line 1 of .*1.jsonl has nothing in column 'time'"):
        read_interactions(tmp_path / "a")
    save("b/1.jsonl", '{"user":1,"item":2,"more":[1]}\n')
    save("b/2.jsonl", '{"user":1,"item":3,"more":"x"}\n')
    with pytest.raises(DataError, match=r"column 'more' of .* differs between files \(List.* and String\)"):
        read_interactions(tmp_path / "b")


def test_column_that_is_written_like_a_usual_name_is_surer(save: Save) -> None:
    log = read_interactions(save("log.jsonl", '{"i{tem":5,"{ts":6,"user":1,"item":2,"ts":3}\n'))
    assert log.rows() == [(1, 2, 3)]
