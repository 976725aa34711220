#pragma once
#include <optional>
#include <torch/csrc/stable/tensor.h>

namespace qk {

// y [M, n] = x w^T + bias, of x's dtype; x [M, k].
torch::stable::Tensor lut_linear(torch::stable::Tensor x, torch::stable::Tensor codes, torch::stable::Tensor levels,
                                 torch::stable::Tensor scale, std::optional<torch::stable::Tensor> bias, int64_t bits,
                                 int64_t group_size, int64_t n, int64_t k);

}  // namespace qk
