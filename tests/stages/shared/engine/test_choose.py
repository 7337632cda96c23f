"""Choosing tokens: the published random numbers, the distribution, truncation, ties, and independence of the batch."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="generation needs torch")

from postmill.stages.shared.engine.choose import choose  # noqa: E402
from postmill.stages.shared.engine.live import Row  # noqa: E402
from postmill.stages.shared.engine.philox import philox, uniform  # noqa: E402
from postmill.stages.shared.engine.protocol import Sampling  # noqa: E402
from postmill.stages.shared.engine.stub import keep  # noqa: E402

FULL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of the authors' library, Random123 kat_vectors, philox4x32 10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((FULL,) * 4, (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_random_numbers(counter, key, expected):
    assert philox(counter, key) == expected


def test_uniform_numbers_are_spread_and_differ_by_seed_and_position():
    numbers = [uniform(seed, position) for seed in range(40) for position in range(40)]
    assert len(set(numbers)) == 1600
    assert all(0 <= number < 1 for number in numbers)
    assert sum(numbers) / 1600 == pytest.approx(0.5, abs=0.03)


def draw(logits, *, num=4000, **options):
    sampling = Sampling(max_new_tokens=1, **options)
    chosen = choose(torch.tensor(logits).expand(num, -1), [Row(sampling, seed) for seed in range(num)])
    ids = [token.id for token in chosen]
    return [ids.count(token) / num for token in range(len(logits))], chosen


def test_tokens_come_as_often_as_they_are_likely():
    shares, chosen = draw([0.0, 1.0, 2.0, -1.0])
    expected = torch.tensor([0.0, 1.0, 2.0, -1.0]).softmax(0).tolist()
    assert shares == pytest.approx(expected, abs=0.03)
    token = chosen[0]
    assert token.logp == token.raw_logp == pytest.approx(math.log(expected[token.id]), abs=1e-6)
    assert token.sampled_logp == pytest.approx(math.log(expected[token.id]), abs=1e-6)


def test_log_probs_are_those_at_the_temperature_before_and_after_truncation():
    logits = [0.0, 1.0, 2.0, -1.0]
    shares, chosen = draw(logits, temperature=0.5, top_k=2)
    tempered = (torch.tensor(logits) / 0.5).log_softmax(0).tolist()
    assert shares[0] == shares[3] == 0
    raw = torch.tensor(logits).log_softmax(0).tolist()
    for token in chosen[:50]:
        assert token.logp == pytest.approx(tempered[token.id], abs=1e-6)
        assert token.raw_logp == pytest.approx(raw[token.id], abs=1e-6)
        kept = math.log(math.exp(tempered[1]) + math.exp(tempered[2]))
        assert token.sampled_logp == pytest.approx(tempered[token.id] - kept, abs=1e-6)


def test_penalties_and_bias_are_openais_and_log_probs_stay_the_models():
    logits = [1.0, 2.0, 3.0, -1.0, 0.5]
    options = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 2.0, "bias": {4: 1.5}}
    sampling = Sampling(max_new_tokens=9, **options, top_logprobs=2)
    row = Row(sampling, 0, answer=[2, 2, 1], prompt=[3])
    # repetition first (a positive logit is divided, a negative one multiplied), then what each occurrence costs
    adjusted = [1.0, 2.0 / 2 - 0.75, 3.0 / 2 - 0.5 - 0.5, -2.0, 0.5 + 1.5]
    expected = torch.tensor(adjusted).log_softmax(0).tolist()
    raw = torch.tensor(logits).log_softmax(0).tolist()
    for seed in range(30):
        (token,) = choose(torch.tensor([logits]), [row._replace(seed=seed)])
        assert token.sampled_logp == pytest.approx(expected[token.id], abs=1e-6)
        assert token.raw_logp == token.logp == pytest.approx(raw[token.id], abs=1e-6)
        assert [word for word, _ in token.top] == [2, 1]
    (greedy,) = choose(torch.tensor([logits]), [Row(Sampling(max_new_tokens=1, temperature=0, bias={3: 100}), 0)])
    assert greedy.id == 3


def test_nothing_ends_an_answer_before_its_least_length():
    sampling = Sampling(max_new_tokens=9, min_new_tokens=2, temperature=0, stop_ids=frozenset({2}))
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    ids = [choose(logits, [Row(sampling, 0, answer=answer)])[0].id for answer in ([], [1], [1, 1])]
    assert ids == [1, 1, 2]


def test_top_p_keeps_a_token_while_those_before_it_hold_less():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert [share > 0 for share in draw(logits, top_p=0.5)[0]] == [True, False, False, False]
    assert [share > 0 for share in draw(logits, top_p=0.51)[0]] == [True, True, False, False]
    assert [share > 0 for share in draw(logits, top_p=1e-9)[0]] == [True, False, False, False]
    assert [share > 0 for share in draw(logits, min_p=0.5)[0]] == [True, True, False, False]


def test_of_equal_tokens_the_lower_ids_stay():
    shares, _ = draw([1.0, 1.0, 1.0, 1.0], top_k=2)
    assert shares[:2] == pytest.approx([0.5, 0.5], abs=0.03)
    assert shares[2:] == [0, 0]
    assert draw([0.0, 3.0, 3.0], temperature=0, num=1)[1][0].id == 1


def test_a_row_is_chosen_alone_as_among_others():
    make = torch.Generator().manual_seed(3)
    logits_BV = torch.randn(9, 50, generator=make)
    settings = [
        Sampling(max_new_tokens=1, temperature=0.8, top_p=0.9),
        Sampling(max_new_tokens=1),
        Sampling(max_new_tokens=1, temperature=0, top_logprobs=3),
    ]
    rows = [Row(settings[number % 3], 7 * number, position=5) for number in range(9)]
    together = choose(logits_BV, rows)
    for number in range(9):
        assert choose(logits_BV[number : number + 1], rows[number : number + 1]) == together[number : number + 1]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=1),
        Sampling(max_new_tokens=1, temperature=3.0),
        Sampling(max_new_tokens=1, temperature=3.0, top_p=0.9),
        Sampling(max_new_tokens=1, temperature=0.7, top_p=0.5),
        Sampling(max_new_tokens=1, temperature=2.0, min_p=0.02),
        Sampling(max_new_tokens=1, temperature=2.0, top_k=700, top_p=0.8),
    ],
)
def test_ordering_a_part_of_the_vocabulary_chooses_as_ordering_it_all(sampling):
    torch.manual_seed(3)
    logits_BV = 3 * torch.randn(40, 9001)
    logits_BV[:, 100:140] = logits_BV[:, 99:100]  # ties
    seeds = list(range(40))
    chosen = choose(logits_BV, [Row(sampling, seed, position=5) for seed in seeds])
    logp_BV = (logits_BV / sampling.temperature).log_softmax(-1)
    for row, seed in enumerate(seeds):
        logp = logp_BV[row].tolist()
        kept = keep(logp, sampling)
        shares = np.exp(np.array([logp[word] for word in kept]))
        at = int(np.searchsorted(shares.cumsum(), uniform(seed, 5) * shares.sum(), side="right"))
        assert chosen[row].id == kept[min(at, len(kept) - 1)]
        assert chosen[row].sampled_logp == pytest.approx(np.log(shares[at] / shares.sum()), abs=1e-6)
