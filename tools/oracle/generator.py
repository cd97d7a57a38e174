"""Weights from a name and an integer recipe: what lets C++ rebuild the goldens' checkpoints without Python.

Every tensor is a pure function of (salt, tensor name, shape, rule set). tests/golden/generator.cc is the
same thing in C++; the SHA-256 sums in the golden manifests hold the two together.

  x0  = FNV-1a-32(salt + name)
  x   = x * 1664525 + 1013904223 mod 2^32                      one step per element, row-major
  u   = ((x >> 8) + 0.5) / 2^24 - 0.5                          exact in double
  w   = f32( mean + (amp * u) * tile(row, col) )               double until the last step
  tile(row, col) = 0.5 + 0.25 * ((3 * (row / 128) + 5 * (col / 128)) % 6)   matrices stored as FP8; else 1

The tile factor gives neighbouring scale tiles different scales: without it a wrong tile map would go unseen.
"""

import math

import numpy as np

FNV_OFFSET = 0x811C9DC5
FNV_PRIME = 0x01000193
LCG_A = 1664525
LCG_C = 1013904223
TILE = 128

# Modules that the published FP8 checkpoint stores as FP8 (model.md 1.2).
FP8_SUFFIXES = (
    "gate_proj.weight",
    "up_proj.weight",
    "down_proj.weight",
    "in_proj_qkvz.weight",
    "linear_attn.out_proj.weight",
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "o_proj.weight",
)


def fnv1a32(data: bytes) -> int:
    h = FNV_OFFSET
    for byte in data:
        h = ((h ^ byte) * FNV_PRIME) & 0xFFFFFFFF
    return h


def _jump_table(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A[i], C[i] with x_{i+1} = A[i] * x_0 + C[i] (mod 2^32), for i in 0..n-1; n a power of two."""
    a = np.array([LCG_A], dtype=np.uint32)
    c = np.array([LCG_C], dtype=np.uint32)
    while a.size < n:
        a, c = np.concatenate([a, a * a[-1]]), np.concatenate([c, a * c[-1] + c])
    return a, c


_BLOCK = 1 << 16
_A, _C = _jump_table(_BLOCK)


def uniform(seed: int, count: int) -> np.ndarray:
    """`count` doubles in (-0.5, 0.5)."""
    x = np.empty(count, dtype=np.uint32)
    state = np.uint32(seed)
    with np.errstate(over="ignore"):
        for begin in range(0, count, _BLOCK):
            n = min(_BLOCK, count - begin)
            x[begin : begin + n] = _A[:n] * state + _C[:n]
            state = x[begin + n - 1]
    return ((x >> np.uint32(8)).astype(np.float64) + 0.5) / 16777216.0 - 0.5


def is_fp8_module(name: str) -> bool:
    return name.endswith(FP8_SUFFIXES)


def mean_amp(name: str, shape: tuple[int, ...], rules: str) -> tuple[float, float]:
    """The distribution of a tensor. Rule set "appendix_a" is model.md's T0; "tiny" follows model.md 9.1 with
    uniform instead of normal distributions of the same spread; "tied" is "tiny" with small embeddings."""
    t0 = rules == "appendix_a"
    if name == "model.embed_tokens.weight":
        if rules == "tied":
            return 0.0, 3.5 / math.sqrt(shape[-1])
        return 0.0, 2.0 if t0 else 3.5
    if name.endswith("linear_attn.norm.weight"):
        return 1.0, 1.0
    if name.endswith("norm.weight"):  # layer norms, q_norm, k_norm, model.norm
        return 0.0, 1.0
    if name.endswith("A_log"):
        return (0.5, 2.0) if t0 else (0.75, 2.75)
    if name.endswith("dt_bias"):
        return 0.0, 2.0 if t0 else 4.0
    if name.endswith("conv1d.weight"):
        return 0.0, 1.5 if t0 else 1.4
    if name.endswith("mlp.gate.weight") and not t0:
        return 0.0, 10.5 / math.sqrt(shape[-1])
    return 0.0, (4.0 if t0 else 3.5) / math.sqrt(shape[-1])


def make_tensor(name: str, shape: tuple[int, ...], salt: str, rules: str) -> np.ndarray:
    """The fp32 values before any rounding to a storage type."""
    mean, amp = mean_amp(name, shape, rules)
    u = uniform(fnv1a32((salt + name).encode()), int(np.prod(shape)))
    u *= amp
    if rules != "appendix_a" and is_fp8_module(name):
        u = u.reshape(shape)
        rows = np.arange(shape[0], dtype=np.int64) // TILE
        cols = np.arange(shape[1], dtype=np.int64) // TILE
        u *= 0.5 + 0.25 * ((3 * rows[:, None] + 5 * cols[None, :]) % 6)
    return (mean + u).astype(np.float32).reshape(shape)


# --- storage types -----------------------------------------------------------------------------------


def to_bf16_bits(x: np.ndarray) -> np.ndarray:
    """fp32 -> bf16 bits, round to nearest even. No NaN handling: weights have none."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def from_bf16_bits(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_e4m3(x: np.ndarray) -> np.ndarray:
    """fp32 -> E4M3FN codes, round to nearest even, saturating at +-448 (model.md 4.4)."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    sign = ((bits >> np.uint32(24)) & np.uint32(0x80)).astype(np.uint8)
    mag = bits & np.uint32(0x7FFFFFFF)
    rounded = (mag + np.uint32(0x7FFFF) + ((mag >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
    normal = rounded.astype(np.int64) - ((127 - 7) << 3)
    small = np.rint(mag.view(np.float32) * np.float32(512.0)).astype(np.int64)  # subnormals step by 2^-9
    code = np.where(mag.view(np.float32) < np.float32(2.0**-6), small, normal)
    return np.minimum(code, 0x7E).astype(np.uint8) | sign


def e4m3_table() -> np.ndarray:
    table = np.empty(256, dtype=np.float32)
    for code in range(256):
        e, m = (code >> 3) & 15, code & 7
        value = m * 2.0**-9 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)
        table[code] = math.nan if code & 0x7F == 0x7F else (-value if code & 0x80 else value)
    return table


E4M3 = e4m3_table()


def _per_element(scales: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.repeat(np.repeat(scales, TILE, axis=0)[: shape[0]], TILE, axis=1)[:, : shape[1]]


def quantise(w: np.ndarray, scale_dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """model.md 4.4: codes uint8 [rows, cols] and fp32 scales [ceil(rows/128), ceil(cols/128)]; scales are
    rounded to bf16 first when they are stored so."""
    rows, cols = w.shape
    tr, tc = -(-rows // TILE), -(-cols // TILE)
    padded = np.zeros((tr * TILE, tc * TILE), dtype=np.float32)
    padded[:rows, :cols] = np.abs(w)
    amax = padded.reshape(tr, TILE, tc, TILE).max(axis=(1, 3))
    scales = amax / np.float32(448.0)
    if scale_dtype == "BF16":
        scales = from_bf16_bits(to_bf16_bits(scales))
    scales = np.where(amax == 0, np.float32(1.0), scales).astype(np.float32)
    return to_e4m3(w / _per_element(scales, w.shape)), scales


def dequantise(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return E4M3[codes] * _per_element(scales, codes.shape)


def self_check() -> None:
    """Golden T1 and the first numbers of T0 (model.md appendix A)."""
    assert fnv1a32(b"model.norm.weight") == 0xBE0496C4
    norm = make_tensor("model.norm.weight", (16,), "", "appendix_a")
    assert np.allclose(norm[:3], [-0.062977582, 0.458589584, 0.071294695], atol=1e-8)
    embed = make_tensor("model.embed_tokens.weight", (32, 16), "", "appendix_a")
    assert np.allclose(embed[1][:3], [0.457161248, 0.882500589, 0.746262014], atol=1e-7)
    assert [E4M3[c] for c in (0, 1, 7, 8, 0x38, 0x40, 0x7E, 0xB8, 0xFE)] == [
        0, 0.001953125, 0.013671875, 0.015625, 1, 2, 448, -1, -448]  # fmt: skip

    index = np.arange(256) // TILE
    u = uniform(fnv1a32(b"T1.weight"), 256 * 256).reshape(256, 256)
    w = (u * (1 + 3 * index[:, None] + 0.5 * index[None, :])).astype(np.float32)
    x = (2 * uniform(fnv1a32(b"T1.x"), 256)).astype(np.float32)
    codes, scales = quantise(w, "BF16")
    assert to_bf16_bits(scales).tolist() == [[0x3A92, 0x3ADB], [0x3B92, 0x3BA5]]
    assert codes[0, :8].tobytes().hex() == "f46b7bfbdbfd6a6c"
    assert codes[0, 128:132].tobytes().hex() == "ebe4f043"
    assert codes[200, :4].tobytes().hex() == "fefdeb73" and codes[200, 252:].tobytes().hex() == "7b78f966"
    assert fnv1a32(codes.tobytes()) == 0x52144293
    y = dequantise(codes, scales).astype(np.float64) @ x.astype(np.float64)
    expected = {0: -2.4976106, 1: 4.7608142, 127: -4.7416211, 128: 13.5171808, 200: 3.7567800, 255: -4.7714668}
    assert all(abs(y[i] - v) < 1e-6 for i, v in expected.items())


if __name__ == "__main__":
    self_check()
    print("generator: T1 and the start of T0 agree with model.md appendix A")
