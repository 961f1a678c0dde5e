"""The worker's side beside the C core: attaching, starting the sender, topics, completions."""
