// Checkpoint: the weights of a model directory, mapped into memory.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "kernels/tensor.h"

namespace shoal {

/// The tensors of a checkpoint directory: model.safetensors.index.json and its shards, or the
/// single model.safetensors. With an index, its weight_map says which tensors there are. Files stay
/// mapped for the life of the object, and must not be cut meanwhile. Thread: any, once opened.
class Checkpoint {
 public:
  /// Views into the mapped files by name; read only.
  using Tensors = std::map<std::string, Tensor, std::less<>>;

  /// NOT_FOUND names the missing file; INVALID_ARGUMENT the file and what is wrong with it.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  /// A view into the mapped file; read only. NOT_FOUND if absent; INVALID_ARGUMENT, with both
  /// shapes, if its shape is not `shape`.
  absl::StatusOr<Tensor> Get(std::string_view name, std::span<const int64_t> shape) const;
  const Tensors& tensors() const { return tensors_; }

  /// Starts reading a tensor from disk, so that it is in memory when it is used.
  static void Prefetch(const Tensor& tensor);

 private:
  Checkpoint() = default;
  absl::Status OpenShards(const std::string& directory, const std::string& index_path);
  absl::StatusOr<Tensors> MapFile(const std::string& path);

  std::vector<std::shared_ptr<void>> mappings_;
  Tensors tensors_;
};

}  // namespace shoal
