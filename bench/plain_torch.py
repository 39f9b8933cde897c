"""Section d: the step of section c in torch and transformers, as fast as we know how to write it.

Weights and moments are float32; forward and backward pass go through a bfloat16 copy of the weights, so that the
residual stream is bfloat16 as ours is. Every layer and the loss are compiled (once, since all layers are alike), sdpa
attention, fused AdamW. Documents of a packed row are kept apart by a block-diagonal mask; a row of one document takes
the causal kernel, without a mask.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]  # on the GPU machine, and in the parity environment
from transformers import AutoConfig, AutoModelForCausalLM

from bench.cases import StepCase
from bench.child import Results, Row
from bench.rows import Rows, make_rows

WARM_UP = 2
RATE = 1e-5
IGNORED = -100


def head_loss(hidden: torch.Tensor, kernel: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The sum of the cross-entropy over trained tokens."""
    logits = torch.nn.functional.linear(hidden, kernel).flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits.float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")


class Step:
    """A model, its float32 weights, and one update of them."""

    def __init__(self, case: StepCase, rows: Rows, device: torch.device, backend: str):
        config = AutoConfig.from_pretrained(case.model)
        with device:
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32).train()
        self.masters = [parameter.detach().clone() for parameter in model.parameters()]
        self.model = model.to(torch.bfloat16)
        for layer in self.model.model.layers:
            # fullgraph: a layer that compiles only in part, or unlike its siblings, is an error and no slow run.
            layer.compile(fullgraph=True, dynamic=False, backend=backend)
        self.loss = torch.compile(head_loss, fullgraph=True, dynamic=False, backend=backend)
        self.optimizer = torch.optim.AdamW(self.masters, RATE, weight_decay=0.0, fused=True)
        self.tokens = torch.from_numpy(rows.tokens).long().to(device)
        self.positions = torch.from_numpy(rows.positions).long().to(device)
        self.segments = torch.from_numpy(rows.segments).to(device)
        targets = torch.from_numpy(rows.following).long()
        self.targets = targets.masked_fill(~torch.from_numpy(rows.trained), IGNORED).to(device)
        self.count, self.packed = int(rows.trained.sum()), case.packed

    def _places(self) -> dict[str, Any]:
        if not self.packed:
            return {}
        same = self.segments[:, None, :, None] == self.segments[:, None, None, :]
        return {"attention_mask": same.tril(), "position_ids": self.positions}

    def advance(self) -> torch.Tensor:
        """One update; the loss stays on the device."""
        hidden = self.model.model(self.tokens, use_cache=False, **self._places()).last_hidden_state
        loss = self.loss(hidden, self.model.lm_head.weight, self.targets) / self.count
        loss.backward()
        copies = list(self.model.parameters())
        for master, copy in zip(self.masters, copies, strict=True):
            master.grad, copy.grad = copy.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(copies, self.masters)
        return loss.detach()


def measure(case: StepCase, backend: str) -> Row:
    """As `bench.ours.measure`; the first step, which compiles, stands in the place of the compiler's seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocab = json.loads((Path(case.model) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    rows = make_rows(case.rows, case.length, vocab, case.packed)
    step = Step(case, rows, device, backend)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # the weights were drawn in float32 and copied
    started = time.perf_counter()
    first = step.advance().item()
    compile_seconds = time.perf_counter() - started
    for _ in range(WARM_UP - 1):
        step.advance().item()
    started = time.perf_counter()
    for _ in range(case.steps):
        loss = step.advance()
    last = loss.item()
    seconds = (time.perf_counter() - started) / case.steps
    return {
        "status": "done" if last == last and first == first else "failed",
        "losses": [first, last],
        "step_seconds": seconds,
        "tokens_per_second": rows.tokens.size / seconds,
        "tokens": rows.tokens.size,
        "target_tokens": step.count,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "compile_seconds": compile_seconds,
    }


def main() -> None:
    results = Results()
    about = results.request["case"]
    results.case(about, lambda: measure(StepCase(**about), results.request["backend"]))


if __name__ == "__main__":
    main()
