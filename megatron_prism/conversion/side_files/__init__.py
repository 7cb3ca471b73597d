"""The files next to the weights of a Hugging Face folder: configs, tokenizer, chat templates, code and licences."""
