"""Recipes in mergekit's language: what they ask for, and what is refused, by key and line."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.errors import RecipeError
from consilience.merging import Plan, load_recipe
from consilience.merging.mergekit import parse_mergekit
from consilience.merging.mergekit_methods import METHODS, REQUIRED, known_methods, row_of
from consilience.merging.mergekit_references import ReferenceFault, model_names, parse_reference
from consilience.merging.method import find_method, method_names
from consilience.merging.parameters import MISSING
from consilience.merging.request import MergeRequest, Slice, SliceSource, TokenizerRule, TokenRule
from tests.merging.checkpoints import llama_tensors, read_weights, write_model


def parse(text: str, *, strict: bool = False) -> MergeRequest:
    return parse_mergekit(dedent(text).strip(), origin="recipe.yml", folder=Path("/recipes"), strict=strict)


def problems(text: str, *, strict: bool = False) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, strict=strict)
    assert str(caught.value).startswith("recipe.yml: ")
    return str(caught.value)


def value(request: MergeRequest, name: str, expert: str | None = None, tensor: str = "x", **place: float) -> object:
    return request.parameters.value(
        name,
        expert=expert,
        slice=int(place.get("slice", 0)),
        source_name=tensor,
        output_name=tensor,
        position=place.get("position", 0.0),
    )


# forms


def test_whole_models_with_a_base() -> None:
    request = parse(
        """
        merge_method: task_arithmetic
        base_model: models/base
        models:
        - model: models/a
          parameters: {weight: 0.5}
        - model: models/b
          parameters: {weight: -0.25}
        parameters: {lambda: 1.5, normalize: 1.0}
        dtype: torch.bfloat16
        out_dtype: float32
        """
    )
    assert request.method == "task_arithmetic" and request.slices is None
    assert dict(request.models) == {"base": "models/base", "a": "models/a", "b": "models/b"}
    assert request.base == "base" and request.experts == ("a", "b")
    assert (request.cast, request.out_dtype) == ("BF16", "F32")
    assert [value(request, "weight", e) for e in ("a", "b")] == [0.5, -0.25]
    assert value(request, "lambda") == 1.5 and value(request, "normalize") is True
    assert request.folder == Path("/recipes") and request.warnings == ()


def test_dtype_alone_is_also_the_stored_type() -> None:
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\ndtype: float16"
    assert (parse(text).cast, parse(text).out_dtype) == ("F16", "F16")


def test_listed_base_gives_no_delta_and_its_weight_has_no_effect() -> None:
    request = parse(
        """
        merge_method: ties
        base_model: models/base
        models:
        - {model: ./models/base/, parameters: {weight: 5.0}}
        - {model: models/a, parameters: {weight: 1.0}}
        """
    )
    assert request.experts == ("a",) and request.base == "base"
    assert value(request, "weight", "base") is MISSING


def test_listed_base_of_linear_is_an_expert_and_an_unlisted_one_a_warning() -> None:
    listed = "merge_method: linear\nbase_model: b\nmodels: [{model: b}, {model: a}]\nparameters: {weight: 1}"
    assert parse(listed).experts == ("b", "a") and parse(listed).warnings == ()
    unlisted = "merge_method: linear\nbase_model: b\nmodels: [{model: a}]\nparameters: {weight: 1}"
    request = parse(unlisted)
    assert request.experts == ("a",) and request.base == "b"
    assert "base_model (line 2)" in request.warnings[0] and "does not use a base" in request.warnings[0]


def test_slerp_is_between_the_base_and_the_other() -> None:
    for models in ("[{model: a}, {model: b}]", "[{model: b}, {model: a}]", "[{model: b}]"):
        request = parse(f"merge_method: slerp\nbase_model: a\nmodels: {models}\nparameters: {{t: 0.3}}")
        assert (request.base, request.experts) == ("a", ("b",))


def test_mergekits_defaults_differ_from_ours() -> None:
    text = "merge_method: {}\nbase_model: b\nmodels: [{{model: a, parameters: {{weight: 1}}}}]"
    ties, dare = parse(text.format("ties")), parse(text.format("dare_ties"))
    assert find_method("ties").parameters["density"].default == (0.2,)
    assert value(ties, "density", "a") == 1.0 and value(ties, "merge_function") == "mean"
    assert value(dare, "density", "a") == 1.0 and value(dare, "merge_function") == "sum"
    assert value(dare, "rescale") == "l1" and value(parse(text.format("dare_linear")), "rescale") == "l1"
    assert ties.required == ("weight",)


def test_switches_are_said_in_our_words_at_every_level() -> None:
    request = parse(
        """
        merge_method: dare_ties
        base_model: b
        models: [{model: a, parameters: {weight: 1}}]
        parameters:
          rescale: false
          normalize:
          - {filter: mlp, value: true}
          - value: [false, 1]
          int8_mask: true
        """
    )
    assert value(request, "rescale") == "none"
    assert value(request, "merge_function", tensor="x.mlp.y") == "mean"
    assert [value(request, "merge_function", position=p) for p in (0.0, 0.9, 1.0)] == ["sum", "sum", "mean"]
    assert request.warnings == ()


def test_filters_first_match_wins_and_none_falls_through() -> None:
    request = parse(
        """
        merge_method: linear
        models:
        - model: a
          parameters:
            weight:
            - {filter: attn, value: 0.1}
            - {filter: attn.q, value: 9}
            - {filter: mlp, value: [0.2, 0.6]}
        - model: b
          parameters: {weight: {filter: mlp, value: 3}}
        parameters: {weight: 0.5}
        """
    )
    assert value(request, "weight", "a", "l.attn.q") == 0.1
    assert value(request, "weight", "a", "l.mlp.up", position=0.5) == pytest.approx(0.4)
    assert value(request, "weight", "a", "norm") == 0.5
    assert (value(request, "weight", "b", "l.mlp"), value(request, "weight", "b", "norm")) == (3, 0.5)


def test_wildcards_of_a_filter_are_plain_characters() -> None:
    request = parse(
        """
        merge_method: linear
        models: [{model: a}]
        parameters:
          weight:
          - {filter: "*.mlp.*", value: 7}
          - {filter: "*", value: 1}
        """
    )
    assert value(request, "weight", "a", "layers.0.mlp.up") == 1
    assert value(request, "weight", "a", "odd*.mlp.*name") == 7
    assert "taken literally" in request.warnings[0] and "line 5" in request.warnings[0]


def test_gradient_over_four_layers_by_hand() -> None:
    request = parse("merge_method: linear\nmodels: [{model: a, parameters: {weight: [1.0, 0.2, 0.6]}}]")
    layers = [value(request, "weight", "a", position=i / 3) for i in range(4)]
    assert layers == pytest.approx([1.0, 1.0 + 2 / 3 * (0.2 - 1.0), 0.2 + 1 / 3 * (0.6 - 0.2), 0.6])
    assert value(request, "weight", "a", "model.norm.weight") == 1.0


def test_gradient_of_one_value_is_that_value() -> None:
    request = parse("merge_method: linear\nmodels: [{model: a, parameters: {weight: [0.7]}}]")
    assert {value(request, "weight", "a", position=p) for p in (0.0, 0.3, 1.0)} == {0.7}


def test_slices_and_levels_of_precedence() -> None:
    request = parse(
        """
        merge_method: linear
        slices:
        - sources:
          - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
          - {model: b, layer_range: [2, 4]}
          parameters: {weight: 2}
        - sources:
          - {model: a, layer_range: [2, 4]}
          - {model: b, layer_range: [2, 4]}
          residual_weight: 0.1
        parameters: {weight: 3}
        """
    )
    assert request.slices == (
        Slice((SliceSource("a", 0, 2), SliceSource("b", 2, 4))),
        Slice((SliceSource("a", 2, 4), SliceSource("b", 2, 4))),
    )
    found = [value(request, "weight", e, slice=s) for s in (0, 1) for e in ("a", "b")]
    assert found == [1, 2, 3, 3] and request.warnings == ()


def test_frankenmerge_repeats_layers() -> None:
    request = parse(
        """
        merge_method: passthrough
        slices:
        - sources: [{model: a, layer_range: [0, 3]}]
        - sources: [{model: a, layer_range: [1, 4], parameters: {scale: [{filter: o_proj, value: 0.5}]}}]
        """
    )
    assert request.experts == ("a",) and len(request.slices or ()) == 2
    assert value(request, "scale", "a", "x.o_proj", slice=0) == 1.0
    assert value(request, "scale", "a", "x.o_proj", slice=1) == 0.5
    assert value(request, "scale", "a", "x.q_proj", slice=1) == 1.0


def test_a_slice_may_name_its_own_base() -> None:
    request = parse(
        """
        merge_method: slerp
        slices:
        - base_model: a
          sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
        parameters: {t: 0.5}
        """
    )
    assert request.slices is not None and request.slices[0].base == "a"
    assert (request.base, request.experts) == ("a", ("b",))


def test_references_with_revision_and_adapter() -> None:
    request = parse(
        """
        merge_method: linear
        models:
        - model: org/model@v1+some/adapter
        - model: {model: {path: org/model, revision: v2}, lora: {path: other/lora, revision: r}}
        - model: {model: org/model, override_architecture: X}
        parameters: {weight: 1}
        """
    )
    assert dict(request.models) == {
        "adapter": "org/model@v1+some/adapter",
        "lora": "org/model@v2+other/lora@r",
        "model": "org/model",
    }
    assert "override_architecture" in request.warnings[0]


def test_experts_of_the_same_last_part_are_told_apart() -> None:
    references = [parse_reference(text) for text in ("x/one/m", "y/one/m", "z/two/m", "n", "org/q@a", "org/q@b")]
    assert model_names(references) == {
        "x/one/m": "x/one/m",
        "y/one/m": "y/one/m",
        "z/two/m": "two/m",
        "n": "n",
        "org/q@a": "org/q@a",
        "org/q@b": "org/q@b",
    }


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join), min_size=1, max_size=6))
def test_names_are_distinct(paths: list[str]) -> None:
    names = model_names([parse_reference(path) for path in paths])
    assert len(set(names.values())) == len(names) == len(set(paths))
    assert all(path.endswith(name) for path, name in names.items())


def test_tokenizer_settings_and_chat_template() -> None:
    request = parse(
        """
        merge_method: task_arithmetic
        base_model: m/a
        models: [{model: m/b, parameters: {weight: 1}}]
        tokenizer:
          source: m/c
          pad_to_multiple_of: 16
          tokens:
            <x>: {source: {kind: model_token, model: m/b, token: "<s>"}}
            <y>: {source: {kind: model_token, model: m/b, token_id: 3}, force: true}
            <z>: {source: {kind: zero}}
            <w>: {source: m/a, force: true}
            <v>: {}
        chat_template: chatml
        """
    )
    assert request.tokenizer == TokenizerRule(
        "c",
        16,
        {
            "<x>": TokenRule("token", "b", "<s>"),
            "<y>": TokenRule("token", "b", token_id=3, force=True),
            "<z>": TokenRule("zero"),
            "<w>": TokenRule("model", "a", force=True),
            "<v>": TokenRule(),
        },
    )
    assert request.models["c"] == "m/c" and request.experts == ("b",)
    assert request.chat_template == "chatml"


def test_tokenizer_source_in_short() -> None:
    text = "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\ntokenizer_source: "
    assert parse(text + "union").tokenizer == TokenizerRule("union")
    assert parse(text + "base").tokenizer == TokenizerRule("base")
    assert parse(text + "a").tokenizer == TokenizerRule("a")


def test_several_documents_are_ordered_by_what_they_use() -> None:
    request = parse(
        """
        merge_method: slerp
        base_model: base
        models: [{model: second}]
        parameters: {t: 0.5}
        ---
        name: second
        merge_method: linear
        models: [{model: first}, {model: x}]
        parameters: {weight: 1}
        ---
        name: first
        merge_method: linear
        models: [{model: y}]
        parameters: {weight: 1}
        ---
        name: unused
        merge_method: linear
        models: [{model: y}]
        parameters: {weight: 1}
        """
    )
    assert [name for name, _ in request.stages] == ["first", "second"]
    assert request.method == "slerp" and request.experts == ("second",)
    assert request.warnings == ("the merge named 'unused' is used by no other and is not run",)


def test_numbers_as_yaml_1_2_writes_them() -> None:
    request = parse("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1e-3}}]")
    assert value(request, "weight", "a") == 0.001


def test_anchors_and_merge_keys() -> None:
    request = parse(
        """
        merge_method: linear
        models:
        - model: a
          parameters: &p {weight: 0.25}
        - model: b
          parameters: {<<: *p}
        """
    )
    assert value(request, "weight", "b") == 0.25


# plans


def folders(root: Path, *names: str) -> dict[str, dict[str, torch.Tensor]]:
    made = {}
    for seed, name in enumerate(names):
        made[name] = llama_tensors(seed)
        write_model(root / name, made[name])
    return made


def planned(root: Path, text: str) -> Plan:
    (root / "recipe.yml").write_text(dedent(text))
    return load_recipe(root / "recipe.yml").plan()


def test_gradient_reaches_every_layer_of_a_model(tmp_path: Path) -> None:
    folders(tmp_path, "a", "b")
    plan = planned(
        tmp_path,
        """
        merge_method: linear
        models:
        - model: a
          parameters:
            weight: [{filter: mlp, value: [1, 0.2, 0.6]}, {filter: nothere, value: 1}, {value: 1}]
        - {model: b, parameters: {weight: 0.5}}
        """,
    )
    weights = {t.name: t.parameters["weight"][0] for t in plan.tasks}
    layers = [weights[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(4)]
    assert layers == pytest.approx([1.0, 1.0 + 2 / 3 * (0.2 - 1.0), 0.2 + 1 / 3 * (0.6 - 0.2), 0.6])
    assert weights["lm_head.weight"] == weights["model.layers.3.self_attn.q_proj.weight"] == 1
    assert "parameters.weight of 'a': the filter 'nothere' matches no tensor" in plan.notices


def test_a_weight_that_no_filter_gives_is_an_error_naming_the_tensor(tmp_path: Path) -> None:
    folders(tmp_path, "a")
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: {filter: mlp, value: 1}}}]"
    with pytest.raises(RecipeError, match=r"weight of 'a': method 'linear' requires it .* for tensor 'lm_head.weight'"):
        planned(tmp_path, text)


def test_a_model_can_be_base_of_one_slice_and_expert_of_another(tmp_path: Path) -> None:
    models = folders(tmp_path, "a", "b")
    (tmp_path / "recipe.yml").write_text(
        dedent(
            """
            merge_method: task_arithmetic
            slices:
            - base_model: a
              sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
            - base_model: b
              sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]
            parameters: {weight: 0.25, normalize: true}
            dtype: float32
            """
        )
    )
    load_recipe(tmp_path / "recipe.yml").run(tmp_path / "out", progress=False)
    merged = read_weights(tmp_path / "out")
    for layer, expert in ((0, "b"), (3, "a")):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        torch.testing.assert_close(merged[name], models[expert][name])


# warnings


def test_unknown_keys_are_warnings_with_their_line_and_errors_when_strict() -> None:
    text = """
        merge_method: linear
        modells: 1
        models:
        - model: a
          wieght: 2
        parameters:
          weight: 1
          normalise: true
        """
    warnings = parse(text).warnings
    assert len(warnings) == 3
    assert "modells (line 2)" in warnings[0] and "did you mean 'models'" in warnings[0]
    assert "models[0].wieght (line 5)" in warnings[1]
    assert "parameters.normalise (line 8)" in warnings[2] and "did you mean 'normalize'" in warnings[2]
    message = problems(text, strict=True)
    assert "3 problems" in message and "models[0].wieght (line 5)" in message


def test_method_wide_parameter_of_one_model_is_ignored_with_a_warning() -> None:
    request = parse(
        "merge_method: task_arithmetic\nbase_model: b\nmodels:\n- {model: a, parameters: {weight: 1, lambda: 9}}"
    )
    assert value(request, "lambda") == 1.0
    assert "models[0].parameters.lambda (line 4)" in request.warnings[0] and "top level" in request.warnings[0]


def test_density_without_sparsification_has_no_effect() -> None:
    request = parse(
        "merge_method: task_arithmetic\nbase_model: b\nmodels:\n- {model: a, parameters: {weight: 1, density: 0.5}}"
    )
    assert "density" not in request.parameters.names() and "no effect" in request.warnings[0]


# faults

ONE = "models: [{model: a, parameters: {weight: 1}}]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: linear\nmodels: []", ["models (line 2)", "empty"]),
        ("merge_method: linear", ["models: missing"]),
        (f"merge_method: linear\n{ONE}\nslices: [1]", ["models (line 2) and slices (line 3)", "exclude each other"]),
        ("merge_method: linear\nmodules: {text: {}}", ["modules (line 2)", "not available"]),
        (f"merge_method: tiez\n{ONE}", ["merge_method (line 1)", "'tiez'", "did you mean 'ties'"]),
        (f"merge_method: kacher\n{ONE}", ["'kacher'", "did you mean 'karcher'"]),
        (f"{ONE}\nname: x", ["merge_method: missing"]),
        (f"merge_method: linear\n{ONE}\ndtype: float31", ["dtype (line 3)", "'float31'"]),
        (f"merge_method: linear\n{ONE}\ndtype: int64", ["dtype (line 3)", "not a float type"]),
        (f"merge_method: ties\n{ONE}", ["base_model: missing", "'ties'"]),
        ("merge_method: linear\nmodels: [{model: a}]", ["'weight' is missing for 'a'"]),
        ("merge_method: slerp\nbase_model: b\nmodels: [{model: a}]", ["parameters.t: missing"]),
        ("merge_method: linear\nmodels: [{model: a}, {model: ./a}]\nparameters: {weight: 1}", ["listed twice"]),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: x}}]", ["'x' is not a number"]),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: true}}]", ["True is not a number"]),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: .nan}}]", ["nan is not a number"]),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: []}}]", ["list is empty"]),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: [1, [2]]}}]", ["mixed"]),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: x}]}}]", ["no `value`"]),
        ("merge_method: linear\nmodels: [{model: a, parameters: 3}]", ["expected a mapping, found 3"]),
        ("merge_method: linear\nmodels: [a]", ["models[0] (line 2)", "expected a mapping with `model`"]),
        ("merge_method: linear\nmodels: [{model: a+b+c}]\nparameters: {weight: 1}", ["more than one '+'"]),
        ("merge_method: linear\nmodels: [{model: a@1@2}]\nparameters: {weight: 1}", ["more than one '@'"]),
        ("merge_method: linear\nmodels: [{model: 7}]\nparameters: {weight: 1}", ["7 is not a model"]),
        ("merge_method: linear\nmodels: [{model: {lora: x}}]\nparameters: {weight: 1}", ["no `model`"]),
        (
            "merge_method: linear\nmodels: [{model: a}, {model: b, parameters: {weight: -1}}]\nparameters: {weight: 1}",
            ["sum to 0"],
        ),
        (f"merge_method: linear\n{ONE}\ntokenizer_source: union\ntokenizer: {{}}", ["(line 3) and tokenizer (line 4)"]),
        (f"merge_method: linear\n{ONE}\ntokenizer: {{pad_to_multiple_of: 0}}", ["pad_to_multiple_of (line 3)"]),
        (f"merge_method: linear\n{ONE}\ntokenizer: {{tokens: {{x: {{source: {{kind: zro}}}}}}}}", ["'zero'"]),
        (
            f"merge_method: linear\n{ONE}\ntokenizer: {{tokens: {{x: {{source: {{kind: model_token, model: a}}}}}}}}",
            ["either `token` or `token_id`"],
        ),
        (f"merge_method: linear\n{ONE}\nchat_template: chatlm", ["chat_template (line 3)", "'chatml'"]),
        (f"merge_method: linear\n{ONE}\nmerge_method: ties", ["'merge_method' stands twice", "line 3", "line 1"]),
        ("merge_method: linear\nmodels: [", ["not valid YAML"]),
        ("merge_method: linear\nmodels: &x [*x]", ["alias"]),
        ("", ["empty"]),
    ],
)
def test_fault(text: str, words: list[str]) -> None:
    message = problems(text)
    for word in words:
        assert word in message


@pytest.mark.parametrize("density", ["1.5", "-0.1", "[0.5, 2]", "[{filter: mlp, value: 7}]"])
def test_density_outside_its_range(density: str) -> None:
    message = problems(
        f"merge_method: ties\nbase_model: b\nmodels:\n- {{model: a, parameters: {{weight: 1, density: {density}}}}}"
    )
    assert "models[0].parameters.density" in message and "line 4" in message and "between 0 and 1" in message


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ("[0, 2] [0, 3]", "unequal length"),
        ("[-1, 2] [0, 3]", "negative"),
        ("[3, 1] [0, 2]", "reversed"),
        ("[2, 2] [0, 2]", "empty"),
        ("[0, 1.5] [0, 2]", "whole numbers"),
        ("[0] [0, 2]", "expected [first, end]"),
    ],
)
def test_layer_ranges(ranges: str, words: str) -> None:
    first, second = ranges.replace("] [", "]|[").split("|")
    message = problems(
        f"""
        merge_method: linear
        slices:
        - sources:
          - {{model: a, layer_range: {first}}}
          - {{model: b, layer_range: {second}}}
        parameters: {{weight: 1}}
        """
    )
    assert words in message and "slices[0]" in message


def test_a_method_of_mergekits_that_is_not_here_is_refused_by_name() -> None:
    absent = next(iter(set(METHODS) - set(method_names())), None)
    if absent is None:
        assert set(METHODS) <= set(method_names())
        return
    message = problems(f"merge_method: {absent}\nbase_model: b\n{ONE}")
    assert repr(absent) in message and "not available here" in message


def test_all_faults_are_reported_together() -> None:
    message = problems(
        """
        merge_method: ties
        models:
        - {model: a, parameters: {weight: x, density: 2}}
        - {model: a}
        dtype: bfloat15
        tokenizer_source: union
        tokenizer: {source: base}
        """
    )
    assert message.startswith("recipe.yml: 6 problems")


def test_a_rescale_that_ties_does_not_have_is_refused() -> None:
    text = "merge_method: ties\nbase_model: b\nmodels: [{model: a}]\nparameters: {weight: 1, rescale: %s}"
    assert parse(text % "false").warnings == ()
    assert "not available for method 'ties'" in problems(text % "true")


def test_documents_that_need_each_other_are_refused() -> None:
    stage = "merge_method: linear\nparameters: {weight: 1}\n"
    message = problems(
        f"{stage}name: a\nmodels: [{{model: b}}]\n---\n{stage}name: b\nmodels: [{{model: a}}]\n---\n"
        f"{stage}models: [{{model: a}}]"
    )
    assert "circle" in message and "'a' -> 'b' -> 'a'" in message


def test_documents_need_one_result_and_distinct_names() -> None:
    stage = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: x}]\n"
    assert "one document must be the result" in problems(f"{stage}---\n{stage}")
    assert "name of an earlier document" in problems(f"{stage}name: a\n---\n{stage}name: a\n---\n{stage}")
    assert "adapter cannot be applied" in problems(
        f"{stage}name: a\n---\nmerge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: a+lora}}]"
    )
    assert "only the final merge" in problems(
        f"{stage}name: a\ntokenizer_source: union\n---\n"
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}]"
    )


@pytest.mark.parametrize("bad", ["", "@x", "x@", "a+", {"model": {"path": "a", "branch": "b"}}, {"model": "a+b"}])
def test_references_that_are_none(bad: object) -> None:
    with pytest.raises(ReferenceFault):
        parse_reference(bad)


# the table


def test_table_covers_every_method_of_mergekit() -> None:
    assert len(METHODS) == 20
    assert set(known_methods()) == set(METHODS) | set(method_names())


@pytest.mark.parametrize("name", sorted(set(METHODS) & set(method_names())))
def test_rows_agree_with_the_signatures(name: str) -> None:
    row, known = METHODS[name], find_method(name).parameters
    for theirs, default in {**row.shared, **row.each}.items():
        switch = row.switches.get(theirs)
        ours = switch.name if switch else theirs
        if ours is None:
            continue
        assert known[ours].per_expert == (theirs in row.each)
        if default is not REQUIRED:
            said = switch.values[default] if switch else default
            assert known[ours].check(said) == (said, None)


def test_a_method_of_our_own_has_its_signatures_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(METHODS, "ties")  # type: ignore[arg-type]
    row = row_of.__wrapped__("ties")
    assert row.each == {"weight": 1.0, "density": 0.2} and row.shared["scope"] == "tensor"
    assert row.base == "apart" and row_of.__wrapped__("linear").base == "listed"


WRITTEN = st.one_of(
    st.sampled_from([0.5, -1, 2, True, None, "x", [], [0.1, 0.9], [{"filter": "a", "value": 0.5}], [{"value": 2}], {}]),
    st.floats(allow_nan=False),
)


@given(
    st.fixed_dictionaries(
        {}, optional={"weight": WRITTEN, "density": WRITTEN, "lambda": WRITTEN, "normalize": WRITTEN}
    ),
    st.sampled_from(["ties", "linear", "task_arithmetic", "dare_ties"]),
)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_parameters_give_a_request_or_a_recipe_error(parameters: dict[str, object], method: str) -> None:
    content = {"merge_method": method, "base_model": "b", "models": [{"model": "a"}], "parameters": parameters}
    try:
        request = parse(yaml.safe_dump(content))
    except RecipeError as error:
        assert "parameter" in str(error)
    else:
        assert request.parameters.names() <= set(find_method(method).parameters)
        assert value(request, "weight", "a", tensor="a") is not MISSING
