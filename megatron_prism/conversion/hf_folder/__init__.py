"""The weights of a Hugging Face folder: which files hold them, and how tensors are read and written."""
