from contextlib import contextmanager

import jax
import pytest

from sft_jax.ceiling.measure import compile_once


@contextmanager
def _cache_in(directory):
    """With this compilation cache, or with none; afterwards with that of the tests."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", directory)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("of_the_user", [None, "elsewhere"])
def test_what_many_runs_compile_is_kept_in_the_workdir_unless_the_user_keeps_it_elsewhere(tmp_path, of_the_user):
    with _cache_in(of_the_user):
        compile_once(tmp_path / "run")
        assert jax.config.values["jax_compilation_cache_dir"] == (of_the_user or str(tmp_path / "run" / "compiled"))
