// SafetensorsWriter: writes a safetensors file front to back.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>

#include "engine/model/safetensors.h"

namespace shoal {

/// A file being written. Thread: one.
class SafetensorsWriter {
 public:
  /// Replaces the file and writes its header. The ranges of `tensors` follow each other from 0.
  /// INTERNAL with the path and the system's reason, as from every method.
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path,
                                                  std::span<const TensorInfo> tensors);

  /// Appends data, in the order of the tensors, in pieces of any size.
  absl::Status Append(std::span<const std::byte> bytes);

  /// Must follow the last byte of data.
  absl::Status Close();

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  SafetensorsWriter(const std::string& path, std::FILE* file, int64_t data_bytes)
      : path_(path), file_(file), missing_bytes_(data_bytes) {}

  std::string path_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  int64_t missing_bytes_;
};

}  // namespace shoal
