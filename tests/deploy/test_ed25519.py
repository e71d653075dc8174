"""The device's verifier against RFC 8032, against the `cryptography` package, and against forgers."""

from __future__ import annotations

import hashlib
import os

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from edgeawq.deploy.receiver.ed25519 import (
    BASE,
    NEUTRAL,
    SQRT_MINUS_1,
    D,
    L,
    P,
    Point,
    add,
    decode_point,
    double,
    has_small_order,
    is_equal,
    is_public_key,
    multiply_two,
    negate,
    verify,
)

# RFC 8032, section 7.1: public key, message, signature.
RFC_8032 = {
    "TEST 1": (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "TEST 2": (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "TEST 3": (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "TEST SHA(abc)": (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        hashlib.sha512(b"abc").hexdigest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
}


def encode(point: Point) -> bytes:
    """The canonical encoding, written here a second time: the verifier only decodes."""
    x, y, z, _ = point
    inverse = pow(z, -1, P)
    return (y * inverse % P | (x * inverse % P & 1) << 255).to_bytes(32, "little")


def small_order_points() -> list[Point]:
    """All eight points whose order divides 8: multiples of one of order 8, whose y solves d·y⁴ + 2y² = 1 (mod p)."""
    point = decode_point(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"))
    assert point is not None
    found = [NEUTRAL]
    for _ in range(7):
        found.append(add(found[-1], point))
    assert is_equal(add(found[-1], point), NEUTRAL) and len({encode(entry) for entry in found}) == 8
    return found


@pytest.fixture
def signed() -> tuple[bytes, bytes, bytes]:
    """A fresh public key, message and signature."""
    private = Ed25519PrivateKey.generate()
    message = os.urandom(100)
    return private.public_key().public_bytes_raw(), message, private.sign(message)


def accepts(public: bytes, message: bytes, signature: bytes) -> bool:
    """What the reference implementation says."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def test_constants_are_those_of_the_curve() -> None:
    assert (D * 121666 + 121665) % P == 0 and SQRT_MINUS_1**2 % P == P - 1
    assert encode(BASE) == b"\x58" + b"\x66" * 31  # y = 4/5, x even
    x, y, _, _ = BASE
    assert (y * y - x * x - 1 - D * x * x * y * y) % P == 0
    assert is_equal(multiply_two(L, BASE, 0, BASE), NEUTRAL)
    assert not has_small_order(BASE)


@pytest.mark.parametrize("name", RFC_8032)
def test_vectors_of_the_rfc(name: str) -> None:
    public, message, signature = (bytes.fromhex(text) for text in RFC_8032[name])
    assert verify(public, message, signature)
    assert not verify(public, message + b"\0", signature)


@given(st.binary(max_size=2000), st.binary(min_size=32, max_size=32))
def test_accepts_what_the_reference_signs(message: bytes, seed: bytes) -> None:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = private.public_key().public_bytes_raw()
    signature = private.sign(message)
    assert is_public_key(public) and verify(public, message, signature)
    assert not verify(public, message + b"x", signature)


@given(st.integers(0, 511), st.data())
def test_every_flipped_bit_of_a_signature_is_seen(bit: int, data: st.DataObject) -> None:
    private = Ed25519PrivateKey.from_private_bytes(data.draw(st.binary(min_size=32, max_size=32)))
    signature = bytearray(private.sign(b"message"))
    signature[bit // 8] ^= 1 << bit % 8
    assert not verify(private.public_key().public_bytes_raw(), b"message", bytes(signature))


def test_every_flipped_bit_of_key_and_message_is_seen(signed: tuple[bytes, bytes, bytes]) -> None:
    public, message, signature = signed
    assert verify(public, message, signature)
    for bit in range(256):
        other = bytearray(public)
        other[bit // 8] ^= 1 << bit % 8
        assert not verify(bytes(other), message, signature), f"bit {bit} of the key"
    for bit in range(0, 800, 7):
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        assert not verify(public, bytes(changed), signature), f"bit {bit} of the message"


@given(st.binary(max_size=70), st.binary(max_size=20), st.binary(max_size=70))
def test_takes_anything_and_agrees_with_the_reference(public: bytes, message: bytes, signature: bytes) -> None:
    assert not verify(public, message, signature) or accepts(public, message, signature)


@given(st.binary(min_size=32, max_size=32))
def test_a_decoded_point_is_on_the_curve_and_has_one_encoding(data: bytes) -> None:
    point = decode_point(data)
    if point is None:
        return
    x, y, z, t = point
    assert z == 1 and t == x * y % P and (y * y - x * x - 1 - D * x * x * y * y) % P == 0
    assert encode(point) == data


def test_wrong_lengths_are_refused(signed: tuple[bytes, bytes, bytes]) -> None:
    public, message, signature = signed
    for key in (b"", public[:-1], public + b"\0"):
        assert not verify(key, message, signature) and not is_public_key(key)
    for wrong in (b"", signature[:-1], signature + b"\0", signature[:32]):
        assert not verify(public, message, wrong)


def test_a_signature_has_one_form(signed: tuple[bytes, bytes, bytes]) -> None:
    public, message, signature = signed
    s = int.from_bytes(signature[32:], "little")
    for multiple in range(1, 16):
        if s + multiple * L < 1 << 256:
            forged = signature[:32] + (s + multiple * L).to_bytes(32, "little")
            assert not verify(public, message, forged)
    assert not verify(public, message, signature[:32] + L.to_bytes(32, "little"))


def test_points_of_small_order_are_refused_as_key_and_as_r(signed: tuple[bytes, bytes, bytes]) -> None:
    public, message, signature = signed
    for point in small_order_points():
        encoded = encode(point)
        assert has_small_order(point) and not is_public_key(encoded)
        assert not verify(public, message, encoded + signature[32:])
        # With such a key and S = 0, R = −k·A: one "signature" for one message in eight without any private key.
        for r in small_order_points():
            forged = encode(r) + bytes(32)
            assert not any(verify(encoded, bytes([number]), forged) for number in range(8))


def test_a_key_of_small_order_cannot_be_used_by_everybody() -> None:
    # S·B − k·A = R holds for R = S·B wherever k·A = 0: no private key is needed for such a public one.
    for point in small_order_points():
        public, s = encode(point), int.from_bytes(os.urandom(31), "little")
        r = encode(multiply_two(s, BASE, 0, BASE))
        messages = [os.urandom(8) for _ in range(100)]
        scalars = [int.from_bytes(hashlib.sha512(r + public + m).digest(), "little") % L for m in messages]
        zeros = [is_equal(multiply_two(0, BASE, k, point), NEUTRAL) for k in scalars]
        fitting = [message for message, zero in zip(messages, zeros, strict=True) if zero]
        assert fitting  # in one of eight it holds
        assert not any(verify(public, message, r + s.to_bytes(32, "little")) for message in fitting)


def test_a_small_order_r_is_refused_where_the_equation_holds() -> None:
    # The owner of a key can choose R = 0 and S = k·a: the equation holds, and other verifiers differ over it.
    private = Ed25519PrivateKey.generate()
    digest = bytearray(hashlib.sha512(private.private_bytes_raw()).digest()[:32])
    digest[0] &= 248
    digest[31] = digest[31] & 63 | 64
    a = int.from_bytes(digest, "little")
    public, r = private.public_key().public_bytes_raw(), encode(NEUTRAL)
    k = int.from_bytes(hashlib.sha512(r + public + b"m").digest(), "little") % L
    s = k * a % L
    point = decode_point(public)
    assert point is not None and is_equal(multiply_two(s, BASE, k, negate(point)), NEUTRAL)
    assert not verify(public, b"m", r + s.to_bytes(32, "little"))


def test_a_key_with_a_part_of_small_order_does_not_verify_more_than_the_reference() -> None:
    for torsion in small_order_points()[1:]:
        private = Ed25519PrivateKey.generate()
        point = decode_point(private.public_key().public_bytes_raw())
        assert point is not None
        mixed = encode(add(point, torsion))
        for number in range(4):
            message = bytes([number])
            signature = private.sign(message)
            assert verify(mixed, message, signature) == accepts(mixed, message, signature)


@pytest.mark.parametrize("y", [P, P + 1, 2**255 - 1, P + 5])
@pytest.mark.parametrize("sign", [0, 1])
def test_encodings_that_are_not_canonical_are_refused(y: int, sign: int) -> None:
    assert decode_point((y | sign << 255).to_bytes(32, "little")) is None


def test_zero_has_no_sign() -> None:
    for y in (1, P - 1):  # both have x = 0
        assert decode_point(y.to_bytes(32, "little")) is not None
        assert decode_point((y | 1 << 255).to_bytes(32, "little")) is None


@given(st.integers(0, 2**256 - 1), st.integers(0, 2**256 - 1))
def test_two_multiplications_at_once_are_the_sum_of_two(m: int, n: int) -> None:
    other = double(double(BASE))
    apart = add(multiply_two(m, BASE, 0, BASE), multiply_two(0, BASE, n, other))
    assert is_equal(multiply_two(m, BASE, n, other), apart)
    assert is_equal(apart, multiply_two((m + 4 * n) % L, BASE, 0, BASE))
