"""Random numbers that are a function of (seed, position): Philox-4x32-10, one uniform a token.

A generator with state would make a token depend on how many numbers others drew. Source: Salmon et al., Parallel Random
Numbers: As Easy as 1, 2, 3, <https://doi.org/10.1145/2063384.2063405>; checked against the authors' test vectors.
"""

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four 32-bit numbers from a 128-bit counter and a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & _MASK, (left >> 32) ^ c3 ^ k1, left & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, for token `position` of a request with a 64-bit `seed`."""
    high, low, _, _ = philox((position, 0, 0, 0), (seed & _MASK, (seed >> 32) & _MASK))
    return ((high >> 5) * 67108864 + (low >> 6)) / 9007199254740992
