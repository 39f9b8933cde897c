from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.handoff.artefact import describe_handoff


def test_the_artefact_names_what_an_rl_run_needs(tokenizer):
    about = describe_handoff(
        tokenizer, (257,), "ab", "checkpoints/3", "model", RenderOptions(template_kwargs=("enable_thinking=false",))
    )
    assert about["template_kwargs"] == {"enable_thinking": False}
    assert about["stop_tokens"] == ["<|im_end|>"] and about["stop_token_ids"] == [257]
    assert about["chat_template"] == tokenizer.chat_template and about["weights_fingerprint"] == "ab"
