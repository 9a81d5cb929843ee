"""From a folder of audio to checkpoints: manifests, labels, HuBERT pre-training, BiT distillation."""
