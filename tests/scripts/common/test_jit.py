from scripts.common import jit


def test_compiles_without_a_cache_if_numba_cannot_write_one(monkeypatch):
    def njit(*, nogil, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, nogil)

    monkeypatch.setattr(jit.numba, "njit", njit)
    assert jit.compiled(len) == (len, True)
