"""What a run will need of memory, measured on a thin slice of its model, and what this machine has."""
