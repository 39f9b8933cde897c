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
    """A Hugging Face directory, a `.gguf` file, hf://org/name, or a run's workdir. The newest checkpoint counts."""
    dtype: Literal["float32", "bfloat16"] = identity("float32")
    """Compute dtype. Master weights, optimizer state, softmax, norms, RoPE angles and the loss stay float32."""
    weights: Literal["pretrained", "random"] = identity("pretrained")
    """pretrained, or random: train from scratch; `path` gives config.json and the tokenizer, train.seed the weights."""
    quantization: Literal["none", "int8"] = identity("none")
    """Storage of the kernels: float32, or int8 with one scale per output channel. int8 kernels can be sampled, scored
    and frozen, not trained."""
    remat: Literal["none", "dots", "minimal", "attention", "full", "offload"] = free("none")
    """What each layer saves for its backward pass. none saves everything; dots every matrix product; minimal the
    products with weights; attention the layer's input, queries, keys, values and attention output; full the layer's
    input alone; offload the same as attention, on the host."""
    attention: Literal["auto", "reference", "blockwise", "splash", "triton"] = free("auto")
    """Attention kernel; auto picks splash on TPUs, triton on GPUs, blockwise on CPUs."""
    context_attention: Literal["all_gather", "ring"] = free("all_gather")
    """How devices along the context axis exchange keys and values: all_gather (fastest while they fit) or ring (no
    device holds more than two shards)."""
    scan_layers: bool = free(True)
    """Scan over stacked layers, so that compile time does not grow with depth; False unrolls them, for debugging."""
    head_chunk: int = free(512)
    """Target positions per device that go through the head at once: no buffer exceeds head_chunk x vocabulary."""


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
    """Demonstrations: files, globs, directories, hf://org/name:split, tfds://name:split, gs://..., or prepared data
    (DIR or DIR:split)."""
    weights: tuple[float, ...] = identity(())
    """Mixing weights, one per entry of train; each entry runs through epochs of its own. Empty: every entry once per
    epoch."""
    weights_count: Literal["examples", "target_tokens"] = identity("examples")
    """What the mixing weights count: examples or trained tokens."""
    eval: tuple[str, ...] = identity(())
    """Held-out demonstrations, or `none`."""
    limit: int = identity(0)
    """Train on this many demonstrations, drawn with train.seed (a larger sample contains every smaller one); 0 uses
    all."""
    tokenizer: str = identity("")
    """A tokenizer directory or `.gguf` file. Empty: the model's own."""
    format: Literal["auto", Format] = identity("auto")
    """Form of the rows; auto detects it from each row's keys and reports what it found."""
    fields: tuple[str, ...] = identity(())
    """Which of your columns hold ours: `prompt=question`, `completion=answer.text` (dots reach into objects)."""
    function: str = identity("")
    """A Python function `file.py:name` that turns a row into a row, a list of rows, or None to skip it."""
    bad_rows: Literal["error", "skip"] = identity("error")
    """error stops at the first row that cannot be used; skip leaves such rows out and counts them by reason."""
    chat_template: str = identity("")
    """A Jinja file, or `generic` for base models that have none. It is exported with the model. Empty: the tokenizer's
    own, unedited."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = identity("assistant")
    """What trains. Every assistant turn; the last one; everything after the last user turn; every token."""
    end_of_turn: bool = identity(True)
    """Train the stop token of each trained turn (for completions: EOS). Without it the model never learns to stop."""
    allow_lossy: bool = identity(False)
    """Keep conversations from which the chat template drops something that should train, and count them. By default
    they are refused."""
    special_text: Literal["special", "text", "refuse"] = identity("special")
    """How text in a message that spells a special token is tokenised: as that token (special, as in transformers), as
    plain text, or not at all (refuse)."""
    template_date: str = identity("")
    """The date that chat templates print, YYYY-MM-DD. Empty: the day the run first starts."""
    template_kwargs: tuple[str, ...] = identity(())
    """Variables of the chat template, such as `enable_thinking=false` (JSON, or else text). A row's own
    `chat_template_kwargs` take precedence."""
    over_length: Literal["drop", "truncate", "error", "split"] = identity("drop")
    """Longer examples are dropped, truncated, refused or split; counts are printed. split cuts plain text into pieces
    that overlap by one token, so that no target is lost, and drops conversations."""
    sequence_length: int = identity(1024)
    """Tokens per row (T)."""
    target_capacity: int = identity(0)
    """Trained tokens per row (M). 0 picks it from the data and writes it into the resolved config."""
    packing: Literal["best_fit", "none"] = identity("best_fit")
    """best_fit packs documents into rows, isolated from each other; none gives each document its own row."""
    shuffle: bool = identity(True)
    """Reshuffle the rows every epoch; False keeps the order of the packing plan."""
    streaming: bool = identity(False)
    """Tokenise while training instead of before, for corpora too large to prepare; needs train.steps."""
    streams: int = identity(1)
    """Parallel pipelines of streamed data: a multiple of the process count that divides the rows of a micro-batch."""
    workers: int = free(0)
    """Worker processes for tokenising more than a few thousand rows; 0 uses one per core."""


@dataclass(frozen=True)
class Optimizer:
    """The optax step. Fields without a value take the chosen optimizer's own default."""

    name: str = identity("adamw")
    """adamw, sgd, lion, adafactor or muon."""
    learning_rate: float = identity(2e-5)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = identity("linear")
    """After warm-up: constant, or linear or cosine to 0 at the last step."""
    warmup_steps: int = identity(0)
    """Steps of linear warm-up from 0."""
    warmup_ratio: float = identity(0.0)
    """Share of the steps that warm up. Instead of warmup_steps, rounded up."""
    weight_decay: float = identity(0.0)
    """Decoupled, on matrices. Norms and biases never decay."""
    clip_norm: float = identity(1.0)
    """Clip gradients to this global L2 norm; 0 turns clipping off."""
    b1: float | None = identity(None)
    """First-moment decay: adamw 0.9, lion 0.9, muon 0.9 (for the parameters AdamW trains)."""
    b2: float | None = identity(None)
    """Second-moment decay: adamw 0.999, muon 0.999; for lion the momentum's, 0.99."""
    eps: float | None = identity(None)
    """Added to the square root of the second moment: adamw and muon 1e-8."""
    first_moment_dtype: Literal["float32", "bfloat16"] | None = identity(None)
    """adamw, lion: bfloat16 halves the memory of the first moment. The second stays float32: at b2 = 0.999 its updates
    are too small for bfloat16 to represent."""
    momentum: float | None = identity(None)
    """sgd 0 (none), muon 0.95."""
    decay_rate: float | None = identity(None)
    """adafactor 0.8: the second moment's decay at step t is 1 - t^-0.8."""
    factored_from: int | None = identity(None)
    """adafactor 128: factor the second moment of matrices with two dimensions at least this large."""
    clip_rms: float | None = identity(None)
    """adafactor 1: clip each parameter's update to this root mean square."""


@dataclass(frozen=True)
class Loss:
    """What is minimised."""

    kind: str = identity("cross_entropy")
    """cross_entropy imitates the trained tokens; reward learns which of `chosen` and `rejected` is better (Bradley-
    Terry), starting from a model written by sft-jax reward-init."""


@dataclass(frozen=True)
class Adapter:
    """Train a few added parameters beside a frozen model. Fields without a value take the adapter's own default."""

    kind: str = identity("none")
    """none, or lora: train low-rank matrices only. The model's own kernels are frozen."""
    rank: int | None = identity(None)
    """16 for lora."""
    alpha: float | None = identity(None)
    """lora 32; the low-rank product is scaled by alpha / rank."""
    targets: tuple[str, ...] = identity(())
    """Which kernels get an adapter, by patterns such as `*attention*`. Empty: every kernel of the layers."""


@dataclass(frozen=True)
class Train:
    """How long to train, in what batches, and what is written when."""

    objective: Literal["sft", "reward"] | None = free(None)
    """Older name for loss.kind; sft means cross_entropy."""
    trainable: tuple[str, ...] = identity(())
    """Which parameters train, by patterns: `head`, `layers.20-29`, `*norm*`, `layers.0-3.mlp.*`. Empty: all."""
    steps: int = identity(0)
    """Optimizer steps; 0 trains for `epochs`."""
    epochs: int = identity(1)
    """Passes over the data, if steps is 0."""
    batch_size: int = identity(8)
    """Rows per update, over all devices."""
    accumulation: int = free(1)
    """Micro-batches per update. The update itself does not change."""
    seed: int = identity(0)
    """Seed of the row order and random weights."""
    eval_every: int = free(0)
    """Evaluate every N steps and at the end; 0: never."""
    eval_samples: int = free(0)
    """At each evaluation, answer this many held-out prompts (greedily), score the answers and save them."""
    eval_new_tokens: int = free(256)
    """Longest of these answers, in tokens."""
    eval_checks: tuple[str, ...] = free(("auto",))
    """How these answers are scored: the checks of sft-jax evaluate; auto picks what fits the rows."""
    eval_scorer: str = free("")
    """Your own scoring function, `file.py:name`: (completion, row) -> number, or a dict of numbers."""
    save_every: int = free(100)
    """Checkpoint every N steps; 0: only at the end. The last step is always saved."""
    keep_last: int = free(2)
    """Keep this many of the newest checkpoints."""
    keep_every: int = free(0)
    """Also keep every checkpoint whose step is a multiple of this, forever; 0 keeps none."""
    tensorboard: bool = free(True)
    """Write TensorBoard events beside metrics.jsonl."""
    sinks: tuple[str, ...] = free(())
    """Where metrics go besides metrics.jsonl and TensorBoard: names of registered sinks."""


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; the product must equal the device count. -1 takes the rest."""

    data: int = free(1)
    """Data parallel. Each replica holds all parameters and sees different rows."""
    fsdp: int = free(-1)
    """Fully sharded data parallel; -1: what is left. Parameters, optimizer state and rows are sharded."""
    tensor: int = free(1)
    """Tensor parallel. Heads, MLP width and vocabulary are sharded."""
    context: int = free(1)
    """Context parallel. Each sequence is sharded."""
    expert: int = free(1)
    """Expert parallel. The experts of mixture-of-experts layers are sharded."""


@dataclass(frozen=True)
class Sharding:
    """Logical axis -> mesh axes it is sharded over: names joined by '+', or 'none' to replicate it."""

    vocab: str = free("tensor")
    """Rows of the embedding and the head; the vocabulary dimension of logits."""
    embed: str = free("fsdp+context")
    """The model dimension of every parameter: devices that share a sequence also share the parameters."""
    mlp: str = free("tensor")
    """The hidden dimension of the MLP, in parameters and activations."""
    heads: str = free("tensor")
    """Query heads, in parameters and activations."""
    kv_heads: str = free("tensor")
    """Key/value heads, in parameters and activations."""
    head_dim: str = free("none")
    """Elements of a head, in parameters; attention needs them whole."""
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
    """The model dimension of activations."""


@dataclass(frozen=True)
class Distributed:
    """Start-up of several processes. Cloud TPU pods, GKE and Slurm need only auto=True."""

    auto: bool = free(False)
    """Find the other processes from the cluster's environment (Cloud TPU, GKE, Slurm, Open MPI)."""
    coordinator: str = free("")
    """host:port of process 0, when you name the processes yourself."""
    processes: int = free(1)
    """Number of processes, when you name them yourself."""
    process_id: int = free(0)
    """This process's index, from 0."""
    timeout_seconds: int = free(300)
    """How long start-up and collective file work wait for the other processes."""
    silence_seconds: int = free(60)
    """A process that is silent for this long is considered lost: the others exit with status 42, to be restarted."""
    devices: int = free(0)
    """Devices that all processes must have together: fewer are refused at start-up; 0 takes what there is."""
    cpu_devices: int = free(0)
    """Simulate N CPU devices; 0: the real ones. In each process."""


@dataclass(frozen=True)
class RunConfig:
    """Fine-tune a model on demonstrations. Run the same command again to resume."""

    workdir: str = free("runs/default")
    """Where the run's files go: a directory or gs://bucket/path."""
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
