"""What the supervisor answers of the Open Inference Protocol: statistics, the repository, trace and log settings."""
