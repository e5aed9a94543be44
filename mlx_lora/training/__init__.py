"""The forward, the steps and the run. The engine gives the plain gradients from less work."""
