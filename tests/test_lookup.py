"""The nearest entry: the very nearest, whatever rounding says, and never of a codebook that is no more."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from mimi_bridge import nearest_on_cpu
from mimi_bridge.lookup import NUM_PARTS, LookupTable, nearest_entries, nearest_like_transformers

SIZE, DIM = 64, 32


@pytest.fixture
def codebook() -> Tensor:
    return torch.randn(SIZE, DIM, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vectors() -> Tensor:
    """More than two blocks of them."""
    return torch.randn(1, 300, DIM, generator=torch.Generator().manual_seed(1))


def nearest_in_double(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The slow way: every distance, in float64, the first of several that are nearest."""
    difference = vectors.double()[..., None, :] - codebook.double()
    return difference.square().sum(dim=-1).min(dim=-1).indices


@pytest.mark.parametrize("search", [nearest_entries, nearest_like_transformers, LookupTable().nearest])
def test_nearest_entry_is_chosen_by_eye(search):
    codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    vectors = torch.tensor([[[0.4, 0.0], [0.6, 0.0]], [[0.0, 9.0], [-3.0, 0.0]]])
    assert search(vectors, codebook).tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize("size", [SIZE, 2 * nearest_on_cpu.GROUP, 5 * nearest_on_cpu.GROUP + 3])
def test_codes_equal_a_search_in_float64_and_transformers_own(vectors, size):
    codebook = torch.randn(size, DIM)
    codes = nearest_entries(vectors, codebook)
    assert codes.unique().numel() > min(size, 200) // 2
    assert torch.equal(codes, nearest_in_double(vectors, codebook))
    assert torch.equal(codes, nearest_like_transformers(vectors, codebook))


def test_vectors_between_two_entries_get_the_nearer_one_where_float32_cannot_tell(codebook):
    codebook = codebook + 100.0  # far from the origin float32 has few digits left for the difference
    generator = torch.Generator().manual_seed(2)
    first, second = (codebook[torch.randint(SIZE, (400,), generator=generator)] for _ in range(2))
    between = torch.lerp(first, second, 0.5 + 1e-6 * torch.randn(400, 1, generator=generator))
    expected = nearest_in_double(between, codebook)
    in_float32 = torch.addmm(codebook.square().sum(dim=-1) / 2, between, codebook.T, alpha=-1).argmin(dim=-1)
    assert (in_float32 != expected).any()
    assert torch.equal(nearest_entries(between, codebook), expected)
    assert torch.equal(LookupTable().nearest(between, codebook), expected)
    assert torch.equal(torch.cat([nearest_entries(vector, codebook) for vector in between.split(1)]), expected)


def test_the_first_of_equal_entries_is_chosen(codebook, vectors):
    doubled = torch.cat([codebook, codebook])
    assert torch.equal(nearest_entries(vectors, doubled), nearest_entries(vectors, codebook))
    assert nearest_entries(vectors, torch.zeros(SIZE, DIM)).unique().tolist() == [0]


def test_a_vector_s_code_does_not_depend_on_what_stands_beside_it(codebook, vectors):
    together = nearest_entries(vectors, codebook)
    alone = [nearest_entries(vector, codebook) for vector in vectors.split(1, dim=1)]
    assert torch.equal(torch.cat(alone, dim=1), together)


def test_nan_gives_a_code_in_range_and_harms_no_other_vector(codebook, vectors):
    expected = nearest_entries(vectors, codebook)
    vectors[0, 7] = torch.nan
    codes = nearest_entries(vectors, codebook)
    assert 0 <= codes[0, 7] < SIZE
    codes[0, 7] = expected[0, 7]
    assert torch.equal(codes, expected)


def test_search_is_in_float32_where_vectors_and_codebook_are_not(vectors):
    codebook = torch.tensor([[1.003] * DIM, [1.001] * DIM])
    assert nearest_entries(torch.ones(1, 1, DIM, dtype=torch.bfloat16), codebook).item() == 1
    half = torch.randn(SIZE, DIM).bfloat16()
    assert torch.equal(LookupTable().nearest(vectors, half), nearest_in_double(vectors, half.float()))


@pytest.mark.parametrize("num_rows", [1, nearest_on_cpu.FEW, 50])
@pytest.mark.parametrize("size", [1, 9, nearest_on_cpu.GROUP, 3 * nearest_on_cpu.GROUP])
def test_least_two_are_the_first_two_of_the_sorted_row(num_rows, size):
    scores = torch.randn(num_rows, size)
    values, indices = torch.cat([scores, torch.full((num_rows, 1), torch.inf)], dim=1).sort(dim=-1)
    least, index, second = nearest_on_cpu._least_two(scores.clone())
    assert torch.equal(torch.cat([least, second], dim=1), values[:, :2])
    assert torch.equal(index, indices[:, :1])


# --- the shortlist of a product in bfloat16 ---


@pytest.fixture(params=[True, False], ids=["fast bfloat16", "slow bfloat16"])
def many_entries(request, monkeypatch) -> Tensor:
    """A codebook with so many entries that shortlists are made, and whether the processor is good at it."""
    monkeypatch.setattr(nearest_on_cpu, "HAS_FAST_BFLOAT16", request.param)
    return torch.randn(4 * nearest_on_cpu.GROUP, DIM, generator=torch.Generator().manual_seed(3))


def shortlisted(vectors: Tensor, codebook: Tensor) -> Tensor | None:
    return nearest_on_cpu._nearest_of_shortlist(vectors[0], nearest_on_cpu.EntryTable.of(codebook))


def test_codes_from_a_shortlist_are_those_of_a_search_in_float64(vectors, many_entries):
    expected = nearest_in_double(vectors, many_entries)
    in_bfloat16 = (vectors[0].bfloat16() @ many_entries.bfloat16().T).float() - many_entries.square().sum(dim=-1) / 2
    assert (in_bfloat16.argmax(dim=-1) != expected[0]).any()
    assert torch.equal(nearest_entries(vectors, many_entries), expected)
    assert torch.equal(LookupTable().nearest(vectors, many_entries), expected)
    assert torch.equal(shortlisted(vectors, many_entries), expected[0])


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_a_shortlist_holds_the_nearest_of_two_entries_that_bfloat16_cannot_tell(many_entries, length):
    generator = torch.Generator().manual_seed(4)
    first, second = (many_entries[torch.randint(len(many_entries), (300,), generator=generator)] for _ in range(2))
    between = length * torch.lerp(first, second, 0.5 + 1e-3 * torch.randn(300, 1, generator=generator))[None]
    codebook = length * many_entries + 3 * length  # far from the origin
    assert torch.equal(nearest_entries(between, codebook), nearest_in_double(between, codebook))


def test_the_first_of_equal_entries_of_a_shortlist_is_chosen(vectors, many_entries):
    doubled = torch.cat([many_entries, many_entries])
    assert torch.equal(nearest_entries(vectors, doubled), nearest_entries(vectors, many_entries))
    assert torch.equal(shortlisted(vectors, doubled), nearest_in_double(vectors, many_entries)[0])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_vector_that_is_not_finite_has_no_shortlist_and_harms_no_other(vectors, many_entries, broken):
    expected = nearest_entries(vectors, many_entries)
    vectors[0, 7] = broken
    assert shortlisted(vectors, many_entries) is None
    codes = nearest_entries(vectors, many_entries)
    assert 0 <= codes[0, 7] < len(many_entries)
    codes[0, 7] = expected[0, 7]
    assert torch.equal(codes, expected)


def test_entries_that_are_nearly_all_the_same_have_no_shortlist(vectors, many_entries):
    codebook = 100.0 + 1e-3 * many_entries
    assert shortlisted(vectors, codebook) is None
    assert torch.equal(nearest_entries(vectors, codebook), nearest_in_double(vectors, codebook))


# --- what is kept of a codebook ---


def test_a_table_is_made_once_for_a_codebook_that_stays(codebook, vectors, monkeypatch):
    made = []
    make = nearest_on_cpu.EntryTable.of
    monkeypatch.setattr(
        nearest_on_cpu.EntryTable, "of", lambda *given, **options: made.append(1) or make(*given, **options)
    )
    table = LookupTable()
    for _ in range(3):
        table.nearest(vectors, codebook[:])  # a view of the same memory
    assert len(made) == 1


def add_in_place(module: nn.Module) -> None:
    module.entries.add_(1.0)


def write_one_entry(module: nn.Module) -> None:
    module.entries[3] = 0.0


def load(module: nn.Module) -> None:
    module.load_state_dict({"entries": module.entries.flip(0)})


def replace(module: nn.Module) -> None:
    module.entries = module.entries.flip(0)


def move_there_and_back(module: nn.Module) -> None:
    module.to(torch.bfloat16).to(torch.float32)


def replace_and_free(module: nn.Module) -> None:
    del module.entries  # were its memory free now, the next tensor of its size would get it
    module.register_buffer("entries", torch.randn(SIZE, DIM))


@pytest.mark.parametrize(
    "change", [add_in_place, write_one_entry, load, replace, move_there_and_back, replace_and_free]
)
def test_a_changed_codebook_is_looked_up_as_it_is_now(codebook, vectors, change):
    module, table = nn.Module(), LookupTable()
    module.register_buffer("entries", codebook)
    del codebook
    before = table.nearest(vectors, module.entries)
    change(module)
    after = table.nearest(vectors, module.entries)
    assert torch.equal(after, nearest_in_double(vectors, module.entries))
    assert change is move_there_and_back or not torch.equal(after, before)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
def test_a_step_of_an_optimizer_is_seen(codebook, vectors, options):
    entries, table = nn.Parameter(codebook), LookupTable()
    table.nearest(vectors, entries)
    optimizer = torch.optim.AdamW([entries], lr=1.0, **options)
    for _ in range(2):
        entries.square().sum().backward()
        optimizer.step()
        assert torch.equal(table.nearest(vectors, entries), nearest_in_double(vectors, entries.detach()))


def test_a_copy_keeps_nothing_of_the_original_s_codebook(codebook, vectors):
    module = nn.Module()
    module.register_buffer("entries", codebook)
    module.table = LookupTable()
    module.table.nearest(vectors, module.entries)
    copied = deepcopy(module)
    for _ in range(3):
        copied.entries.neg_()
        codes = copied.table.nearest(vectors, copied.entries)
        assert torch.equal(codes, nearest_in_double(vectors, copied.entries))


def test_a_write_through_data_is_seen_by_the_first_value_of_an_entry_else_after_forget(codebook, vectors):
    table = LookupTable()
    table.nearest(vectors, codebook)
    codebook.data[7] = 0.0
    assert torch.equal(table.nearest(vectors, codebook), nearest_in_double(vectors, codebook))
    codebook.data[:, 1:].neg_()
    table.forget()
    assert torch.equal(table.nearest(vectors, codebook), nearest_in_double(vectors, codebook))


def test_single_vectors_see_a_write_through_data_within_a_few_calls(codebook, vectors):
    table, one = LookupTable(), vectors[:, :1]
    before = table.nearest(one, codebook)
    codebook.data[:, 0] += 100.0 * (torch.arange(SIZE) == before[0])  # its entry alone is moved out of the way
    codes = [table.nearest(one, codebook) for _ in range(NUM_PARTS)]
    assert torch.equal(codes[-1], nearest_in_double(one, codebook))
    assert not torch.equal(codes[-1], before)


def test_a_codebook_made_in_inference_mode_is_looked_up_as_it_is_now(vectors):
    table = LookupTable()
    with torch.inference_mode():
        codebook = torch.randn(SIZE, DIM)
        for _ in range(2):
            codebook.neg_()  # PyTorch counts no writes here
            assert torch.equal(table.nearest(vectors, codebook), nearest_in_double(vectors, codebook))


def test_exported_lookup_gives_the_same_codes(codebook, vectors):
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("entries", codebook)
            self.table = LookupTable()

        def forward(self, vectors: Tensor) -> Tensor:
            return self.table.nearest(vectors, self.entries)

    exported = torch.export.export(Lookup(), (vectors,)).module()
    assert torch.equal(exported(vectors), nearest_entries(vectors, codebook))
