"""The server: requests to rows of a running batch, and their tokens to OpenAI's answers."""
