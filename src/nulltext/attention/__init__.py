"""Attention control: reaching a UNet's attention, and what Prompt-to-Prompt does there."""
