"""What answers prompts: modules by vendor, the only places that import one."""
