"""Private names of other libraries: each library's in one file, each as it was when it was used, each with a bound.

A failure here says what to do: adapt the one file that uses the name, and move the library's upper bound in
pyproject.toml to the first version that is not known to work.
"""

import ast
import importlib
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


class Use(NamedTuple):
    """What one file uses of one library."""

    package: str
    """As in pyproject.toml."""
    file: str
    names: dict[str, str]
    """`module:attribute` -> the parameters of a function; empty for anything else."""


USES = (
    Use(
        "jax",
        "sft_jax/distributed/jax_internals.py",
        {
            "jax._src.distributed:global_state.client": "",
            "jax._src.distributed:global_state.process_id": "",
            "jax._src.distributed:global_state.num_processes": "",
            "jax._src.clusters:ClusterEnv.auto_detect_unset_distributed_params": (
                "coordinator_address num_processes process_id local_device_ids cluster_detection_method "
                "initialization_timeout"
            ),
            "jaxlib._jax:DistributedRuntimeClient.key_value_set": "",
            "jaxlib._jax:DistributedRuntimeClient.blocking_key_value_get": "",
            "jaxlib._jax:DistributedRuntimeClient.key_value_dir_get": "",
        },
    ),
    Use(  # a kernel rather than JAX: its file is the only one that knows of it
        "jax",
        "sft_jax/model/attention/splash.py",
        {
            "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel:_splash_attention_bwd": (
                "save_residuals mask_value is_mqa block_sizes residual_checkpoint_name mask_function "
                "attn_logits_soft_cap interpret res do"
            )
        },
    ),
    Use(
        "orbax-checkpoint",
        "sft_jax/storage/orbax_object_store.py",
        {
            "orbax.checkpoint._src.path.gcs_utils:_GCS_PATH_PREFIX": "",
            "orbax.checkpoint._src.path.gcs_utils:get_kvstore_for_gcs": "ckpt_path",
            "orbax.checkpoint._src.path.gcs_utils:is_hierarchical_namespace_enabled": "path",
            "orbax.checkpoint._src.serialization.tensorstore_utils:_use_gcs_driver": "directory",
            "orbax.checkpoint._src.serialization.tensorstore_utils:_normalize_path": "path",
        },
    ),
    Use(
        "transformers",
        "sft_jax/data/chat/render_worker.py",
        {
            "transformers.utils.chat_template_utils:_compile_jinja_template": "chat_template",
            # Not private, and documented nowhere.
            "transformers.utils.chat_template_utils:render_jinja_template": (
                "conversations tools documents chat_template return_assistant_tokens_mask continue_final_message "
                "add_generation_prompt kwargs"
            ),
        },
    ),
)
PACKAGE_OF = {
    "jax": "jax",
    "jaxlib": "jax",
    "orbax": "orbax-checkpoint",
    "transformers": "transformers",
    "gguf": "gguf",
}
OWN = {"_asdict", "_fields", "_make", "_replace", "_exit"}
"""Public in spite of their underscore."""


def test_each_librarys_private_names_stand_in_its_file_alone():
    allowed = {(use.package, use.file) for use in USES}
    for path in sorted([*ROOT.glob("sft_jax/**/*.py"), *ROOT.glob("configs/**/*.py")]):
        file = str(path.relative_to(ROOT))
        for library, line, name in private_names(ast.parse(path.read_text(encoding="utf-8"))):
            package = PACKAGE_OF.get(library, library)
            assert (package, file) in allowed, (
                f"{file}:{line}: {name} is a private name of {package}. Use a public one; or move it to "
                f"{[use.file for use in USES if use.package == package] or 'a file of its own'}, list it in USES here "
                "and give the package an upper bound in pyproject.toml."
            )


def test_a_private_name_that_is_used_is_written_in_its_file_alone():
    """However it is reached there."""
    for use in USES:
        for word in {name.replace(":", ".").rpartition(".")[2] for name in use.names}:
            if is_private(word):
                files = [path for path in ROOT.glob("sft_jax/**/*.py") if word in path.read_text(encoding="utf-8")]
                assert files == [ROOT / use.file], f"{word} of {use.package}: expected in {use.file} alone"


def private_names(tree: ast.Module) -> list[tuple[str, int, str]]:
    """(library, line, name) of each private name of a library that a file imports, or reaches by what it imports."""
    found: list[tuple[str, int, str]] = []
    libraries: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                libraries[(name.asname or name.name).split(".")[0]] = name.name.split(".")[0]
                found += [(name.name.split(".")[0], node.lineno, name.name)] if is_private(name.name) else []
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                libraries[name.asname or name.name] = node.module.split(".")[0]
                whole = f"{node.module}.{name.name}"
                found += [(node.module.split(".")[0], node.lineno, whole)] if is_private(whole) else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root: Any = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in libraries:
                found.append((libraries[root.id], node.lineno, ast.unparse(node)))
    return sorted((one for one in found if one[0] not in ("sft_jax", "__future__")), key=lambda one: one[1])


def is_private(name: str) -> bool:
    parts = set(name.split(".")) - OWN
    return any(part.startswith("_") and not part.startswith("__") for part in parts)


def test_private_names_are_found_however_they_are_reached():
    source = (
        "import jax\nimport jax._src.core as core\nfrom orbax.checkpoint._src.path import gcs_utils as g\n"
        "from gguf import quants\nfrom os import _exit\nfrom typing import NamedTuple\n"
        "jax._src.x\ng.public._y\nquants._type_traits['a']\nself._mine\nrow._replace(a=1)\nNamedTuple._fields\n"
    )
    assert [(library, line) for library, line, _ in private_names(ast.parse(source))] == [
        ("jax", 2), ("orbax", 3), ("jax", 7), ("orbax", 8), ("gguf", 9),
    ]  # fmt: skip


@pytest.mark.parametrize("use", USES, ids=lambda use: use.file)
def test_each_private_name_is_still_what_it_was(use: Use):
    for name, parameters in use.names.items():
        installed = f"{use.package} {version(use.package)}"
        todo = f"{name} has changed in {installed}: adapt {use.file}, or bound the package below it in pyproject.toml"
        module, _, attributes = name.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for attribute in attributes.split("."):
                found = getattr(found, attribute)
        except (ImportError, AttributeError) as error:
            raise AssertionError(f"{todo} ({error})") from error
        if parameters:
            assert list(inspect.signature(found).parameters) == parameters.split(), todo


@pytest.mark.parametrize("package", sorted({use.package for use in USES}))
def test_what_is_installed_is_below_the_bound(package: str):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [requirement] = [
        found for found in map(Requirement, project["dependencies"]) if found.name == package and not found.extras
    ]
    files = ", ".join(use.file for use in USES if use.package == package)
    assert any(part.operator == "<" for part in requirement.specifier), (
        f"pyproject.toml: {package} has no upper bound, and {files} uses private names of it"
    )
    assert requirement.specifier.contains(version(package), prereleases=True), (
        f"{package} {version(package)} is installed, pyproject.toml has {requirement}. Run these tests and those of "
        f"{files}; where they pass, move the bound."
    )
