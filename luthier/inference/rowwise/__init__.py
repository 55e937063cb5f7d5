"""What a network does to each token by itself besides products, by kernels for CPUs."""
