"""What other trainers call our fields: a wrong name is answered by what it means before how it is spelled."""

from collections.abc import Sequence
from typing import NamedTuple

from sft_jax.errors import nearest


class Meaning(NamedTuple):
    """What a foreign name means here."""

    field: str
    """Dotted, or the name of a command's own option."""
    note: str = ""
    """What the reader should know about the difference."""


_PER_UPDATE = "rows per update, over all devices and micro-batches"
_MICRO_BATCHES = "micro-batches per update; train.batch_size does not change"
_NO_FLAG = "run the same command again: it resumes from the newest checkpoint of its workdir"

ALIASES: dict[str, Meaning] = {
    alias: meaning
    for meaning, aliases in (
        (Meaning("workdir"), "output_dir out_dir output_path base_output_directory save_dir checkpoint_dir run_dir"),
        (
            Meaning("workdir", _NO_FLAG),
            "resume resume_from_checkpoint overwrite_output_dir load_checkpoint auto_resume_from_checkpoints",
        ),
        (
            Meaning("model.path"),
            "model_name_or_path model_name model_id base_model pretrained_model_name_or_path model_path model "
            "load_parameters_path initialize_from_hf",
        ),
        (
            Meaning("model.dtype", "bfloat16 or float32"),
            "bf16 fp16 torch_dtype mixed_precision precision compute_dtype param_dtype activation_dtype",
        ),
        (
            Meaning("model.remat", "full recomputes everything"),
            "gradient_checkpointing activation_checkpointing remat_policy use_gradient_checkpointing checkpointing",
        ),
        (
            Meaning("model.attention"),
            "attn_implementation attention_implementation use_flash_attention_2 flash_attention",
        ),
        (Meaning("model.quantization", "int8"), "load_in_8bit load_in_4bit quantize bits"),
        (
            Meaning("data.train"),
            "dataset dataset_name dataset_path train_file train_files train_data train_dataset data_path data_files "
            "hf_path datasets training_data",
        ),
        (
            Meaning("data.eval"),
            "eval_dataset validation_file eval_file eval_data test_file validation_data val_data val_file valid_data",
        ),
        (
            Meaning("data.sequence_length"),
            "max_seq_length max_seq_len max_length seq_length seq_len sequence_len cutoff_len block_size max_tokens "
            "model_max_length max_target_length context_length max_sequence_length",
        ),
        (Meaning("data.tokenizer"), "tokenizer_name tokenizer_name_or_path tokenizer_path"),
        (Meaning("data.chat_template"), "chat_template_path template chat_template_file tokenizer_chat_template"),
        (
            Meaning("data.train_on", "assistant, last_assistant, completion or all"),
            "completion_only_loss assistant_only_loss train_on_inputs train_on_prompt train_on_responses_only "
            "train_on_completions_only sft_train_on_completion_only mask_prompt mask_user_turns",
        ),
        (Meaning("data.packing", "best_fit or none"), "sample_packing pack packing_strategy pad_to_sequence_len"),
        (Meaning("data.over_length", "drop, truncate, error or split"), "truncation truncation_mode truncation_side"),
        (Meaning("data.format"), "dataset_type data_format formatting dataset_format"),
        (
            Meaning("data.fields", "such as text=content"),
            "dataset_text_field text_field text_column prompt_column field",
        ),
        (Meaning("data.function", "file.py:name"), "formatting_func preprocess_fn map_fn"),
        (Meaning("data.limit"), "max_samples max_train_samples num_samples"),
        (
            Meaning("data.workers"),
            "num_proc dataset_num_proc preprocessing_num_workers dataloader_num_workers num_workers",
        ),
        (Meaning("data.weights"), "mixing_weights mixture_weights probs interleave_probs sampling_weights"),
        (Meaning("optimizer.learning_rate"), "lr learning_rate_peak max_lr base_lr peak_lr init_lr"),
        (Meaning("optimizer.schedule"), "lr_scheduler_type lr_scheduler scheduler lr_schedule schedule_type"),
        (
            Meaning("optimizer.warmup_ratio"),
            "warmup warmup_fraction warmup_steps_fraction warmup_proportion lr_warmup_ratio",
        ),
        (Meaning("optimizer.warmup_steps"), "num_warmup_steps lr_warmup_steps warmup_iters"),
        (
            Meaning("optimizer.clip_norm"),
            "max_grad_norm gradient_clip_val grad_clip gradient_clipping_threshold clip_grad gradient_clipping "
            "max_norm clip_grad_norm",
        ),
        (Meaning("optimizer.name"), "optim optimizer_name opt_type optimizer optimizer_type"),
        (Meaning("optimizer.weight_decay"), "wd adam_weight_decay decay"),
        (Meaning("optimizer.b1"), "adam_beta1 beta1 beta_1 adam_b1"),
        (Meaning("optimizer.b2"), "adam_beta2 beta2 beta_2 adam_b2"),
        (Meaning("optimizer.eps"), "adam_epsilon epsilon adam_eps"),
        (Meaning("train.epochs"), "num_train_epochs num_epochs max_epochs n_epochs epoch"),
        (Meaning("train.steps"), "max_steps num_steps total_steps num_train_steps max_iters iters train_steps"),
        (
            Meaning("train.batch_size", _PER_UPDATE),
            "per_device_train_batch_size train_batch_size per_device_batch_size global_batch_size micro_batch_size "
            "per_gpu_train_batch_size bs batch micro_batch_size_per_gpu total_batch_size",
        ),
        (
            Meaning("train.accumulation", _MICRO_BATCHES),
            "gradient_accumulation_steps grad_accum accumulation_steps grad_accumulation accumulate_grad_batches "
            "gradient_accumulation microbatches",
        ),
        (Meaning("train.eval_every"), "eval_steps evaluation_steps eval_interval eval_strategy evaluation_strategy"),
        (Meaning("train.save_every"), "save_steps save_interval checkpoint_period checkpoint_every save_strategy"),
        (Meaning("train.keep_last"), "save_total_limit max_to_keep max_checkpoints keep_checkpoints"),
        (Meaning("train.seed"), "data_seed random_seed init_weights_seed data_shuffle_seed"),
        (Meaning("train.sinks"), "report_to logger tracker log_with"),
        (Meaning("train.trainable"), "unfrozen_parameters freeze freeze_layers trainable_layers finetuning_type"),
        (Meaning("loss.kind"), "loss_type loss_fn task stage"),
        (Meaning("adapter.kind", "lora"), "use_peft use_lora lora peft peft_type adapter"),
        (Meaning("adapter.rank"), "lora_r lora_rank r"),
        (Meaning("adapter.alpha"), "lora_alpha"),
        (Meaning("adapter.targets"), "lora_target_modules target_modules lora_target lora_modules"),
        (Meaning("mesh.tensor"), "tensor_parallel_size tensor_parallel tp ici_tensor_parallelism"),
        (Meaning("mesh.fsdp"), "fsdp_parallel_size ici_fsdp_parallelism deepspeed zero_stage fsdp_config"),
        (Meaning("mesh.data"), "data_parallel_size dp ici_data_parallelism dcn_data_parallelism"),
        (Meaning("mesh.context"), "context_parallel_size sequence_parallel_size cp sp ici_context_parallelism"),
        (Meaning("mesh.expert"), "expert_parallel_size ep ici_expert_parallelism"),
        (Meaning("distributed.processes"), "num_processes nnodes world_size num_machines"),
        (Meaning("distributed.coordinator"), "master_addr coordinator_address main_process_ip master_port"),
        (Meaning("distributed.process_id"), "rank machine_rank node_rank"),
        (Meaning("max_new_tokens"), "max_output_tokens max_gen_len num_predict max_gen_toks"),
        (Meaning("n"), "num_return_sequences num_samples_per_prompt samples"),
        (Meaning("prompts"), "input_file prompt_file inputs"),
        (Meaning("out"), "output output_file save_to out_file"),
        (Meaning("against"), "baseline compare_to reference_model base"),
        (Meaning("reference"), "ref_model ref reference_model_path"),
        (Meaning("check"), "metrics metric checks scoring"),
        (Meaning("topology"), "tpu tpu_type accelerator accelerator_type hardware"),
    )
    for alias in aliases.split()
}
"""Foreign name -> ours; they are those of TRL, transformers, Axolotl, LLaMA-Factory, MaxText, Tunix and levanter."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A hint for a name that is not among ours: the field it means, or those spelled alike.

    Args:
      name: as the user wrote it, perhaps with a section: `--optimizer.lr`, `output_dir`.
      known: our names as they are to be shown: `optimizer.learning_rate`, or `--optimizer.learning-rate`.
    """
    ours = {_plain(one): one for one in known}
    word = _plain(name).rsplit(".", 1)[-1]
    meant = ALIASES.get(word)
    if meant and meant.field in ours:
        note = f" ({meant.note})" if meant.note else ""
        return f"Here it is {ours[meant.field]}{note}."
    same = [shown for plain, shown in ours.items() if plain.rsplit(".", 1)[-1] == word]
    if same:
        return f"Did you mean {' or '.join(same)}?"
    # The whole name first: it has the section that was meant.
    hint = nearest(name, list(known))
    return hint if hint.startswith("Did") else f"Known: {', '.join(known)}." if len(known) <= MOST_LISTED else ""


MOST_LISTED = 20
"""Longer lists of names answer nothing: `--help` shows them in groups."""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
