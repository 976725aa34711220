"""``qkernels demo``: the whole way on real data, from float training to packed files that another process runs."""
