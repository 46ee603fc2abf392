"""A property-testing kit for code of one's own: backends, activations, losses, optimizers, strategies, quantizers.

    strategies   Hypothesis strategies for networks, parameters, batches, keys, masks, quantized arrays, layouts
    oracles      checks against differences, error bounds, bits, and across backends
    suites       the laws, as classes whose checks pytest runs on whatever a fixture gives
    machine      a model's life in any order of search, descent, pruning, quantization, saving and loading

It needs Hypothesis and, to run suites as tests, pytest. ``minimodel check NAME`` runs a suite without pytest.

What is promised across backends, which checks name as tiers:

    exact   random bits, uniforms, permutations; masks from equal weights; integers from equal weights and scales;
            inference in integers: bit for bit, on every backend and machine
    ulp     one transcendental function (exp, the inverse error function): at most 4 representable numbers apart
    step    one forward pass, gradient or update at full precision: within the bound γ_k·(|A||B|) of its products; in
            practice a relative 1e-5, or 1e-6 of the largest number or of 1
    run     a whole training: the same final loss within noise, never the same bits

On one backend, one machine and one number of threads the same seed gives the same bits, run after run.
"""
