"""Post-training quantization of an exported Hugging Face folder through NVIDIA ModelOpt."""
