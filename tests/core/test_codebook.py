"""The codebook against plain loops."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from densepath.core.codebook import Codebook
from densepath.core.errors import UserError


def unit(*shape, seed=0):
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(vectors, dim=-1)


@pytest.fixture
def book():
    book = Codebook(6, 3, momentum=0.9).double()
    book.codes.copy_(unit(6, 3, seed=1))
    book.begun = True
    return book


def test_a_code_names_the_nearest_vector(book):
    vectors = unit(2, 5, 3)
    expected = [[max(range(6), key=lambda k, v=v: float(v @ book.codes[k])) for v in row] for row in vectors]
    assert book(vectors).tolist() == expected
    assert torch.equal(book.look_up(book(vectors))[1, 2], book.codes[expected[1][2]])


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_codes_follow_the_means_of_their_vectors_and_unused_ones_stay(book, momentum):
    book.momentum = momentum
    vectors, codes = unit(7, 3), torch.tensor([0, 0, 3, 0, 3, 5, 3])
    before, usage = book.codes.clone(), torch.zeros(6, dtype=torch.float64)
    for _ in range(2):
        used = book.follow(vectors, codes, torch.rand(6))
        book.after_step()
        assert used == 3
        for k in range(6):
            mine = vectors[codes == k]
            usage[k] = momentum * usage[k] + (1 - momentum) * len(mine)
            if len(mine):
                mean = mine.sum(0) / mine.sum(0).norm()
                moved = momentum * before[k] + (1 - momentum) * mean
                before[k] = moved / moved.norm()
        torch.testing.assert_close(book.codes, before)
        torch.testing.assert_close(book.usage, usage)


def test_codes_that_are_hardly_used_restart_at_vectors_of_the_batch():
    """By a moving average that begins at the mean, and again at each restart; the vectors are those drawn."""
    book = Codebook(6, 3, momentum=0.6, restart_below=0.4).double()
    book.begin(unit(7, 3), torch.rand(7))
    twin = Codebook(6, 3, momentum=0.6).double()
    twin.load_state_dict({name: value for name, value in book.state_dict().items() if name != "credit"})
    credit, restarts = [7 / 6] * 6, []
    for step in range(6):
        vectors, codes = unit(7, 3, seed=step), torch.tensor([0, 0, 3, 0, 3, 5, 3])
        draws = torch.rand(6, generator=torch.Generator().manual_seed(step))
        twin.codes.copy_(book.codes)
        assert book.follow(vectors, codes, draws) == twin.follow(vectors, codes, draws) == 3
        book.after_step()
        twin.after_step()
        for k in range(6):
            credit[k] = 0.6 * credit[k] + 0.4 * int((codes == k).sum())
            if credit[k] < 0.4 * 7 / 6:
                credit[k] = 7 / 6
                restarts.append((step, k))
                assert torch.equal(book.codes[k], vectors[int(7 * draws[k])])
            else:
                assert torch.equal(book.codes[k], twin.codes[k])
    assert restarts == [(1, 1), (1, 2), (1, 4), (3, 1), (3, 2), (3, 4), (5, 1), (5, 2), (5, 4)]
    torch.testing.assert_close(book.usage, twin.usage)  # only of the vectors


def test_the_perplexity_of_codes_that_fell_to_one_is_one():
    book = Codebook(64, 8)
    book.begin(unit(300, 8).float(), torch.rand(300))
    for step in range(250):
        vectors = unit(300, 8).float() if step < 10 else unit(1, 8).float().expand(300, -1)
        book.follow(vectors, book(vectors), torch.rand(64))
        book.after_step()
    assert 1 <= book.perplexity() < 1.5


def test_codes_keep_up_with_vectors_that_move_away_together():
    """As an encoder's do when it learns what is common to its targets: without restarts one code is left."""
    draws = torch.rand(60, 16, generator=torch.Generator().manual_seed(0))
    used = {}
    for share in (0.0, 0.1):
        book = Codebook(16, 8, momentum=0.9, restart_below=share).double()
        book.begin(unit(200, 8), torch.rand(200, generator=torch.Generator().manual_seed(1)))
        for step in range(60):
            common = F.normalize(torch.ones(8, dtype=torch.float64), dim=0) * step / 4
            vectors = F.normalize(unit(200, 8, seed=step) + common, dim=1)
            used[share] = int(book.follow(vectors, book(vectors), draws[step]))
            book.after_step()
    assert used[0.0] < 6 and used[0.1] > 10


def test_the_perplexity_is_that_of_the_usage(book):
    assert book.perplexity() == 0  # not known yet
    book.usage.copy_(torch.tensor([5.0, 0, 5, 0, 5, 0]))
    assert book.perplexity() == pytest.approx(3)
    book.usage.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0]))
    assert book.perplexity() == pytest.approx(1)


def test_it_begins_with_centroids_by_cosine_distance():
    centres = F.normalize(torch.eye(4, dtype=torch.float64)[:, :3] + 0.1, dim=1)
    vectors = F.normalize(centres.repeat(20, 1) + 0.05 * unit(80, 3), dim=1)
    draws = torch.rand(80, generator=torch.Generator().manual_seed(4))
    books = [Codebook(4, 3).double() for _ in range(3)]
    for book, numbers in zip(books, (draws, draws, draws.flip(0)), strict=True):
        assert not book.begun
        book.begin(vectors, numbers)
        assert book.begun
    assert torch.equal(books[0].codes, books[1].codes)
    torch.testing.assert_close(books[0].codes.norm(dim=1), torch.ones(4, dtype=torch.float64))
    oracle = KMeans(4, init=books[0].codes.numpy(), n_init=1).fit(vectors.numpy())
    assert (oracle.labels_ == books[0](vectors).numpy()).all()
    found = books[0].codes @ F.normalize(torch.from_numpy(oracle.cluster_centers_), dim=1).T
    torch.testing.assert_close(found.diagonal(), torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)
    assert not torch.equal(books[0].codes, books[2].codes)


def test_that_it_has_begun_is_part_of_its_state(book):
    other = Codebook(6, 3).double()
    other.load_state_dict(book.state_dict())
    assert other.begun and torch.equal(other.codes, book.codes)


@pytest.mark.parametrize(("options", "message"), [((1, 3), "at least 2 codes"), ((6, 3, 1.5), "between 0 and 1")])
def test_wrong_numbers_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Codebook(*options)


@pytest.mark.parametrize("restart_below", [0.0, 0.4])
@pytest.mark.parametrize("first", [9, 8])  # vectors that the codes start from: of more than a batch, or of half a step
def test_batches_of_a_step_move_the_codes_as_one(restart_below, first):
    one, parts = (Codebook(6, 3, momentum=0.6, restart_below=restart_below).double() for _ in range(2))
    for book in (one, parts):
        book.begin(unit(first, 3), torch.arange(float(first)))
    for step in range(4):
        vectors, draws = unit(8, 3, seed=step), torch.rand(6, generator=torch.Generator().manual_seed(step))
        before, codes = parts.codes.clone(), one(vectors)
        one.follow(vectors, codes, draws)
        parts.follow(vectors[:4], codes[:4], draws)
        parts.follow(vectors[4:], codes[4:], draws + 9)  # those of the first batch count
        assert torch.equal(parts.codes, before)
        for book in (one, parts):
            book.after_step()
        assert not torch.equal(parts.codes, before)
        torch.testing.assert_close(parts.state_dict(), one.state_dict())


def test_the_first_step_restarts_no_code_however_many_batches_it_has():
    """Credits start at the mean of a whole step, not of its first batch."""
    book = Codebook(4, 3, momentum=0.99, restart_below=0.5).double()
    parts = unit(32, 3).split(8)
    book.begin(parts[0], torch.arange(8.0))
    for vectors in parts:
        book.follow(vectors, torch.arange(8) % 4, torch.rand(4))
    moved = Codebook(4, 3, momentum=0.99).double()
    moved.begin(parts[0], torch.arange(8.0))
    for vectors in parts:
        moved.follow(vectors, torch.arange(8) % 4, torch.empty(0))
    book.after_step()
    moved.after_step()
    torch.testing.assert_close(book.codes, moved.codes)
