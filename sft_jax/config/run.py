"""What a run is: frozen dataclasses, validated once, with a JSON round trip.

Every field is declared *identity* (a difference on resume is refused with a diff: data, model, optimizer, seed,
batch size, lengths) or *free* (mesh, accumulation, remat, intervals, logging). All defaults of the project live here.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from sft_jax.errors import BadInput


def identity(default: Any = dataclasses.MISSING, **kwargs: Any) -> Any:
    """A field that says which run this is: it may not change on resume."""
    return dataclasses.field(default=default, metadata={"identity": True}, **kwargs)


def free(default: Any = dataclasses.MISSING, **kwargs: Any) -> Any:
    """A field that may change between the runs of one workdir."""
    return dataclasses.field(default=default, metadata={"identity": False}, **kwargs)


@dataclass(frozen=True)
class Model:
    """The pretrained decoder and how its forward pass is computed."""

    path: str = identity("")
    """A Hugging Face directory, a `.gguf` file, a run's workdir (newest checkpoint), also `gs://…`; `hf://org/name`."""
    dtype: Literal["float32", "bfloat16"] = identity("float32")
    """Compute dtype. Master weights, moments, softmax, norms, RoPE angles and the loss stay float32."""
    weights: Literal["pretrained", "random"] = identity("pretrained")
    """random starts from scratch: `path` gives config.json and the tokenizer alone, train.seed draws the weights."""
    quantization: Literal["none", "int8"] = identity("none")
    """How kernels are stored: float32, or int8 values with a scale per output, which can be sampled and scored and
    stay frozen in training."""
    remat: Literal["none", "dots", "minimal", "attention", "full", "offload"] = free("none")
    """What a layer keeps for its backward pass: none keeps everything; dots every matrix product; minimal the products
    with weights; attention its input, queries, keys, values and attention's output; full its input alone; offload the
    same as attention, on the host."""
    attention: Literal["auto", "reference", "blockwise", "splash", "triton"] = free("auto")
    """Attention implementation; auto takes splash on TPUs, triton on GPUs, blockwise on CPUs."""
    context_attention: Literal["all_gather", "ring"] = free("all_gather")
    """How devices of one context axis see each other's keys: gathered (fastest while they fit), or handed round in a
    ring (no device holds more than two shards)."""
    scan_layers: bool = free(True)
    """Scan over stacked layers (compile time does not grow with depth); False unrolls them, for debugging."""
    head_chunk: int = free(512)
    """Target positions a device puts through the head at once: no buffer exceeds head_chunk x vocabulary."""


# fmt: off
Format = Literal[
    "messages", "sharegpt", "tokens", "preference", "pair", "prompt_completion", "alpaca", "seed_task",
    "question_answer", "text",
]
# fmt: on
"""The forms of a record; `data/forms/formats.py` says what each holds."""


@dataclass(frozen=True)
class Data:
    """Demonstrations and how they become rows of tokens."""

    train: tuple[str, ...] = identity(())
    """Training demonstrations: files, globs, directories, a prepared data set (`DIR`, `DIR:split`), `gs://…`,
    `tfds://name:split`, `hf://org/name:split`."""
    weights: tuple[float, ...] = identity(())
    """One for each entry of train: the entries are mixed in these proportions, each over epochs of its own. Empty:
    every entry once an epoch."""
    weights_count: Literal["examples", "target_tokens"] = identity("examples")
    """What the proportions count: examples or trained tokens."""
    eval: tuple[str, ...] = identity(())
    """Held-out demonstrations for the evaluation loss."""
    limit: int = identity(0)
    """Train on so many of the demonstrations, drawn by train.seed (more of them hold all of fewer); 0 takes all."""
    tokenizer: str = identity("")
    """A tokenizer directory or `.gguf` file; empty means the model's own."""
    format: Literal["auto", Format] = identity("auto")
    """Form of the records; auto detects it from each record's keys and reports what it found."""
    fields: tuple[str, ...] = identity(())
    """Where our keys stand in the records: `prompt=question`, `completion=answer.text` (dots go into objects)."""
    function: str = identity("")
    """A Python function from record to record, list of records or None (left out): `file.py:name`, `module:name`."""
    bad_rows: Literal["error", "skip"] = identity("error")
    """A row that cannot be used stops the preparation, or is left out and counted with its reason."""
    chat_template: str = identity("")
    """A Jinja file, or `generic` for the one that ships, for base models without a template; it is exported with the
    model. Empty means the tokenizer's own, unedited."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = identity("assistant")
    """Which tokens train: every assistant turn, the last one, what follows the last user turn, or every token."""
    end_of_turn: bool = identity(True)
    """Train the stop token that ends a trained turn (and the EOS of a completion); without it the model never stops
    by itself."""
    allow_lossy: bool = identity(False)
    """Keep conversations of which the chat template leaves out something that should train, and count them; by
    default they are refused, with what is lost."""
    special_text: Literal["special", "text", "refuse"] = identity("special")
    """What text in a message that looks like a special token becomes: the token, as in transformers; the ordinary text
    that it is; or a refusal that names it."""
    template_date: str = identity("")
    """The day that chat templates print, YYYY-MM-DD; empty means today, written down when the run first starts."""
    template_kwargs: tuple[str, ...] = identity(())
    """Values for the chat template besides the conversation, `enable_thinking=false` (JSON, or else text); a row's own
    `chat_template_kwargs` go first."""
    over_length: Literal["drop", "truncate", "error", "split"] = identity("drop")
    """What happens to an example longer than sequence_length; counts are printed. split cuts `text` into pieces that
    overlap by one token, so that nothing is lost, and drops conversations."""
    sequence_length: int = identity(1024)
    """Tokens per row (T)."""
    target_capacity: int = identity(0)
    """Trained tokens per row (M); 0 chooses it from the data and writes it into the resolved config."""
    packing: Literal["best_fit", "none"] = identity("best_fit")
    """best_fit puts several documents into a row, isolated from each other; none gives each its own row."""
    shuffle: bool = identity(True)
    """Visit the rows in a new order each epoch; False keeps the packing plan's order."""
    streaming: bool = identity(False)
    """Tokenise while training instead of before, for corpora too large to prepare; needs train.steps."""
    streams: int = identity(1)
    """Parallel pipelines of streamed data: a multiple of the number of processes that divides a micro-batch's rows."""
    workers: int = free(0)
    """Processes that tokenise, for data of more than a few thousand rows; 0 takes one for each core."""


@dataclass(frozen=True)
class Optimizer:
    """The optax step. Fields without a value take the chosen optimizer's own default."""

    name: str = identity("adamw")
    """adamw (decoupled weight decay), sgd, lion, adafactor, or muon."""
    learning_rate: float = identity(2e-5)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = identity("linear")
    """Shape after the warm-up; linear and cosine end at 0 on the last step."""
    warmup_steps: int = identity(0)
    """Steps over which the rate rises linearly from 0."""
    weight_decay: float = identity(0.0)
    """Decoupled weight decay on matrices; norms and biases never decay."""
    clip_norm: float = identity(1.0)
    """Gradients are scaled down to this global L2 norm; 0 turns clipping off."""
    b1: float | None = identity(None)
    """Decay of the first moment: adamw 0.9, lion 0.9, muon 0.9 (of what AdamW trains)."""
    b2: float | None = identity(None)
    """Decay of the second moment: adamw 0.999, muon 0.999; of lion's momentum 0.99."""
    eps: float | None = identity(None)
    """Added to the square root of the second moment: adamw and muon 1e-8."""
    first_moment_dtype: Literal["float32", "bfloat16"] | None = identity(None)
    """adamw, lion: bfloat16 halves the first moment's memory. The second stays float32: at b2 = 0.999 it changes by
    less than bfloat16 can show, and would stand still."""
    momentum: float | None = identity(None)
    """sgd 0 (none), muon 0.95."""
    decay_rate: float | None = identity(None)
    """adafactor 0.8: the second moment's decay at step t is 1 - t^-0.8."""
    factored_from: int | None = identity(None)
    """adafactor 128: matrices with two dimensions of at least this size have their second moment factored."""
    clip_rms: float | None = identity(None)
    """adafactor 1: updates of a parameter are scaled down to this root mean square."""


@dataclass(frozen=True)
class Loss:
    """What is minimised."""

    kind: str = identity("cross_entropy")
    """cross_entropy imitates the trained tokens; reward learns from `chosen` and `rejected` which is better
    (Bradley-Terry), with a model that sft-jax reward-init wrote."""


@dataclass(frozen=True)
class Adapter:
    """Train a few added parameters beside a frozen model. Fields without a value take the adapter's own default."""

    kind: str = identity("none")
    """none, or lora: low-rank matrices beside the kernels."""
    rank: int | None = identity(None)
    """lora 16."""
    alpha: float | None = identity(None)
    """lora 32; the adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = identity(())
    """Patterns of the kernels that have one, such as `*attention*`; empty: all kernels of layers."""


@dataclass(frozen=True)
class Train:
    """How long, how large, and what is written when."""

    objective: Literal["sft", "reward"] | None = free(None)
    """Another name for loss.kind: sft is cross_entropy."""
    trainable: tuple[str, ...] = identity(())
    """Parameters that train, by patterns: `head`, `layers.20-29`, `*norm*`, `layers.0-3.mlp.*`. Empty: all of them."""
    steps: int = identity(0)
    """Optimizer steps; 0 means epochs decides."""
    epochs: int = identity(1)
    """Passes over the demonstrations, used when steps is 0."""
    batch_size: int = identity(8)
    """Rows an update, over all devices and micro-batches."""
    accumulation: int = free(1)
    """Micro-batches an update is split into; the update's mathematics does not change."""
    seed: int = identity(0)
    """Seed of the row order and of random initialisation."""
    eval_every: int = free(0)
    """Evaluate the held-out loss every so many steps and at the end; 0 turns it off."""
    eval_samples: int = free(0)
    """Answer so many held-out prompts (greedily) at every evaluation, judge the answers, and write them down."""
    eval_new_tokens: int = free(256)
    """Longest of these answers, in tokens."""
    eval_checks: tuple[str, ...] = free(("auto",))
    """How they are judged: the checks of sft-jax evaluate; auto takes what the rows call for."""
    eval_scorer: str = free("")
    """A function of yours that judges too, `file.py:name`: (completion, row) -> number, or a dict of numbers."""
    save_every: int = free(100)
    """Checkpoint every so many steps and at the end; 0 keeps only the last step."""
    keep_last: int = free(2)
    """Newest checkpoints kept."""
    keep_every: int = free(0)
    """Checkpoints whose step is a multiple of this are kept for good; 0 keeps none so."""
    tensorboard: bool = free(True)
    """Write TensorBoard events beside metrics.jsonl."""
    sinks: tuple[str, ...] = free(())
    """Where metrics go besides metrics.jsonl and TensorBoard: names of registered sinks."""


@dataclass(frozen=True)
class Mesh:
    """How many devices share each axis; the product must equal the number of devices. -1 takes the rest."""

    data: int = free(1)
    """Replicas: each holds all parameters and sees other rows."""
    fsdp: int = free(-1)
    """Parameters, moments and rows are divided over this axis."""
    tensor: int = free(1)
    """Heads, MLP width and vocabulary are divided over this axis."""
    context: int = free(1)
    """The sequence is divided over this axis."""
    expert: int = free(1)
    """Experts of mixture-of-experts layers are divided over this axis."""


@dataclass(frozen=True)
class Sharding:
    """Logical axis -> mesh axes it is divided over: names joined by '+', or 'none' to leave it whole."""

    vocab: str = free("tensor")
    """Rows of the embedding and of the head; the vocabulary dimension of logits."""
    embed: str = free("fsdp+context")
    """The model dimension of every parameter: devices that share a sequence share the parameters too."""
    mlp: str = free("tensor")
    """The inner dimension of the MLP, in parameters and activations."""
    heads: str = free("tensor")
    """Query heads, in parameters and activations."""
    kv_heads: str = free("tensor")
    """Key/value heads, in parameters and activations."""
    head_dim: str = free("none")
    """Elements of one head, in parameters; attention needs them whole."""
    layers: str = free("none")
    """The stacked layers."""
    experts: str = free("expert")
    """Experts of a mixture-of-experts layer."""
    act_batch: str = free("data+fsdp")
    """Rows of a batch."""
    act_length: str = free("context")
    """Positions of a row."""
    act_targets: str = free("context")
    """Target positions of a row: the head's work."""
    act_embed: str = free("none")
    """The model dimension of an activation."""


@dataclass(frozen=True)
class Distributed:
    """Start-up of several processes. Cloud TPU pods, GKE and Slurm need only auto=True."""

    auto: bool = free(False)
    """Find the other processes from the cluster's environment (Cloud TPU, GKE, Slurm, Open MPI)."""
    coordinator: str = free("")
    """host:port of process 0, when the processes are named by hand."""
    processes: int = free(1)
    """Number of processes, when they are named by hand."""
    process_id: int = free(0)
    """This process's number, from 0."""
    timeout_seconds: int = free(300)
    """How long start-up and collective file work wait for the other processes."""
    silence_seconds: int = free(60)
    """A process that is not heard of for so long is gone: the others leave with status 42, to be started again."""
    devices: int = free(0)
    """How many devices all processes must have together: fewer are refused at the start; 0 takes what is there."""
    cpu_devices: int = free(0)
    """Simulate this many CPU devices in each process; 0 leaves the platform's own devices."""


@dataclass(frozen=True)
class RunConfig:
    """A whole training run. `configs/*.py` return one from `get_config()`."""

    workdir: str = free("runs/default")
    """Where config, metrics, checkpoints, logs and TensorBoard events go: a directory, or gs://bucket/path."""
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    mesh: Mesh = Mesh()
    sharding: Sharding = Sharding()
    distributed: Distributed = Distributed()
    loss: Loss = Loss()
    adapter: Adapter = Adapter()

    def __post_init__(self) -> None:
        """`train.objective` is another name for `loss.kind`, and is written as that."""
        if self.train.objective is not None:
            kind = "cross_entropy" if self.train.objective == "sft" else self.train.objective
            if self.loss.kind not in (Loss.kind, kind):
                raise BadInput(
                    f"train.objective is {self.train.objective!r} and loss.kind {self.loss.kind!r}; train.objective is "
                    "an older name for loss.kind: give loss.kind alone"
                )
            object.__setattr__(self, "loss", dataclasses.replace(self.loss, kind=kind))
            object.__setattr__(self, "train", dataclasses.replace(self.train, objective=None))


def leaf_fields(config: Any, prefix: str = "") -> list[tuple[str, dataclasses.Field, Any]]:
    """Every leaf field as (dotted name, field, value), in declaration order."""
    leaves = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            leaves += leaf_fields(value, f"{prefix}{field.name}.")
        else:
            leaves.append((prefix + field.name, field, value))
    return leaves
