"""What learner and engines share of a model: files, weights, adapters, filters, ranks, devices."""
