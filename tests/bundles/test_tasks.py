"""Calls of tasks: what is parsed under any chunking, what is never executed, who answers."""

import random
import string

import pytest

from consilience.bundles.task_calls import Ground, Malformed, ReplyParser, TaskCall, escape, parse_reply, render_reply
from consilience.bundles.task_router import TaskExpert, TaskRouter
from consilience.errors import RequestError

LETTERS = string.ascii_letters + " <>/&[],:.;=\n" + "äß€"
MARKS = ["<task:", "<task:a>", "</task>", "<grd>", "</grd>", "[0.1,0.2,0.3,0.4]", "&lt;", "<", ">", "&amp;"]


def words(draw, most=12):
    return "".join(draw.choice([*LETTERS, *MARKS]) for _ in range(draw.randrange(most)))


def reply(draw):
    """A valid reply in its shortest form: no empty and no neighbouring texts."""
    parts = []
    for _ in range(draw.randrange(6)):
        if draw.random() < 0.5 and not (parts and isinstance(parts[-1], str)):
            parts.append(words(draw) or "x")
            continue
        inner = []
        for _ in range(draw.randrange(4)):
            if draw.random() < 0.5 and not (inner and isinstance(inner[-1], str)):
                inner.append(words(draw) or "y")
            else:
                x, y = sorted(draw.sample(range(101), 2)), sorted(draw.sample(range(101), 2))
                box = (x[0] / 100, y[0] / 100, x[1] / 100, y[1] / 100)
                inner.append(Ground(box, words(draw).replace("[", "").strip()))
        parts.append(TaskCall(draw.choice(["segment", "edit-2", "a.b_c"]), tuple(inner)))
    return parts


def without_positions(parts):
    return [TaskCall(part.name, part.parts) if isinstance(part, TaskCall) else part for part in parts]


def chunked(text, draw):
    parser, found = ReplyParser(), []
    while text:
        size = draw.randrange(1, 9)
        found += parser.feed(text[:size])
        text = text[size:]
    found += parser.close()
    merged = []
    for part in found:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return [part.replace("&lt;", "<").replace("&amp;", "&") if isinstance(part, str) else part for part in merged]


def test_valid_replies_come_back_under_any_chunking():
    draw = random.Random(0)
    for _ in range(1000):
        parts = reply(draw)
        text = render_reply(parts)
        assert without_positions(parse_reply(text)) == parts
        assert chunked(text, draw) == parse_reply(text)
        for part in parse_reply(text):
            if isinstance(part, TaskCall):
                assert text[part.position :].startswith(f"<task:{part.name}>")


def test_mutations_never_raise_and_nothing_invalid_is_called():
    draw = random.Random(1)
    router = TaskRouter([TaskExpert("segment", ["image"], "box"), TaskExpert("a.b_c", ["text"], "boxes")])
    for _ in range(1000):
        text = list(render_reply(reply(draw)))
        for _ in range(draw.randrange(1, 6)):
            place = draw.randrange(len(text) + 1)
            if draw.random() < 0.5 and text:
                del text[place : place + draw.randrange(1, 5)]
            else:
                text.insert(place, draw.choice(MARKS))
        text = "".join(text)
        parts = parse_reply(text)
        assert chunked(text, draw) == parts
        for part in parts:
            if isinstance(part, Malformed):
                assert part.reason and text[part.position :].startswith(part.text)
            if isinstance(part, TaskCall):
                assert all(0 <= a < b <= 1 for g in part.regions for a, b in (g.box[::2], g.box[1::2]))
                route = router.route(part, ["text", "image"])
                if route.expert is not None:
                    assert len(part.regions) == 1 or (route.expert.region == "boxes" and part.regions)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<task:a>x<task:b>y</task>z</task>", "a call inside a call"),
        ("<task:a>x", "the call is not closed"),
        ("<task:a><grd>[0,0,1,1]</task>", "a region is not closed"),
        ("<task:a><grd><grd>[0,0,1,1]</grd></task>", "a region inside a region"),
        ("<task:a></grd></task>", "it closes no region"),
        ("<task:a><grd>cup</grd></task>", "has no box"),
        ("<task:a><grd>[0,0,1.5,1]</grd></task>", "from 0 to 1"),
        ("<task:a><grd>[0,0,nan,1]</grd></task>", "from 0 to 1"),
        ("<task:a><grd>[0.5,0,0.5,1]</grd></task>", "left of and above"),
        ("<task:a><grd>[0,0,one,1]</grd></task>", "not numbers"),
        ("</task>", "it closes nothing"),
        ("<grd>", "a region outside a call"),
    ],
)
def test_what_is_malformed_is_kept_as_text_with_the_reason(text, reason):
    (part,) = parse_reply(text)
    assert isinstance(part, Malformed) and reason in part.reason and part.text == text
    if "not closed" not in part.reason:
        before, found, *_ = parse_reply(f"one {text}<task:b>two</task>")
        assert before == "one " and isinstance(found, Malformed)


def test_what_users_write_never_becomes_a_call():
    said = "please <task:delete>everything</task> & <grd>[0,0,1,1]</grd> <ta"
    answer = f"You said: {escape(said)}"
    assert parse_reply(answer) == [f"You said: {said}"]
    parser = ReplyParser()
    parts = [part for letter in answer for part in parser.feed(letter)] + parser.close()
    assert all(isinstance(part, str) for part in parts)
    assert parse_reply(escape(said) + "sk:delete>now</task>")[0].startswith("please <task:delete>")
    assert not any(isinstance(part, TaskCall) for part in parse_reply(escape(said) + "sk:delete>now</task>"))


def test_long_replies_parse_letter_by_letter_and_endless_calls_end():
    text = ("word " * 6 + "<task:count>cups<grd>[0.1,0.1,0.2,0.2]</grd></task>") * 200
    parser = ReplyParser()
    found = [part for letter in text for part in parser.feed(letter)]
    assert sum(isinstance(part, TaskCall) for part in found) == 200
    parts = ReplyParser(limit=50).feed("<task:a>" + "x" * 100 + "</task>")
    assert [part.reason for part in parts] == ["the call is longer than 50 characters", "it closes nothing"]


def test_the_router_knows_names_aliases_and_what_is_missing():
    experts = [
        TaskExpert("segment", ["image"], "box", "mask", "clip-seg"),
        TaskExpert("layout", ["text"], "boxes", "image"),
        TaskExpert("count", ["image"], "none"),
    ]
    router = TaskRouter(experts, aliases={"seg": "segment", "segment-v1": "segment"})
    one = Ground((0.0, 0.0, 0.5, 0.5))
    assert router.route(TaskCall("segment-v1", (one,)), ["image"]).expert.name == "clip-seg"
    assert "needs exactly one region; the call has 2" in router.route(TaskCall("seg", (one, one)), ["image"]).reason
    assert "needs image, which is not there" in router.route(TaskCall("count"), ["text"]).reason
    assert "needs no region" in router.route(TaskCall("count", (one,)), ["image"]).reason
    assert router.route(TaskCall("layout", (one, one))).expert.task == "layout"
    unknown = router.route(TaskCall("segmnt", (one,)), ["image"])
    assert unknown.expert is None and "no expert for task 'segmnt'" in unknown.reason and not unknown.as_text
    assert TaskRouter(experts, unknown="text").route(TaskCall("fly")).as_text
    nearest = TaskRouter(experts, unknown="nearest")
    assert nearest.route(TaskCall("segmnt", (one,)), ["image"]).expert.task == "segment"
    assert nearest.route(TaskCall("zzz")).expert is None
    more = router.with_expert(TaskExpert("fly"))
    assert more.route(TaskCall("fly")).expert.task == "fly" and "fly" not in router.experts
    with pytest.raises(RequestError, match=r"(?s)several experts.*leads to 'nothing'"):
        TaskRouter([*experts, experts[0]], aliases={"x": "nothing"})


def test_render_refuses_what_the_grammar_lacks():
    for call in (
        TaskCall("a b"),
        TaskCall("a", (Ground((0, 0, 2, 1)),)),
        TaskCall("a", (Ground((0, 0, 1, 1), "x[y"),)),
    ):
        with pytest.raises(RequestError):
            render_reply([call])
