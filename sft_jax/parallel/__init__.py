"""The mesh (data, fsdp, tensor, context, expert), logical axis rules, and start-up of several processes."""
