"""RULER (Hsieh et al. 2024, arXiv 2404.06654): its 13 long-context tasks, generated at any length for any tokenizer."""
