"""A property-testing kit for code of one's own: backends, activations, losses, optimizers, strategies, quantizers.

    strategies   Hypothesis strategies for networks, parameters, batches, keys, masks, quantized arrays, layouts
    oracles      checks against differences, error bounds, bits, and across backends
    suites       the laws, as classes whose checks pytest runs on whatever a fixture gives
    machine      a model's life in any order of search, descent, pruning, quantization, saving and loading

It needs Hypothesis and, to run suites as tests, pytest. ``minimodel check NAME`` runs a suite without pytest.
"""
