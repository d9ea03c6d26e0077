"""What each new row is made of: one token explained, all listed, frequent ones measured; drawn rows beside
them; two dimensions of the table."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.jobs.transplant_job import ROWS, transplant_rows, transplant_tokenizer
from regraft.jobs.transplant_sources import Sources, explain_token
from regraft.model.load import load
from regraft.specimens import almanac
from regraft.tokenizers.bits_per_byte import pieces, score
from regraft.tokenizers.control_rows import drawn
from regraft.tokenizers.init_methods import METHODS, InitSettings, estimate
from regraft.tokenizers.row_origins import FREQUENT, explained, token_number
from regraft.tokenizers.row_view import main_axes
from regraft.tokenizers.tokenizer_folder import wrapped, write_tokenizer
from regraft.tokenizers.training import Recipe, train_bpe
from regraft.tokenizers.transplantation import old_case

TEXT = pieces(["\n".join(almanac.corpus(40_000, 5))], 30)
ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


@pytest.fixture(scope="module")
def model():
    return load("specimen:qwen3", pack=False)


@pytest.fixture(scope="module")
def case(model):
    return old_case(model, wrapped(train_bpe(TEXT, Recipe(600, "superword")), ROLES), TEXT, None)


@pytest.fixture(scope="module")
def planted(model, case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    write_tokenizer(case.new.tokenizer, folder / "tokenizer")
    (folder / "text.txt").write_text(TEXT[0] + TEXT[1])
    sources = Sources(domains=(f"almanac={folder / 'text.txt'}",), pieces=4)
    data, _ = transplant_tokenizer(model, str(folder / "tokenizer"), folder / "model", None, sources)
    return data, folder


def several(case):
    """A new token of several pieces."""
    return next(n for n, ids in zip(case.matching.missing.tolist(), case.cuts, strict=True) if len(ids) > 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_token_alone_is_made_of_what_it_is_made_of_among_all(case, method):
    settings = InitSettings(method)
    whole = estimate(case, settings)
    for row in (0, len(case.matching.missing) // 2, len(case.matching.missing) - 1):
        data = explained(case, settings, f"#{case.matching.missing[row]}")
        wanted = whole.weights_NV[[row]].toarray()[0]
        found = np.zeros(len(wanted))
        found[data.part.values] = data.weight.values
        assert np.allclose(found, wanted, atol=1e-6)
        assert data.attrs["mean_share"] == whole.mean_N[row]
        assert (np.diff(np.abs(data.weight.values)) <= 0).all(), "the largest first"


def test_pieces_and_neighbours_by_hand(case):
    """TokenAdapt's formula, written out for one token."""
    number = several(case)
    data = explained(case, InitSettings("hybrid"), f"#{number}")
    rows = case.table_VD.detach().double()
    unit = rows / rows.norm(dim=1, keepdim=True)
    content = case.new.table.bytes_V[number]
    (ids,) = case.old.cut([content])
    lengths = torch.tensor([len(case.old.table.bytes_V[i]) for i in ids], dtype=torch.double)
    shares = lengths / lengths.sum()
    whole = (shares[:, None] * unit[ids]).sum(0)
    likeness = unit[ids] @ whole
    weights = ((likeness.softmax(0) + shares) / 2 / 0.3).softmax(0)
    known = torch.from_numpy(case.known)
    cosines = unit[known] @ whole / whole.norm()
    top = cosines.topk(3)
    beside = (top.values / 0.3).softmax(0)
    final = torch.zeros(len(rows), dtype=torch.double)
    for i, weight in zip(ids, weights, strict=True):
        final[i] += 0.7 * weight
    for i, weight in zip(known[top.indices].tolist(), beside, strict=True):
        final[i] += 0.3 * weight
    for part in data.part.values.tolist():
        one = data.sel(part=part)
        assert float(one.weight) == pytest.approx(float(final[part]), rel=1e-4)
        if part in ids:
            place = [n for n, i in enumerate(ids) if i == part]
            assert float(one.length_share) == pytest.approx(float(shares[place].sum()))
            assert float(one.likeness) == pytest.approx(float(likeness[place[0]]), rel=1e-4)
            assert float(one.piece_weight) == pytest.approx(float(weights[place].sum()), rel=1e-4)
        else:
            assert np.isnan([one.length_share, one.likeness, one.piece_weight]).all()
            assert float(one.neighbour_weight) > 0
            assert float(one.cosine) == pytest.approx(float(cosines[known == part]), rel=1e-4)
    assert float(final.numpy()[data.part.values].sum()) == pytest.approx(1)
    assert float(data.weight.sum()) == pytest.approx(1)


def test_a_token_is_found_by_text_name_and_number(case):
    number = several(case)
    text = case.new.table.bytes_V[number].decode()
    name = case.new.tokenizer.convert_ids_to_tokens(number)
    assert {token_number(case.new, asked) for asked in (text, name, f"#{number}")} == {number}
    with pytest.raises(ValueError, match=r"has no token 'zxqv', it cuts it into '.*', '.*': give one"):
        token_number(case.new, "zxqv")
    with pytest.raises(ValueError, match="there is no id 600: the new tokenizer's go up to 599"):
        token_number(case.new, "#600")
    taken = int(np.flatnonzero(case.matching.source_V >= 0)[-1])
    data = explained(case, InitSettings(), f"#{taken}")
    assert (data.attrs["made"], data.part.values.tolist()) == ("taken over", [case.matching.source_V[taken]])
    assert explained(case, InitSettings("gaussian"), f"#{number}").attrs["made"] == "drawn"


def test_the_list_makes_the_tables_again(planted, model):
    """Every row of the written model is the sum that its line says."""
    data, folder = planted
    table_VD = load(folder / "model", pack=False).parts.embedding.weight.detach().float()
    old_VD = model.parts.embedding.weight.detach().double()
    lines = [json.loads(line) for line in (folder / "model" / ROWS).read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(600))
    kinds = [line["made"] for line in lines]
    assert kinds.count("taken over") == int(data.taken_over)
    assert kinds.count("estimated") == int(data.estimated)
    for line in lines:
        if "old" not in line:
            assert line["made"] == "mean row"
            continue
        made_D = sum(weight * old_VD[i] for i, _, weight in line["old"])
        assert torch.allclose(made_D.float(), table_VD[line["id"]], atol=0.01 * float(old_VD.abs().max()))


def test_frequent_tokens_say_what_they_are_made_of(planted, case):
    data, folder = planted
    read = pieces([(folder / "text.txt").read_text()], 4)
    counts = np.bincount(np.concatenate(case.new.encode_texts(read)), minlength=600)[case.matching.missing]
    assert data.sizes["made"] <= FREQUENT
    assert sorted(data.made_count.values, reverse=True) == data.made_count.values.tolist()
    assert data.made_count.values.tolist() == sorted(counts[counts > 0].tolist(), reverse=True)[:FREQUENT]
    assert (data.made_weight.sum("largest") <= 1 + 1e-9).all()
    place = case.contents.index(str(data.made_token.values[0]).encode())
    mixed = estimate(case, InitSettings())
    assert float(data.made_weight[0, 0]) == pytest.approx(mixed.weights_NV[[place]].max())


def test_drawn_rows_are_distributed_as_they_say():
    torch.manual_seed(1)
    table = (
        torch.randn(400, 4) @ torch.tensor([[2.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0.1, 0], [0, 3, 0, 1]]) + 5
    )
    made = drawn("gaussian", 40_000, 0.02, 3)
    rows = made.rows(table, table.mean(0))
    assert torch.allclose(rows.mean(0), table.mean(0), atol=0.1)
    assert torch.allclose(torch.cov(rows.T), torch.cov(table.T), atol=0.05 * float(torch.cov(table.T).max()))
    assert not torch.equal(rows, made.rows(table, table.mean(0))), "another table is another draw"
    assert torch.equal(rows, drawn("gaussian", 40_000, 0.02, 3).rows(table, table.mean(0)))
    even = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    nudge = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn_rows = drawn("gaussian", 50, 0.02, 3).rows(even, even.mean(0))
    nudged = drawn("gaussian", 50, 0.02, 3).rows(even + 1e-9 * nudge, even.mean(0))
    assert torch.allclose(drawn_rows, nudged, atol=1e-6), "axes as long as each other may turn, rows may not"
    plain = drawn("random", 40_000, 0.5, 3).rows(table, table.mean(0))
    assert float(plain.std()) == pytest.approx(0.5, rel=0.02)
    assert float(plain.mean()) == pytest.approx(0, abs=0.02)


def test_controls_are_transplants_of_their_own(planted, model, tmp_path):
    """The certificate's control is what the method `gaussian` itself would give; a control has none."""
    data, folder = planted
    sources = Sources(domains=(f"almanac={folder / 'text.txt'}",), pieces=4)
    own, _ = transplant_tokenizer(
        model, str(folder / "tokenizer"), tmp_path / "drawn", InitSettings("gaussian"), sources
    )
    stated = data.bits_per_byte_control.sel(control="gaussian").values
    near = 2 * model.rounding * model.check.largest / np.log(2)
    assert stated == pytest.approx(own.bits_per_byte.sel(state="after").values, abs=near)
    assert "bits_per_byte_control" not in own
    assert float(data.bits_per_byte[1, 0]) < float(data.bits_per_byte_control.min()), "the method knows more"
    assert any("controls: " in line and "with gaussian rows" in line for line in transplant_rows(data))


def test_perplexity_is_that_of_each_states_own_tokens(planted, model, case):
    data, folder = planted
    text = [(folder / "text.txt").read_text()]
    before = score(model, case.old, pieces(text, 4))
    assert before.perplexity == pytest.approx(np.exp(before.nats / before.tokens))
    assert float(data.perplexity[0, 0]) == pytest.approx(before.perplexity, rel=1e-4)
    assert float(data.perplexity_ratio[0]) == pytest.approx(
        float(data.perplexity[1, 0] / data.perplexity[0, 0])
    )


def test_the_view_is_the_old_tables_two_main_directions(planted, model):
    data, _ = planted
    rows = model.parts.embedding.weight.detach().float()
    centred = (rows - rows.mean(0)).double()
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    _, found, share = main_axes(rows)
    assert (axes[:2] @ found.double()).abs().diagonal().numpy() == pytest.approx([1, 1], abs=1e-5)
    assert share.numpy() == pytest.approx((sizes[:2] ** 2 / (sizes**2).sum()).numpy(), rel=1e-5)
    assert (found[found.abs().argmax(0), torch.arange(2)] > 0).all()
    assert data.view_share.values == pytest.approx(share.numpy(), rel=1e-4)
    assert float(data.row_norm[1]) < float(data.row_norm[0]), "means of rows are shorter"
    assert set(data.view_kind.values) == {"taken over", "estimated"}


def test_an_explanation_writes_nothing_and_needs_no_target(planted, tmp_path, monkeypatch, case):
    _, folder = planted
    monkeypatch.chdir(tmp_path)
    number = several(case)
    words = ["tokenizer", "transplant", "--tokenizer", str(folder / "tokenizer"), "--encoder", "none"]
    result = CliRunner().invoke(app, [*words, "--save", str(folder / "model"), "--explain", f"#{number}"])
    assert result.exit_code == 0, result.output
    assert f"(id {number} of the new tokenizer) is estimated by hybrid: 0.7 of its pieces" in result.output
    assert "share of length" in result.output
    assert not list(tmp_path.iterdir())
    wrong = CliRunner().invoke(app, [*words, "--explain", "zxqv"])
    assert wrong.exit_code == 2
    assert "has no token 'zxqv'" in " ".join(wrong.output.split())


def test_explained_from_python_says_where_it_is_from(planted, model, case):
    _, folder = planted
    data = explain_token(model, str(folder / "tokenizer"), f"#{several(case)}")
    assert data.attrs["weights_sha256"] == model.weights_sha256
    assert data.attrs["encoder"] == "none: the model's own rows"
    with pytest.raises(ValueError, match="--donor serves --method pursuit alone"):
        explain_token(model, str(folder / "tokenizer"), "#5", None, Sources(donor="specimen:qwen3"))
