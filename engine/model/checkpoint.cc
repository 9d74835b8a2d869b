#include "engine/model/checkpoint.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "engine/model/json_file.h"
#include "engine/model/safetensors.h"

namespace shoal {
namespace {

constexpr int64_t kMaxIndexBytes = 64 << 20;

using ShardNames = std::map<std::string, std::vector<std::string>>;

/// The tensor names of each shard, from model.safetensors.index.json.
absl::StatusOr<ShardNames> ParseIndex(const std::string& text) {
  ASSIGN_OR_RETURN(const nlohmann::json index, ParseJsonObject(text));
  const auto weight_map = index.find("weight_map");
  if (weight_map == index.end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError("weight_map is missing or not an object");
  }
  ShardNames shards;
  for (const auto& [name, file] : weight_map->items()) {
    const std::string shard = file.is_string() ? file.get<std::string>() : "";
    // A plain name: a checkpoint must not reach outside of its own directory.
    if (shard.empty() || shard == "." || shard == ".." ||
        shard.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      return absl::InvalidArgumentError(
          fmt::format("weight_map[{}] is {}, expected the name of a file beside the index",
                      Shown(name), Shown(file)));
    }
    shards[shard].push_back(name);
  }
  return shards;
}

absl::Status FileError(const std::string& path, int error) {
  const std::string reason = std::generic_category().message(error);
  if (error == ENOENT) return absl::NotFoundError(fmt::format("{}: no such file", path));
  return absl::InvalidArgumentError(fmt::format("{}: cannot be read: {}", path, reason));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  const std::string index_path = directory + "/model.safetensors.index.json";
  const std::string single_path = directory + "/model.safetensors";
  std::error_code error;
  if (std::filesystem::exists(index_path, error)) {
    RETURN_IF_ERROR(checkpoint->OpenShards(directory, index_path));
  } else if (std::filesystem::exists(single_path, error)) {
    ASSIGN_OR_RETURN(checkpoint->tensors_, checkpoint->MapFile(single_path));
  } else {
    return absl::NotFoundError(fmt::format(
        "{}: neither model.safetensors.index.json nor model.safetensors is there", directory));
  }
  return checkpoint;
}

absl::StatusOr<Tensor> Checkpoint::Get(std::string_view name,
                                       std::span<const int64_t> shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    return absl::NotFoundError(fmt::format("tensor {} is missing from the checkpoint", name));
  }
  const Tensor& tensor = found->second;
  const std::span<const int64_t> actual(tensor.shape.data(), static_cast<size_t>(tensor.rank));
  if (!std::ranges::equal(actual, shape)) {
    return absl::InvalidArgumentError(fmt::format("tensor {} has shape [{}], expected [{}]", name,
                                                  fmt::join(actual, ", "), fmt::join(shape, ", ")));
  }
  return tensor;
}

void Checkpoint::Prefetch(const Tensor& tensor) {
  const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data);
  const uintptr_t page = begin / page_bytes * page_bytes;
  const size_t bytes = begin - page + static_cast<size_t>(tensor.size_bytes());
  madvise(reinterpret_cast<void*>(page), bytes, MADV_WILLNEED);  // advice only: may fail
}

absl::Status Checkpoint::OpenShards(const std::string& directory, const std::string& index_path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(index_path, kMaxIndexBytes));
  absl::StatusOr<ShardNames> shards = ParseIndex(text);
  if (!shards.ok()) return AtPath(index_path, shards.status());
  for (const auto& [file, names] : *shards) {
    const std::string path = directory + "/" + file;
    ASSIGN_OR_RETURN(const Tensors tensors, MapFile(path));
    for (const std::string& name : names) {
      const auto found = tensors.find(name);
      if (found == tensors.end()) {
        return absl::InvalidArgumentError(
            fmt::format("{}: tensor {} is not in it, but the index says so", path, Shown(name)));
      }
      tensors_.insert(*found);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Checkpoint::Tensors> Checkpoint::MapFile(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return FileError(path, errno);
  const std::shared_ptr<const void> closer(nullptr, [file](const void*) { close(file); });
  struct stat status = {};
  if (fstat(file, &status) != 0) return FileError(path, errno);
  if (!S_ISREG(status.st_mode) || status.st_size == 0) {
    return absl::InvalidArgumentError(fmt::format("{}: empty or not a regular file", path));
  }
  const auto size = static_cast<size_t>(status.st_size);
  void* const data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  if (data == MAP_FAILED) return FileError(path, errno);
  mappings_.emplace_back(data, [size](void* mapping) { munmap(mapping, size); });

  const std::span bytes(static_cast<const std::byte*>(data), size);
  absl::StatusOr<std::vector<TensorInfo>> infos = ParseSafetensorsHeader(bytes, status.st_size);
  if (!infos.ok()) return AtPath(path, infos.status());
  Tensors tensors;
  // The tensors fill the file's end, so the first byte of data follows from their sum.
  auto* const first =
      static_cast<std::byte*>(data) + status.st_size - (infos->empty() ? 0 : infos->back().end);
  for (const TensorInfo& info : *infos) {
    tensors.emplace(info.name, Tensor(first + info.begin, info.dtype, info.shape));
  }
  return tensors;
}

}  // namespace shoal
