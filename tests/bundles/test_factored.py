"""Mixed weights in one batch: the layer-wise answer is the dense merged model's, input by input."""

import numpy as np
import pytest
import torch
from torch import nn

from consilience.bundles.creation import create_bundle
from consilience.bundles.factored import mixed_weights, read_changes
from consilience.bundles.grouping import weight_groups
from consilience.errors import RequestError
from tests.bundles.models import save


class Small(nn.Module):
    """Embedding, norm, two linear layers: every layer that can be mixed."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(30, 16)
        self.places = nn.Embedding(5, 16)
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 6, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)

    def forward(self, ids):
        hidden = self.words(ids) + self.places(torch.arange(5)[None])
        return self.down(torch.tanh(self.up(self.norm(hidden)))).mean(dim=1)


def bundle_of(folder, **options):
    base = Small(0)
    experts = {}
    for place, name in enumerate("abc", start=1):
        other = Small(place).state_dict()
        experts[name] = {n: t + 0.3 * (other[n] - t) for n, t in base.state_dict().items()}
    shared = {} if options.get("residual") == "masks" else {"shared": "task_arithmetic", "parameters": {"lambda": 0.3}}
    return create_bundle(folder / "bundle", base.state_dict(), experts, **shared, **options), Small(0)


OPTIONS = [
    {"residual": "low_rank", "density": 0.5},
    {"residual": "low_rank", "density": 1.0},
    {"residual": "sparse", "density": 0.4},
    {"residual": "masks"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o['residual']}-{o.get('density', '')}")
def test_a_batch_of_mixed_weights_is_the_dense_models(tmp_path, options):
    bundle, model = bundle_of(tmp_path, **options)
    model.load_state_dict(bundle.state("base"))
    names = {name: name for name, _ in model.named_parameters()}
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 30, (12, 5), generator=draw)
    weights = torch.softmax(torch.randn(12, 3, generator=draw) * 3, dim=1)
    weights[0], weights[1] = 0.0, torch.tensor([0.0, 1.0, 0.0])
    with torch.no_grad(), mixed_weights(model, names, read_changes(bundle), weights):
        found = model(ids)
    with torch.no_grad():
        assert torch.equal(model(ids), model(ids))  # the layers are as they were
        assert (model(ids)[0] - found[0]).abs().max() < 1e-6
        for row, own in enumerate(weights.tolist()):
            state = bundle.mix(dict(zip(bundle.experts, own, strict=True)))
            dense = torch.func.functional_call(model, state, (ids[row : row + 1],))
            assert (dense[0] - found[row]).abs().max() <= 1e-4, row
        assert (found - model(ids)).abs().max() > 0.05  # the experts do change the answers


def test_a_shuffled_batch_is_shuffled_and_nothing_else(tmp_path):
    bundle, model = bundle_of(tmp_path, residual="low_rank", rank=3)
    names = {name: name for name, _ in model.named_parameters()}
    ids, weights = torch.arange(20).view(4, 5), torch.eye(4)[:, :3]
    changes, order = read_changes(bundle), torch.tensor([2, 0, 3, 1])
    with torch.no_grad(), mixed_weights(model, names, changes, weights):
        found = model(ids)
    with torch.no_grad(), mixed_weights(model, names, changes, weights[order]):
        assert (model(ids[order]) - found[order]).abs().max() < 1e-6


def test_adapters_mix_by_their_own_factors(tmp_path):
    from tests.merging.checkpoints import llama_tensors, write_model
    from tests.merging.test_engine import write_adapter

    base = llama_tensors(0, width=8)
    write_model(tmp_path / "base", base)
    for seed, name in enumerate(("x", "y")):
        write_adapter(tmp_path / name, base, seed)
    references = {name: f"{tmp_path / 'base'}+{tmp_path / name}" for name in ("x", "y")}
    bundle = create_bundle(tmp_path / "bundle", str(tmp_path / "base"), references, residual="adapter")
    changes = read_changes(bundle)
    assert changes.keys() == {name for name in base if "q_proj" in name}
    for name, change in changes.items():
        assert change.whole == () and change.owner.tolist() == [0, 0, 1, 1]
        own = bundle.state("y")[name].float() - bundle.state("base")[name].float()
        product = change.left[:, 2:] @ change.right[2:]
        assert (product - own).abs().max() < 0.02 * own.abs().max()  # the expert is rounded to the model's type


def test_other_layers_are_refused_by_name(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 2, 3), nn.Linear(4, 4))
    base = {name: value.detach() for name, value in model.named_parameters()}
    expert = {name: value + 1 for name, value in base.items()}
    bundle = create_bundle(tmp_path / "bundle", base, {"a": expert}, rank=1)
    names = {name: name for name in base}
    with (
        pytest.raises(RequestError, match=r"0\.weight of Conv1d.*grouped"),
        mixed_weights(model, names, read_changes(bundle), torch.ones(1, 1)),
    ):
        pass
    only = {name: change for name, change in read_changes(bundle).items() if name.startswith("1.")}
    with (
        pytest.raises(RequestError, match="given 3 inputs at once and the batch has weights for 2"),
        mixed_weights(model, names, only, torch.ones(2, 1)),
    ):
        model[1](torch.zeros(3, 4))


def test_groups_cover_every_input_once():
    weights = np.random.default_rng(0).dirichlet([0.1] * 3, size=200)
    groups = list(weight_groups(weights, 1))
    assert sorted(np.concatenate([rows for _, rows in groups]).tolist()) == list(range(200))
    assert len(groups) < 66
    for found, rows in groups:
        assert np.abs(weights[rows] - np.array(found)).max() <= 0.05 + 1e-12


def test_experts_of_a_saved_bundle_are_read_from_disk(tmp_path):
    bundle, model = bundle_of(tmp_path, residual="low_rank", rank=2)
    moved = create_bundle(
        tmp_path / "again",
        save(tmp_path / "base", Small(0).state_dict()),
        {name: save(tmp_path / name, bundle.state(name)) for name in bundle.experts},
        residual="low_rank",
        density=1.0,
    )
    changes = read_changes(moved, ["b"])
    assert set(changes) == {name for name, _ in model.named_parameters()}
    assert {place for change in changes.values() for place, _ in change.whole} == {0}
