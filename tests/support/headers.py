"""Tensors by which files of the original layout are known: name and shape."""

UNET = {"model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3)}
VAE = {"first_stage_model.encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3)}
SD1 = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (9, 8)}
