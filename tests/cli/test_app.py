"""The command line as a whole: help, exit codes, tables on and off a terminal."""

import json
import os
import subprocess
import sys

import pytest

import consilience
from consilience.cli.app import app, run

VERBS = [command.name for command in app.registered_commands]
GROUPS = [group.typer_instance.info.name for group in app.registered_groups]


def test_the_verbs_are_pinned(capsys):
    first, last = (
        ["merge", "plan", "inspect", "moe", "extract", "train"],
        ["index", "search", "serve", "eval", "demo", "methods"],
    )
    assert [*first, "statistics", "tune", "pareto", *last] == VERBS
    assert GROUPS == ["bundle"]
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in (*VERBS, *GROUPS))
    assert "Exit codes: 0 done, 1 the work failed, 2 the request was wrong." in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(capsys, verb):
    assert run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: consilience {verb}") and ("--json" in shown or verb == "serve")


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"consilience {consilience.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mrge"], "No such command 'mrge'. Did you mean 'merge'?"),
        (["merge", "recipe.yml"], "Missing option '--out' / '-o'"),
        (["merge", "recipe.yml", "--out", "x", "--thraeds", "2"], "No such option: --thraeds"),
        (["plan", "recipe.yml", "--threads", "0"], "Invalid value for '--threads'"),
    ],
)
def test_wrong_usage(capsys, arguments, words):
    assert run(arguments) == 2
    assert words in capsys.readouterr().err


def test_methods(capsys):
    assert run(["methods"]) == 0
    shown = capsys.readouterr().out
    names = [entry["name"] for entry in consilience.methods()]
    assert [line.split()[0] for line in shown.splitlines()[2:] if line] == names
    assert run(["methods", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == names


def test_one_method(capsys):
    assert run(["methods", "ties"]) == 0
    shown = capsys.readouterr().out
    assert "arXiv 2306.01708" in shown and "laws: idempotent, permutation, scale, zero_weight" in shown
    assert "density a number between 0 and 1, per expert 0.2" in [" ".join(line.split()) for line in shown.splitlines()]
    assert run(["methods", "ties", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["density"]["default"] == 0.2
    assert run(["methods", "tie"]) == 2
    assert "method 'tie' is unknown; did you mean 'ties'?" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("consilience.merging.recipe.load_recipe", interrupt)
    assert run(["plan", "recipe.yml"]) == 1
    assert "run the same command again to resume" in capsys.readouterr().err


def test_a_path_that_the_system_refuses_is_a_wrong_request(capsys):
    assert run(["plan", "x" * 300, "--json"]) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err and "too long" in shown.err
    assert json.loads(shown.out)["exit_code"] == 2


def test_the_program_on_a_terminal():
    controller, terminal = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", "consilience", "methods", "slerp"]
    process = subprocess.Popen(command, stdout=terminal, env=environment)
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(controller, 65536):
            shown += part
    except OSError:  # the end, on Linux
        pass
    os.close(controller)
    assert process.wait() == 0
    text = shown.decode()
    assert "┃" in text and "│" in text and "a number between 0 and 1" in text and "\x1b[1m" in text


def test_the_program_elsewhere():
    command = [sys.executable, "-m", "consilience", "methods", "slrp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "consilience: method 'slrp' is unknown; did you mean 'slerp'?\n"
