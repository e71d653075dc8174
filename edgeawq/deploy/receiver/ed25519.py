"""Ed25519 signatures, verification only, in pure Python (RFC 8032): a device has no cryptography package.

Nothing secret passes through here, so the time that it takes may depend on the data. It is stricter than RFC 8032
asks for: every encoding must be the canonical one, and points of small order are refused as public key and as R, so
that a signature has one form only and one key only. A verification takes a few milliseconds.
"""

from __future__ import annotations

import hashlib

KEY_BYTES = 32
SIGNATURE_BYTES = 64

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493  # the order of the base point
D = 37095705934669439343138083508754565189542113879843219016388785533085940283555
D2 = 2 * D % P
SQRT_MINUS_1 = 19681161376707505956807079304988542015446066515923890162744021073123829784752
BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
BASE_Y = 46316835694926478169428394003475163141307993866256225615783033603165251855960

# X, Y, Z, T with x = X/Z, y = Y/Z, x·y = T/Z, on −x² + y² = 1 + d·x²·y² (RFC 8032, section 5.1.4)
Point = tuple[int, int, int, int]

NEUTRAL: Point = (0, 1, 1, 0)
BASE: Point = (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return True when `signature` is the one that the owner of `public_key` made over `message`."""
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    s = int.from_bytes(signature[32:], "little")
    if s >= L:
        return False  # S + L would verify as well: one message, two signatures
    a = decode_point(public_key)
    r = decode_point(signature[:32])
    if a is None or r is None or has_small_order(a) or has_small_order(r):
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    k = int.from_bytes(digest, "little") % L
    # S·B = R + k·A, without the cofactor: S·B − k·A has to be R itself.
    return is_equal(multiply_two(s, BASE, k, negate(a)), r)


def is_public_key(data: bytes) -> bool:
    """Return True when `data` can be a public key: a canonical encoding of a point that is not of small order."""
    point = decode_point(data)
    return point is not None and not has_small_order(point)


def decode_point(data: bytes) -> Point | None:
    """Return the point that 32 bytes encode; None when there is none, or when it has another encoding as well."""
    if len(data) != KEY_BYTES:
        return None
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & ((1 << 255) - 1)
    if y >= P:
        return None
    # x² = u/v; the root is u·v³·(u·v⁷)^((p−5)/8), perhaps times √−1 (RFC 8032, section 5.1.3).
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    v3 = v * v % P * v % P
    x = u * v3 % P * pow(u * v3 % P * v3 % P * v % P, (P - 5) // 8, P) % P
    square = v * x % P * x % P
    if square == P - u:
        x = x * SQRT_MINUS_1 % P
    elif square != u:
        return None
    if x == 0 and sign:
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def has_small_order(point: Point) -> bool:
    """Return True for the eight points whose order divides 8."""
    return is_equal(double(double(double(point))), NEUTRAL)


def is_equal(left: Point, right: Point) -> bool:
    """Return True when two points are the same, whatever their Z."""
    x1, y1, z1, _ = left
    x2, y2, z2, _ = right
    return (x1 * z2 - x2 * z1) % P == 0 and (y1 * z2 - y2 * z1) % P == 0


def negate(point: Point) -> Point:
    """Return −point."""
    x, y, z, t = point
    return P - x, y, z, P - t


def add(left: Point, right: Point) -> Point:
    """Return left + right (RFC 8032, section 5.1.4)."""
    x1, y1, z1, t1 = left
    x2, y2, z2, t2 = right
    a = (y1 - x1) * (y2 - x2) % P
    b = (y1 + x1) * (y2 + x2) % P
    c = t1 * D2 % P * t2 % P
    d = 2 * z1 * z2 % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def double(point: Point) -> Point:
    """Return 2·point (RFC 8032, section 5.1.4)."""
    x, y, z, _ = point
    a = x * x % P
    b = y * y % P
    h = a + b
    e = h - (x + y) * (x + y) % P
    g = a - b
    f = 2 * z * z % P + g
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply_two(m: int, left: Point, n: int, right: Point) -> Point:
    """Return m·left + n·right, both scalars below 2²⁵⁶: four bits of both at a time, the doublings shared."""
    left_table, right_table = list_multiples(left), list_multiples(right)
    total = NEUTRAL
    for shift in range(252, -1, -4):
        if total is not NEUTRAL:
            total = double(double(double(double(total))))
        if digit := m >> shift & 15:
            total = add(total, left_table[digit])
        if digit := n >> shift & 15:
            total = add(total, right_table[digit])
    return total


def list_multiples(point: Point) -> list[Point]:
    """Return 0·point to 15·point."""
    table = [NEUTRAL, point]
    while len(table) < 16:
        table.append(add(table[-1], point))
    return table
