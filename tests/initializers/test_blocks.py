from collections.abc import Callable

import pytest
import torch
from torch import nn

from seq2seq.initializers.blocks import parameter_layouts
from seq2seq.models.recurrent import gates_of


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_listed_once_in_the_order_of_the_model(
    toy: Callable[..., nn.Module], cell: str, tied: bool
) -> None:
    model = toy(cell, hidden=16, embedding=16, tied=tied)
    layouts = parameter_layouts(model)
    assert [layout.name for layout in layouts] == [name for name, _ in model.named_parameters()]
    for layout, (_, parameter) in zip(layouts, model.named_parameters(), strict=True):
        assert layout.parameter is parameter
        assert sum(block.shape[0] for block in layout.blocks) == parameter.size(0)


def test_fans_are_those_of_one_gate() -> None:
    layouts = {layout.name: layout for layout in parameter_layouts(nn.LSTM(10, 7, num_layers=2))}
    for name, fan_in in {"weight_ih_l0": 10, "bias_ih_l0": 10, "weight_ih_l1": 7}.items():
        for block in layouts[name].blocks:
            assert (block.fan_in, block.fan_out, block.kind) == (fan_in, 7, "recurrent")
    assert [block.gate for block in layouts["weight_hh_l0"].blocks] == ["i", "f", "g", "o"]


def test_a_linear_bias_has_the_fans_of_its_weight() -> None:
    for layout in parameter_layouts(nn.Linear(10, 7)):
        (block,) = layout.blocks
        assert (block.fan_in, block.fan_out, block.kind) == (10, 7, "linear")


def test_tied_parameters_answer_to_every_name_and_count_as_embeddings() -> None:
    model = nn.Module()
    model.output = nn.Linear(6, 20)  # found first, still an embedding
    model.embedding = nn.Embedding(20, 6)
    model.embedding.weight = model.output.weight
    tied = parameter_layouts(model)[0]
    assert tied.names == ("output.weight", "embedding.weight")
    assert tied.owner is model.embedding


def test_the_projection_of_an_lstm_has_no_gates() -> None:
    layouts = {layout.name: layout for layout in parameter_layouts(nn.LSTM(5, 8, proj_size=3))}
    assert layouts["weight_hr_l0"].gates == ""
    assert layouts["weight_hh_l0"].blocks[0].shape == (8, 3)


# The gate letters are claims about torch's kernels: each is tested by what its bias does.
def test_a_large_forget_bias_keeps_the_cell_state() -> None:
    lstm = nn.LSTM(3, 5)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
        rows = dict(zip(gates_of(lstm), lstm.bias_ih_l0.chunk(4), strict=True))
        rows["f"].fill_(30.0)
        rows["i"].fill_(-30.0)
        cell = torch.randn(1, 1, 5)
        _, (_, after) = lstm(torch.randn(1, 1, 3), (torch.zeros(1, 1, 5), cell))
    assert torch.allclose(after, cell)


def test_a_large_update_bias_keeps_the_hidden_state() -> None:
    gru = nn.GRU(3, 5)
    with torch.no_grad():
        rows = dict(zip(gates_of(gru), gru.bias_ih_l0.chunk(3), strict=True))
        rows["z"].fill_(30.0)
        hidden = torch.randn(1, 1, 5)
        _, after = gru(torch.randn(1, 1, 3), hidden)
    assert torch.allclose(after, hidden)
