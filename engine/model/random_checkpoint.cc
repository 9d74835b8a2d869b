#include "engine/model/random_checkpoint.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numbers>
#include <span>
#include <vector>

#include "engine/model/checkpoint_layout.h"
#include "engine/model/json_file.h"
#include "engine/model/safetensors_writer.h"

namespace shoal {
namespace {

constexpr int kNumQuantiles = 1 << 16;
constexpr int64_t kChunkBytes = 4 << 20;
constexpr char kIndexFile[] = "model.safetensors.index.json";

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that scatters counters.
uint64_t Scatter(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// FNV-1a.
uint64_t HashName(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

/// The middles of kNumQuantiles equally likely parts of the standard normal distribution, rising.
/// Drawing one of them at random is drawing from that distribution, and far cheaper.
std::vector<double> NormalQuantiles() {
  std::vector<double> quantiles(kNumQuantiles);
  double z = 0;
  for (int i = kNumQuantiles / 2; i < kNumQuantiles; ++i) {
    const double upper_tail = 1 - (i + 0.5) / kNumQuantiles;
    // Newton's method from the quantile before, on a convex stretch: it converges from the left.
    for (int step = 0; step < 5; ++step) {
      const double error = 0.5 * std::erfc(z / std::numbers::sqrt2) - upper_tail;
      z += error * std::sqrt(2 * std::numbers::pi) * std::exp(0.5 * z * z);
    }
    quantiles[i] = z;
    quantiles[kNumQuantiles - 1 - i] = -z;
  }
  return quantiles;
}

/// `value` rounded to an IEEE half, as its bits; nearest, ties to even.
uint16_t HalfBits(float value) {
  const uint32_t raw = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(raw >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7c00u;
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    return sign | static_cast<uint16_t>(std::lrint(magnitude * 0x1p24f));
  }
  const uint32_t bits = raw & 0x7fffffffu;
  const uint32_t rounded = bits + 0xfffu + (bits >> 13 & 1u);
  return sign | static_cast<uint16_t>((rounded >> 13) - (112u << 10));
}

/// Random elements of one dtype and distribution, by counter: element i of a tensor depends on the
/// tensor's key and i alone.
class NormalSource {
 public:
  NormalSource(std::span<const double> quantiles, DType dtype, double mean, double deviation)
      : dtype_(dtype) {
    for (double quantile : quantiles) {
      const auto value = static_cast<float>(mean + deviation * quantile);
      if (dtype == DType::kFloat32) {
        words_.push_back(std::bit_cast<uint32_t>(value));
      } else {
        halves_.push_back(dtype == DType::kBFloat16 ? BFloat16(value).bits : HalfBits(value));
      }
    }
  }

  /// Elements first, first + 1, ... of a tensor; `first` is a multiple of 4.
  void Fill(uint64_t key, int64_t first, std::span<std::byte> out) const {
    if (dtype_ == DType::kFloat32) {
      FillFrom(words_, key, first, out);
    } else {
      FillFrom(halves_, key, first, out);
    }
  }

 private:
  template <typename Element>
  static void FillFrom(const std::vector<Element>& table, uint64_t key, int64_t first,
                       std::span<std::byte> out) {
    constexpr size_t kPerDraw = 4;  // 16 bits of each 64 choose a quantile
    constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
    const auto draw_at = [&](size_t index) {
      const uint64_t draw =
          Scatter(key + kStep * (static_cast<uint64_t>(first) / kPerDraw + index));
      return std::array{table[draw & 0xffff], table[draw >> 16 & 0xffff],
                        table[draw >> 32 & 0xffff], table[draw >> 48]};
    };
    constexpr size_t kDrawBytes = kPerDraw * sizeof(Element);
    const size_t num_whole = out.size() / kDrawBytes;
    for (size_t i = 0; i < num_whole; ++i) {
      const auto elements = draw_at(i);
      std::memcpy(&out[i * kDrawBytes], elements.data(), kDrawBytes);
    }
    if (const size_t rest = out.size() % kDrawBytes; rest > 0) {
      const auto elements = draw_at(num_whole);
      std::memcpy(&out[num_whole * kDrawBytes], elements.data(), rest);
    }
  }

  const DType dtype_;
  std::vector<uint32_t> words_;   // the quantiles' bits, if dtype is float32
  std::vector<uint16_t> halves_;  // otherwise
};

/// The tensors of one file.
struct Shard {
  std::string file;
  std::vector<TensorInfo> tensors;
};

/// Divides the layout, in order, into shards of at most `max_shard_bytes` bytes of data, or of one
/// tensor if that is larger.
std::vector<Shard> DivideIntoShards(const ModelConfig& config, int64_t max_shard_bytes) {
  std::vector<Shard> shards(1);
  for (TensorSpec& spec : CheckpointLayout(config)) {
    TensorInfo tensor = {std::move(spec.name), config.torch_dtype, std::move(spec.shape)};
    int64_t bytes = SizeOf(tensor.dtype);
    for (int64_t dim : tensor.shape) bytes *= dim;
    std::vector<TensorInfo>* last = &shards.back().tensors;
    if (!last->empty() && last->back().end + bytes > max_shard_bytes) {
      last = &shards.emplace_back().tensors;
    }
    tensor.begin = last->empty() ? 0 : last->back().end;
    tensor.end = tensor.begin + bytes;
    last->push_back(std::move(tensor));
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].file = shards.size() == 1
                         ? "model.safetensors"
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  }
  return shards;
}

std::string FormatIndex(const std::vector<Shard>& shards) {
  int64_t total_bytes = 0;
  nlohmann::json weight_map = nlohmann::json::object();
  for (const Shard& shard : shards) {
    total_bytes += shard.tensors.back().end;
    for (const TensorInfo& tensor : shard.tensors) weight_map[tensor.name] = shard.file;
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}},
                                {"weight_map", std::move(weight_map)}};
  return index.dump(2) + "\n";
}

std::string FormatGenerationConfig(const ModelConfig& config) {
  nlohmann::ordered_json object = {{"_from_model_config", true}};
  if (config.bos_token_id >= 0) object["bos_token_id"] = config.bos_token_id;
  if (config.eos_token_id >= 0) object["eos_token_id"] = config.eos_token_id;
  return object.dump(2) + "\n";
}

/// Files are written under another name first: whoever reads the directory sees whole files.
std::string TemporaryPath(const std::string& path) { return path + ".tmp"; }

absl::Status RenameToFinal(const std::string& path) {
  std::error_code error;
  std::filesystem::rename(TemporaryPath(path), path, error);
  if (!error) return absl::OkStatus();
  return absl::InternalError(fmt::format("{}: cannot be written: {}", path, error.message()));
}

absl::Status WriteTextFile(const std::string& path, const std::string& text) {
  std::ofstream file(TemporaryPath(path), std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) return absl::InternalError(fmt::format("{}: cannot be written", path));
  return RenameToFinal(path);
}

/// Removes the config, weights and index of a former checkpoint, which would be taken for parts of
/// the new one.
absl::Status RemoveCheckpoint(const std::string& directory) {
  std::error_code error;
  std::vector<std::filesystem::path> stale;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename();
    const bool is_weights = name.starts_with("model") && name.ends_with(".safetensors");
    if (is_weights || name == "config.json" || name == kIndexFile) stale.push_back(entry.path());
  }
  for (const auto& path : stale) {
    if (!error) std::filesystem::remove(path, error);
  }
  if (!error) return absl::OkStatus();
  return absl::InternalError(
      fmt::format("{}: the old checkpoint cannot be removed: {}", directory, error.message()));
}

/// Writes the shards one after the other.
class ShardWriter {
 public:
  ShardWriter(const ModelConfig& config, uint64_t seed, const LoadProgress& progress)
      : seed_(seed),
        progress_(progress),
        total_bytes_(config.num_parameters() * SizeOf(config.torch_dtype)),
        norms_(quantiles_, config.torch_dtype, 1, config.initializer_range),
        others_(quantiles_, config.torch_dtype, 0, config.initializer_range) {}

  absl::Status Write(const std::string& directory, const Shard& shard) {
    const std::string path = directory + "/" + shard.file;
    ASSIGN_OR_RETURN(SafetensorsWriter writer,
                     SafetensorsWriter::Create(TemporaryPath(path), shard.tensors));
    for (const TensorInfo& tensor : shard.tensors) RETURN_IF_ERROR(Append(tensor, writer));
    RETURN_IF_ERROR(writer.Close());
    return RenameToFinal(path);
  }

 private:
  absl::Status Append(const TensorInfo& tensor, SafetensorsWriter& writer) {
    const NormalSource& source = tensor.name.ends_with("norm.weight") ? norms_ : others_;
    const uint64_t key = Scatter(HashName(tensor.name) ^ Scatter(seed_));
    const int64_t bytes = tensor.end - tensor.begin;
    for (int64_t at = 0; at < bytes; at += kChunkBytes) {
      const auto count = static_cast<size_t>(std::min(kChunkBytes, bytes - at));
      const std::span chunk = std::span(buffer_).first(count);
      source.Fill(key, at / SizeOf(tensor.dtype), chunk);
      RETURN_IF_ERROR(writer.Append(chunk));
      done_bytes_ += static_cast<int64_t>(count);
      if (progress_) progress_(done_bytes_, total_bytes_);
    }
    return absl::OkStatus();
  }

  const uint64_t seed_;
  const LoadProgress& progress_;
  const int64_t total_bytes_;
  const std::vector<double> quantiles_ = NormalQuantiles();
  const NormalSource norms_;
  const NormalSource others_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kChunkBytes);
  int64_t done_bytes_ = 0;
};

}  // namespace

absl::Status WriteRandomCheckpoint(const ModelConfig& config, uint64_t seed,
                                   int64_t max_shard_bytes, const std::string& directory,
                                   const LoadProgress& progress) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) {
    return absl::InternalError(
        fmt::format("{}: cannot be made a directory: {}", directory, error.message()));
  }
  RETURN_IF_ERROR(RemoveCheckpoint(directory));
  const std::vector<Shard> shards = DivideIntoShards(config, max_shard_bytes);
  ShardWriter writer(config, seed, progress);
  for (const Shard& shard : shards) RETURN_IF_ERROR(writer.Write(directory, shard));
  if (shards.size() > 1) {
    RETURN_IF_ERROR(WriteTextFile(directory + "/" + kIndexFile, FormatIndex(shards)));
  }
  RETURN_IF_ERROR(
      WriteTextFile(directory + "/generation_config.json", FormatGenerationConfig(config)));
  return WriteTextFile(directory + "/config.json", FormatModelConfig(config));
}

}  // namespace shoal
