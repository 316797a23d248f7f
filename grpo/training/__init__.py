"""One step of training: who samples when, a batch on its way, delivery of weights, the loop."""
