"""The chat: a conversation with the base or an adapter. May import dataset, lora and model."""
