"""Other people's formats: Hugging Face directories (safetensors) and GGUF; one name table a family, read both ways."""
