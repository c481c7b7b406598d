"""What the commands of the command line do, one module each; `promptq.producer.cli` puts them together."""
