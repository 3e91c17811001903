"""Random numbers as pure functions of (seed, problem, completion, token)."""

import hashlib

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Return an independent 63-bit seed per purpose, such as derive_seed(seed, "train", step)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def _wrap(x: int) -> int:
    """Return a Python integer as the int64 that tensor arithmetic would give."""
    return (x + 2**63) % 2**64 - 2**63


def _mix(x: Tensor) -> Tensor:
    """Apply the finaliser of splitmix64 on int64, whose overflow wraps.

    The mask makes >> a logical shift.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _wrap(factor)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(seed: int, rows: Tensor, t: int | Tensor) -> Tensor:
    """Return float64 uniforms in [0, 1), one for each row at position t, a number or one int64."""
    key = _mix(rows * _wrap(0x9E3779B97F4A7C15) + seed)
    key = _mix(key + (torch.as_tensor(t) + 1) * _wrap(0xD1B54A32D192ED03))
    return ((key >> 11) & ((1 << 53) - 1)).double() * 2.0**-53
