"""The compiled loops against plain numpy: every bit pattern, every layout, any number of rows and of threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from weightkit.dtypes import DTYPES, Array
from weightkit.errors import EngineError
from weightkit.kernels import Matrix, multiply, tiled
from weightkit.parallel import processors
from weightkit.threads import WORTH_SHARING, Crew, by_rows, crew, one_blas_thread, set_threads

random = np.random.default_rng(0)
PLAIN = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
BLOCKED = ("Q8_0", "Q4_0")


needs_tiles = pytest.mark.skipif(not tiled(), reason="BLAS multiplies many vectors on this processor")


@pytest.fixture
def resized() -> Iterator[Crew]:
    size = crew.size
    yield crew
    crew.resize(size)


def stored(kind: str, rows: int, width: int) -> tuple[Array, Array]:
    """Random weights: as a file has them, and as numbers."""
    values = random.standard_normal((rows, width)).astype(np.float32)
    if kind in BLOCKED:
        made = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
        return made, gguf.dequantize(made, gguf.GGMLQuantizationType[kind])
    bits = DTYPES[kind].encode(values.astype(np.float64))
    return bits, DTYPES[kind].decode(bits)


def x_of(rows: int, width: int) -> NDArray[np.float32]:
    return random.standard_normal((rows, width)).astype(np.float32)


def linear(w: Matrix, x: Array) -> Array:  # [r, in] -> [r, out]
    return multiply(x, [w])[0]


@pytest.mark.parametrize("kind", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_every_bit_pattern_is_widened_to_its_number(kind: str) -> None:
    bits = np.arange(1 << DTYPES[kind].bits).astype(f"<u{DTYPES[kind].bits // 8}").view(DTYPES[kind].stored)
    expected = DTYPES[kind].decode(bits)
    for cut in (0, 3):  # also past the last whole vector
        got = Matrix(kind, bits[None, cut:]).widened(0, 1)[0]
        np.testing.assert_array_equal(got, expected[cut:])
        np.testing.assert_array_equal(np.signbit(got), np.signbit(expected[cut:]))


def test_float16_is_widened_by_hand_where_the_machine_cannot() -> None:
    code = """
import numpy as np, weightkit.compiled.numbers as numbers
numbers._has_half = lambda: False
from weightkit.kernels import Matrix
bits = np.arange(1 << 16).astype("<u2").view("<f2")
np.testing.assert_array_equal(Matrix("F16", bits[None]).widened(0, 1)[0], bits.astype(np.float32))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", BLOCKED)
def test_blocks_are_widened_as_gguf_does(kind: str) -> None:
    raw, values = stored(kind, 5, 96)
    np.testing.assert_array_equal(Matrix(kind, raw).widened(1, 4), values[1:4])


@pytest.mark.parametrize("kind", PLAIN + BLOCKED)
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_rows_times_vectors(kind: str, rows: int) -> None:
    raw, values = stored(kind, 300, 160 if kind in BLOCKED else 171)
    x = x_of(rows, values.shape[1])
    exact = x.astype(np.float64) @ values.astype(np.float64).T
    size = np.abs(x).astype(np.float64) @ np.abs(values).astype(np.float64).T
    assert (np.abs(linear(Matrix(kind, raw), x) - exact) <= 1e-6 * size).all()


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("rows", [1, 3])
def test_transposed_matrices(kind: str, rows: int) -> None:
    raw, values = stored(kind, 171, 301)
    x, w = x_of(rows, 171), Matrix(kind, raw, transposed=True)
    exact = x.astype(np.float64) @ values.astype(np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(values).astype(np.float64)
    assert (np.abs(linear(w, x) - exact) <= 1e-6 * size).all()
    np.testing.assert_array_equal(w.widened(7, 90), values[:, 7:90].T)


@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
def test_runs_of_rows_of_a_fused_tensor(kind: str) -> None:
    raw, values = stored(kind, 24, 64)
    part = raw.reshape(4, 6, -1)[:, 2:4]
    w, expected = Matrix(kind, part), values.reshape(4, 6, -1)[:, 2:4].reshape(8, -1)
    np.testing.assert_array_equal(w.widened(1, 8), expected[1:8])
    np.testing.assert_allclose(linear(w, x := x_of(2, 64)), x @ expected.T, rtol=1e-4, atol=1e-5)


def test_the_same_numbers_give_the_same_result_in_any_type() -> None:
    raw, values = stored("BF16", 100, 333)
    x = x_of(3, 333)
    np.testing.assert_array_equal(linear(Matrix("BF16", raw), x), linear(Matrix("F32", values), x))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_depends_on_no_other_row_and_not_on_threads(resized: Crew, transposed: bool) -> None:
    raw, _ = stored("BF16", 640, 640)
    w, x = Matrix("BF16", raw, transposed=transposed), x_of(5, 640)
    together = linear(w, x)
    for count in (1, 2, 3):
        resized.resize(count)
        np.testing.assert_array_equal(np.concatenate([linear(w, row[None]) for row in x]), together)


MANY = [25, 33, 100]  # rows of x: more than FEW; a panel and some of the next


@needs_tiles
@pytest.mark.parametrize("kind", PLAIN + BLOCKED)
@pytest.mark.parametrize("rows", MANY)
@pytest.mark.parametrize("width", [160, 1056])  # also more than a chunk
def test_rows_times_many_vectors(kind: str, rows: int, width: int) -> None:
    raw, values = stored(kind, 110, width if kind in BLOCKED else width + 11)
    x = x_of(rows, values.shape[1])
    exact = x.astype(np.float64) @ values.astype(np.float64).T
    size = np.abs(x).astype(np.float64) @ np.abs(values).astype(np.float64).T
    assert (np.abs(linear(Matrix(kind, raw), x) - exact) <= 1e-6 * size).all()


@needs_tiles
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("rows", MANY)
def test_transposed_matrices_times_many_vectors(kind: str, rows: int) -> None:
    raw, values = stored(kind, 597, 301)
    x = x_of(rows, 597)
    as_they_lie = linear(Matrix("F32", np.ascontiguousarray(values.T)), x)
    np.testing.assert_array_equal(linear(Matrix(kind, raw, transposed=True), x), as_they_lie)


@needs_tiles
@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
def test_runs_of_rows_times_many_vectors(kind: str) -> None:
    raw, values = stored(kind, 24, 64)
    w, expected = Matrix(kind, raw.reshape(4, 6, -1)[:, 2:4]), values.reshape(4, 6, -1)[:, 2:4].reshape(8, -1)
    np.testing.assert_array_equal(linear(w, x := x_of(40, 64)), linear(Matrix("F32", expected), x))


@needs_tiles
def test_many_vectors_depend_on_no_other_and_not_on_threads(resized: Crew) -> None:
    raw, _ = stored("BF16", 640, 640)
    w, x = Matrix("BF16", raw), x_of(100, 640)
    together = multiply(x, [w, w, w])
    for count in (1, 2, 3):
        resized.resize(count)
        for found in multiply(np.concatenate([x_of(3, 640), x]), [w, w, w]):
            np.testing.assert_array_equal(found[3:], together[0])


@needs_tiles
def test_what_a_tile_has_no_room_for_does_not_matter() -> None:
    """NaN beside what is wanted, and before what is made, goes nowhere."""
    raw, values = stored("F32", 7, 5)
    x = x_of(26, 5)
    for _ in range(3):
        multiply(np.full((100, 700), np.nan, np.float32), [Matrix("F32", np.full((96, 700), np.nan, np.float32))])
        np.testing.assert_allclose(linear(Matrix("F32", raw), x), x @ values.T, rtol=1e-4, atol=1e-5)


def test_many_jobs_of_many_threads_at_once(resized: Crew) -> None:
    from concurrent.futures import ThreadPoolExecutor

    resized.resize(3)
    jobs = [(Matrix("F32", x_of(rows, 257)), x_of(2, 257)) for rows in range(1, 400, 13)]
    expected = [linear(w, x) for w, x in jobs]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(20):
            for got, right in zip(pool.map(lambda job: linear(job[0], job[1]), jobs), expected, strict=True):
                np.testing.assert_array_equal(got, right)


def test_blas_is_limited_until_the_last_thread_is_out() -> None:
    def threads() -> list[int]:
        return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]

    before = threads()
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(threads()) == {1}
    second.__exit__(None, None, None)
    assert threads() == before


@pytest.mark.parametrize("count", [0, -3, 1.5, "2", True])
def test_numbers_of_threads_that_are_none(count: Any) -> None:
    with pytest.raises(EngineError, match="a whole number from 1"):
        set_threads(count)


def test_many_threads_are_not_hired(resized: Crew) -> None:
    set_threads(10_000)
    assert resized.size <= 4 * processors()


def test_the_crew_maps_with_any_number_of_threads(resized: Crew) -> None:
    for count in (1, 3):
        resized.resize(count)
        done: list[int] = []
        resized.map(done.append, range(20), work=WORTH_SHARING)
        assert sorted(done) == list(range(20))


def test_what_is_little_work_stays_with_who_asks(resized: Crew) -> None:
    resized.resize(3)
    threads: set[int] = set()
    resized.map(lambda _: threads.add(threading.get_ident()), range(20), work=WORTH_SHARING - 1)
    assert threads == {threading.get_ident()}


def test_what_numpy_does_not_warn_of_here_it_does_not_in_other_threads(resized: Crew) -> None:
    resized.resize(2)
    with np.errstate(over="ignore"):
        resized.map(lambda x: np.exp(x), [np.full(9, 1e3, np.float32)] * 4, work=WORTH_SHARING)


@pytest.mark.parametrize("rows", [1, 300])
def test_rows_shared_out_are_the_same(resized: Crew, rows: int) -> None:
    resized.resize(2)
    x, y = random.standard_normal((2, 2, rows, 500)).astype(np.float32)
    np.testing.assert_array_equal(by_rows(lambda a, b: a * b + 1, x, y), x * y + 1)


@pytest.mark.parametrize(
    ("kind", "array", "transposed"),
    [
        ("I32", np.ones((2, 2), np.int32), False),
        ("F32", np.ones((4, 4), np.float32)[:, ::2], False),
        ("F32", np.ones((4, 4), np.float32)[::-1], False),
        ("F32", np.ones((0, 4), np.float32), False),
        ("Q8_0", np.ones((4, 34), np.uint8), True),
        ("F32", np.ones((2, 4, 4), np.float32), True),
    ],
)
def test_what_no_loop_can_read_is_refused(kind: str, array: Array, transposed: bool) -> None:
    with pytest.raises(ValueError, match=r"loops|transposed"):
        Matrix(kind, array, transposed=transposed)


def fresh(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.strip()


def test_without_llvmlite_there_are_no_compiled_loops() -> None:
    code = "from weightkit import kernels; print(kernels.available())"
    assert fresh(code) == "True"
    assert fresh(code, WEIGHTKIT_KERNELS="numpy") == "False"
    assert fresh(f"import sys; sys.modules['llvmlite'] = None; {code}") == "False"


@pytest.mark.parametrize(
    "command", ["count demo", "check demo", "stats demo layers.0.ffn.down", "diff demo demo:early"]
)
def test_what_runs_no_model_compiles_nothing(command: str) -> None:
    code = f"""
import contextlib, io, sys
from weightkit.cli.app import main
sys.argv = ["weightkit", *{command.split()}]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print("weightkit.model" in sys.modules, "llvmlite" in sys.modules)
"""
    assert fresh(code) == "True False"


def test_a_process_ends_and_a_child_works_while_helpers_wait() -> None:
    code = """
import os, numpy as np
from weightkit.kernels import Matrix, crew, multiply
crew.resize(3)
w, x = Matrix("F32", np.ones((4096, 64), np.float32)), np.ones((1, 64), np.float32)
multiply(x, [w])
child = os.fork() if hasattr(os, "fork") else 0
assert (multiply(x, [w])[0] == 64).all()
assert crew.size == 3
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    assert fresh("import warnings; warnings.simplefilter('ignore')\n" + code) == ""
