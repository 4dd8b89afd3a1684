from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data import ReservedQueries
from consilience.data.instructions import InstructionData, InstructionTask, TaskInstance
from consilience.data.prompting import Prompting
from consilience.data.rendering import Demonstration, Instruction, parse, render
from consilience.data.text_metrics import entities, normalise, score_answer
from consilience.errors import DataError, LeakageError

NONE = ReservedQueries.empty()
PIECES = [
    *(
        "], [",
        "]]",
        "[[",
        "; Instance: input: ",
        ", output: ?",
        ", output: ",
        ", explanation: ",
        "input: ",
        "\\",
        "\\\\",
    ),
    *(
        "Instruction: ",
        "Definition: ",
        ", Prompt: ",
        ", Positive Examples: [[",
        "]",
        "[",
        ";",
        ",",
        "?",
        " ",
        "a",
        "né\n",
    ),
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
FILLED = TEXT.filter(str.strip)
DEMONSTRATIONS = st.lists(st.builds(Demonstration, FILLED, FILLED, TEXT), max_size=3).map(tuple)


def word_count(texts: object) -> list[int]:
    return [len(text.split()) for text in texts]  # type: ignore[attr-defined]


def test_the_layout_is_the_published_one() -> None:
    task = Instruction(
        "Find the  drugs.",
        "Drugs:",
        (Demonstration("He took aspirin.", "aspirin", "it is a drug"), Demonstration("He slept.", "none")),
    )
    assert render(task, "Give  ibuprofen\nnow") == (
        "Instruction: Definition: Find the drugs., Positive Examples: [[input: He took aspirin., output: aspirin, "
        "explanation: it is a drug], [input: He slept., output: none]]; "
        "Instance: input: Give ibuprofen now, output: ?"
    )
    assert render(task, "x", fields=("prompt",)) == "Instruction: Prompt: Drugs:; Instance: input: x, output: ?"
    assert render(task, "x", fields=("prompt", "definition")) == (
        "Instruction: Definition: Find the drugs., Prompt: Drugs:; Instance: input: x, output: ?"
    )
    assert "slept" not in render(task, "x", examples=1) and "aspirin" not in render(task, "x", examples=0)
    assert render(task, "x  y", fields=()) == "x y"


@settings(max_examples=150, deadline=None)
@given(definition=TEXT, prompt=TEXT, examples=DEMONSTRATIONS, text=TEXT)
def test_what_is_rendered_is_read_back(
    definition: str, prompt: str, examples: tuple[Demonstration, ...], text: str
) -> None:
    if not (definition.strip() or prompt.strip()):
        definition = "say it"
    task = Instruction(definition, prompt, examples)
    found, instance = parse(render(task, text, fields=("definition", "prompt", "examples")))
    assert (found, instance) == (task, " ".join(text.split()))


def test_other_layouts_are_refused() -> None:
    with pytest.raises(DataError, match="expected 'Instruction: ' at 0, found 'Definition"):
        parse("Definition: x; Instance: input: y, output: ?")
    with pytest.raises(DataError, match=r"expected '; Instance: input: '"):
        parse("Instruction: Definition: x")
    with pytest.raises(DataError, match="is left after its end"):
        parse(render(Instruction("x"), "y") + " more")
    with pytest.raises(DataError, match=r"(?s)2 problems.*neither a definition.*example 0 has no output"):
        Instruction(examples=(Demonstration("a", " "),))
    with pytest.raises(DataError, match="field 'prompts' is unknown; did you mean 'prompt'"):
        render(Instruction("x"), "y", fields=("prompts",))
    with pytest.raises(DataError, match="nothing is asked"):
        render(Instruction("x"), "y", fields=("prompt", "examples"))


def test_scores_of_answers() -> None:
    assert normalise("  An  Answer: THE end.") == "answer end"
    assert score_answer("exact", "The Heart.", ["lung", "heart"]) == 1
    assert score_answer("exact", " ", ["the"]) == 0, "an empty answer is wrong, whatever normalisation leaves"
    assert score_answer("token_f1", "b b a1", ["b a1 c"]) == pytest.approx(2 * 2 / 6)
    assert score_answer("rouge_l", "police killed the gunman", ["police kill gunman"]) == pytest.approx(2 * 2 / 6)
    assert score_answer("rouge_l", "gunman kill police", ["police kill gunman"]) == pytest.approx(2 * 1 / 6)
    assert entities("x <A>, x <a> , y <B>, z") == {("x", "a"), ("y", "b")}
    assert score_answer("entity_f1", "y <B>, x <A>, x <A>", ["x <A>, y <B>"]) == 1
    assert score_answer("entity_f1", "x <B>", ["x <A>"]) == 0
    with pytest.raises(DataError, match="'rouge' is unknown; did you mean 'rouge_l'"):
        score_answer("rouge", "a", ["a"])
    with pytest.raises(DataError, match="at least one right answer"):
        score_answer("exact", "a", [])


@settings(max_examples=100, deadline=None)
@given(left=st.lists(st.sampled_from("xyz"), max_size=7), right=st.lists(st.sampled_from("xyz"), max_size=7))
def test_rouge_l_is_the_longest_common_subsequence(left: list[str], right: list[str]) -> None:
    def longest(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + longest(a[1:], b[1:])
        return max(longest(a[1:], b), longest(a, b[1:]))

    common = longest(left, right)
    wanted = 2 * common / (len(left) + len(right)) if common else 0.0
    assert score_answer("rouge_l", " ".join(left), [" ".join(right)]) == pytest.approx(wanted)


def write(folder: Path, instructions: object, **lines: list[object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "instructions.json").write_text(json.dumps(instructions))
    for name, rows in lines.items():
        task, split = name.split("__")
        (folder / task).mkdir(exist_ok=True)
        (folder / task / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def test_a_folder_holds_instructions_and_instances(tmp_path: Path) -> None:
    entries = {
        "alive": {
            "Definition": "Is it alive?",
            "Prompt": "Alive:",
            "Examples": [{"input": "a cat", "output": "yes", "explanation": "cats live"}],
            "Labels": ["yes", "no"],
            "Metric": "exact",
        },
        "not here": {"Definition": "x", "Prompt": "", "Examples": []},
    }
    folder = write(
        tmp_path / "box",
        entries,
        alive__train=[{"input": "a dog", "output": "yes"}, {"input": "A stone.", "output": ["no", "never"]}],
        alive__test=[{"input": "a stone", "output": "no", "question": "What of"}],
    )
    data = InstructionData.open(folder)
    assert list(data.tasks) == ["alive"] and data.name == "box"
    task = data.tasks["alive"]
    assert task.instruction == Instruction("Is it alive?", "Alive:", (Demonstration("a cat", "yes", "cats live"),))
    assert task.instances("train")[1].outputs == ("no", "never")
    assert task.instances("test")[0].text == "What of a stone"
    assert (task.metric, task.labels) == ("exact", ("yes", "no"))
    again = InstructionData.of("other", data.tasks.values())
    assert again.content_hash == data.content_hash
    with pytest.raises(DataError, match="no instances of 'dev'; it has train, test"):
        task.instances("dev")
    with pytest.raises(DataError, match="no task 'alife'; did you mean 'alive'"):
        data.only("alife")


def test_everything_that_is_wrong_with_a_folder_is_told_at_once(tmp_path: Path) -> None:
    entries = {
        "a": {"Definition": "", "Examples": [{"in": "x"}], "Explain": "?"},
        "b": {"Definition": "d", "Metric": "blue", "Labels": "yes"},
        "c": {"Definition": "d"},
    }
    folder = write(
        tmp_path / "box", entries, a__train=[{"input": "x"}], b__train=[{"input": "", "output": "y"}], d__dev=[]
    )
    (folder / "c").mkdir()
    (folder / "b" / "test.jsonl").write_text("{no json\n")
    with pytest.raises(DataError) as caught:
        InstructionData.open(folder)
    for said in (
        "d/: no instruction of this name",
        "a: key 'Explain' is unknown",
        "a: example 0 is no mapping of texts",
        "a: instruction: it has neither a definition nor a prompt",
        "a/train.jsonl, line 1: expected",
        "b: Labels is a list of texts",
        "b/test.jsonl, line 1: no JSON",
        "c/: none of train.jsonl",
    ):
        assert said in str(caught.value)
    with pytest.raises(DataError, match=r"instructions\.json cannot be read"):
        InstructionData.open(tmp_path)
    with pytest.raises(DataError, match=r"none of the 1 tasks of instructions\.json has a folder"):
        InstructionData.open(write(tmp_path / "empty", {"a": {"Definition": "d"}}))
    bad = InstructionTask("t", Instruction("d"), {"train": [TaskInstance("x", ("",))], "trial": []}, metric="blue")
    with pytest.raises(
        DataError, match=r"(?s)several tasks.*metric 'blue'.*instance 0 has an empty.*'trial' is unknown"
    ):
        InstructionData.of("two", [bad, bad])
    with pytest.raises(DataError, match="there are no tasks"):
        InstructionData.of("none", [])


def task(name: str, train: list[str], test: list[str] = (), **more: object) -> InstructionTask:  # type: ignore[assignment]
    splits = {"train": [TaskInstance(x, (x[0],)) for x in train], "test": [TaskInstance(x, (x[0],)) for x in test]}
    return InstructionTask(name, Instruction("say it"), splits, **more)  # type: ignore[arg-type]


def test_held_out_instances_of_any_task_are_dropped_or_refused() -> None:
    data = InstructionData.of("d", [task("a", ["one", "Two.", "three"]), task("b", ["one", "four"], ["two"])])
    other = InstructionData.of("o", [task("c", ["x"], ["three"])])
    given = data.training(against=[other], reserved=ReservedQueries.of(["four"]))
    assert {name: [one.input for one in found] for name, found in given.instances.items()} == {
        "a": ["one"],
        "b": ["one"],
    }
    assert given.dropped == {"same as a dev or test instance": 2, "reserved": 1}
    assert set(given.sources) == {"d", "o", "reserved queries"} and len(given) == 2
    with pytest.raises(LeakageError, match=r"task a: the training text 'Two\.' is held out"):
        data.training(reserved=NONE, on_leak="refuse")
    with pytest.raises(DataError, match="task b: none of its training instances is left"):
        data.training(reserved=ReservedQueries.of(["one", "four"]))
    shown = Instruction("say it", examples=(Demonstration("Five", "f"),))
    leaky = InstructionTask("a", shown, {"test": [TaskInstance("five", ("f",))]})
    with pytest.raises(LeakageError, match="test instance 0 is one of the instruction's examples"):
        InstructionData.of("d", [leaky])


def test_few_instances_are_drawn_by_seed() -> None:
    data = InstructionData.of("d", [task("a", [f"text {n}" for n in range(40)]), task("b", ["one", "two"])])
    given = data.training(reserved=NONE)
    draws = [given.few(5, seed=seed).instances for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert [len(found) for found in draws[0].values()] == [5, 2]
    assert given.few(None).instances == given.instances
    assert given.few(5).describe()["content_hash"] != given.describe()["content_hash"]
    with pytest.raises(DataError, match="0 instances per task"):
        given.few(0)


def test_answers_outside_the_labels_are_counted() -> None:
    one = task("a", ["x"], ["yes sir", "no sir", "yes man"], metric="exact", labels=("y", "n"))
    found = one.score(["Y.", "maybe", " "])
    assert found.scores.tolist() == [1, 0, 0] and (found.empty, found.unparsed) == (1, 1)
    assert found.mean == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="1 answers to 3 instances"):
        one.score(["y"])
    assert one.first("test", 2).score(["y", "n"]).mean == 1


def test_long_prompts_lose_examples_first_then_the_end_of_the_input() -> None:
    examples = tuple(Demonstration(f"sample {n}", "s") for n in range(3))
    asked = InstructionTask("t", Instruction("Say the first letter", examples=examples), {})
    short, long = TaskInstance("a b", ("a",)), TaskInstance("c d e f g h i j k l", ("c",), "Which of")
    full = Prompting().prompts(asked, [short, long], word_count, 100)
    assert (full.fewer_examples, full.cut_inputs) == (0, 0) and "sample 2" in full.texts[1]
    limit = word_count([full.texts[0]])[0]
    fewer = Prompting().prompts(asked, [short, long], word_count, limit)
    assert (fewer.fewer_examples, fewer.cut_inputs) == (1, 0)
    assert fewer.texts[0] == full.texts[0] and "sample 0" in fewer.texts[1] and "sample 2" not in fewer.texts[1]
    cut = Prompting().prompts(asked, [long], word_count, 15)
    assert (cut.fewer_examples, cut.cut_inputs) == (1, 1)
    assert cut.texts[0].startswith("Instruction: Definition: Say the first letter; Instance: input: Which of c d")
    assert word_count(cut.texts) == [15] and cut.texts[0].endswith(", output: ?")
    with pytest.raises(DataError, match=r"task t: its instruction takes \d+ tokens with the least of an instance"):
        Prompting().prompts(asked, [long], word_count, 9)
    plain = Prompting(fields=()).prompts(asked, [long], word_count, 5)
    assert plain.texts == ("Which of c d e",) and plain.cut_inputs == 1
    assert "sample 1" not in Prompting(examples=1).prompts(asked, [short], word_count, 100).texts[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fields": ("definitions",)}, "did you mean 'definition'"),
        ({"fields": ("examples",)}, "examples alone asks nothing"),
        ({"examples": -1}, "examples is -1"),
    ],
)
def test_prompting_that_makes_no_sense_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Prompting(**arguments)  # type: ignore[arg-type]
