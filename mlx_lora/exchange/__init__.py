"""Adapters and models in other programs' formats: PEFT, GGUF, Ollama. Commands choose; nothing here talks."""
