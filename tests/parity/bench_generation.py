"""Our generation beside transformers' on the same weights and prompts, in one process by turns: make bench-generation.

Greedy; every row makes the same number of new tokens; both are warmed up. Beside them stands the limit: every step
reads all weights once, so no program makes more than batch * bandwidth / bytes tokens a second. The bandwidth is that
of summing an array of the weights' size with as many threads, in the same run. `--n 8` is eight completions a prompt.
"""

import argparse
import statistics
import time

import jax
import numpy as np
import torch
import transformers

from sft_jax.config import RunConfig
from sft_jax.data.chat.tokenizer import vocabulary_size
from sft_jax.model.layers import Compute
from sft_jax.parallel.mesh import make_mesh
from sft_jax.parallel.rules import Layout
from sft_jax.sample.draw import Sampling
from sft_jax.sample.generate import PROMPT_BUCKET, Generator
from sft_jax.weights.pretrained import open_pretrained, put_on_devices

MODEL = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def prompts_of(tokenizer, count: int) -> list[list[int]]:
    """Chat prompts of one length, a whole number of our buckets, so that neither side is asked to pad."""
    made = []
    for number in range(count):
        text = f"Tell me a long story about the number {number % 10}"
        while len(prompt := _chat(tokenizer, text)) < 2 * PROMPT_BUCKET:
            text += " and more"
        made.append(prompt[: 2 * PROMPT_BUCKET])
    return made


def _chat(tokenizer, text: str) -> list[int]:
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def bandwidth(size: int) -> float:
    """Bytes a second at which torch's threads read an array of `size` bytes; the best of five."""
    array = torch.zeros(size // 4)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        array.sum()
        best = max(best, size / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--n", type=int, default=1, help="completions a prompt; the batch holds batch / n prompts")
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    config = RunConfig()
    mesh = make_mesh(config.mesh)
    pretrained = open_pretrained(MODEL)
    folder, _, name = MODEL.rpartition("/")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    prompts = prompts_of(pretrained.tokenizer, options.batch // options.n)
    rates: dict[str, list[float]] = {"ours": [], "transformers": []}
    compute = Compute(layout=Layout(mesh, config.sharding))
    with torch.no_grad():
        architecture, parameters = put_on_devices(pretrained, config, mesh)
        # No stop token: every row makes as many tokens on both sides.
        vocab = vocabulary_size(pretrained.tokenizer)
        generator = Generator(architecture, compute, [], vocab, batch_size=options.batch)
        ids = torch.tensor(prompts)

        def ours() -> list[list[int]]:
            made = generator(parameters, prompts, Sampling(options.new), options.n)
            return [one.tokens for each in made for one in each]

        def hugging_face() -> list[list[int]]:
            made = theirs.generate(
                ids.repeat_interleave(options.n, dim=0),
                attention_mask=torch.ones_like(ids).repeat_interleave(options.n, dim=0),
                do_sample=False,
                min_new_tokens=options.new,
                max_new_tokens=options.new,
                pad_token_id=0,
            )
            return made[:, ids.shape[1] :].tolist()

        same = ours() == hugging_face()  # warms both up
        for _ in range(options.rounds):
            for who, run in (("ours", ours), ("transformers", hugging_face)):
                start = time.perf_counter()
                run()
                rates[who].append(options.batch * options.new / (time.perf_counter() - start))
    size = sum(int(np.prod(value.shape)) for value in parameters.values()) * 4
    reading = bandwidth(size)
    limit = options.batch * reading / size
    medians = {who: statistics.median(values) for who, values in rates.items()}
    ratios = [a / b for a, b in zip(rates["ours"], rates["transformers"], strict=True)]
    for who, values in rates.items():
        print(f"{who}: {medians[who]:.0f} tokens/s (rounds: {', '.join(f'{value:.0f}' for value in values)})")
    print(f"ours / transformers: {statistics.median(ratios):.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    print(
        f"limit: {size / 1e6:.0f} MB of weights a step at {reading / 1e9:.1f} GB/s = {limit:.0f} tokens/s; "
        f"ours reaches {medians['ours'] / limit:.0%}"
    )
    print(f"same tokens: {same}; batch {options.batch}, {options.new} new tokens, jax {jax.__version__}")


if __name__ == "__main__":
    main()
