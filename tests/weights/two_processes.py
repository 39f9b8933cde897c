"""One of two processes with four devices each: load a model over both, count what is read, export it again.

Run as `python -m tests.weights.two_processes COORDINATOR PROCESS_ID MODEL OUT`.
"""

import dataclasses
import json
import sys

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")

from sft_jax.config import Mesh, Sharding  # noqa: E402  (the backend is configured first)
from sft_jax.errors import BadInput  # noqa: E402
from sft_jax.model.decoder import abstract_parameters  # noqa: E402
from sft_jax.parallel.mesh import make_mesh  # noqa: E402
from sft_jax.parallel.rules import shardings  # noqa: E402
from sft_jax.weights.export import export  # noqa: E402
from sft_jax.weights.load import load_parameters, open_model  # noqa: E402


class Counted:
    """Tensors that count the bytes read of them."""

    def __init__(self, tensors):
        self.tensors, self.shapes, self.bytes = tensors, tensors.shapes, {}

    def read(self, name, slices=None):
        part = self.tensors.read(name, slices)
        self.bytes[name] = self.bytes.get(name, 0) + part.nbytes
        return part


def main(coordinator: str, process_id: str, model: str, out: str) -> None:
    jax.distributed.initialize(coordinator, 2, int(process_id), cluster_detection_method="deactivate")
    files = open_model(model)
    files = dataclasses.replace(files, tensors=Counted(files.tensors))
    shapes, axes = abstract_parameters(files.architecture)
    layout = shardings({name: s.shape for name, s in shapes.items()}, axes, make_mesh(Mesh()), Sharding())
    parameters = load_parameters(files, files.architecture, layout)
    export(parameters, files.architecture, files.config, None, out, generation_config=files.generation_config)
    try:
        export(parameters, files.architecture, files.config, None, out)
        refused = False
    except BadInput:
        refused = True
    print(json.dumps({"bytes": files.tensors.bytes, "refused": refused}))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(*sys.argv[1:])
