"""What is explained: inputs, targets, baselines, features, paths and masked inputs."""
