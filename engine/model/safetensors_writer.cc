#include "engine/model/safetensors_writer.h"

#include <cerrno>
#include <system_error>

namespace shoal {
namespace {

absl::Status WriteError(const std::string& path) {
  return absl::InternalError(
      fmt::format("{}: cannot be written: {}", path, std::generic_category().message(errno)));
}

}  // namespace

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                            std::span<const TensorInfo> tensors) {
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return WriteError(path);
  SafetensorsWriter writer(path, file, tensors.empty() ? 0 : tensors.back().end);
  const std::string header = FormatSafetensorsHeader(tensors);
  if (std::fwrite(header.data(), 1, header.size(), file) != header.size()) return WriteError(path);
  return writer;
}

absl::Status SafetensorsWriter::Append(std::span<const std::byte> bytes) {
  missing_bytes_ -= static_cast<int64_t>(bytes.size());
  SHOAL_CHECK(missing_bytes_ >= 0, "{} bytes beyond the last tensor", -missing_bytes_);
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) {
    return WriteError(path_);
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Close() {
  SHOAL_CHECK(missing_bytes_ == 0, "{} bytes of data are missing", missing_bytes_);
  if (std::fclose(file_.release()) != 0) return WriteError(path_);
  return absl::OkStatus();
}

}  // namespace shoal
