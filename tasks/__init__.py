"""What is done with the networks of ``zoo``: one folder a task, one engine for all."""
