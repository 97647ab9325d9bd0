"""From annotated files to batches of NumPy arrays; runs in threads, touches no device."""
