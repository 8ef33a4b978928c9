from scripts.solf import runs


def test_compiles_without_a_cache_if_numba_cannot_write_one(monkeypatch):
    def njit(*, nogil, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, nogil)

    monkeypatch.setattr(runs.numba, "njit", njit)
    assert runs.compiled(len) == (len, True)
