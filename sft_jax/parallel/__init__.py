"""The mesh (data, fsdp, tensor, context, expert) and the logical axis rules."""
