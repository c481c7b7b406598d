"""What answers prompts: one module per vendor, the only places that import one."""
