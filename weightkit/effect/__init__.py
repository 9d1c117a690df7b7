"""Effect: what a change of the weights does to what a model says."""
