"""The hyperparameters of a training, by what they are about; ``training_options`` has them all."""
