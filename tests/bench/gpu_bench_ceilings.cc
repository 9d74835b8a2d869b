#include <fmt/format.h>

#include "tests/bench/gpu_bench_commands.h"
#include "tests/bench/gpu_bench_cublas.h"
#include "tests/bench/gpu_bench_device.h"

namespace shoal::bench {
namespace {

constexpr int kWarmUps = 10;  // half a second or so

std::string Mebibytes(int64_t bytes) {
  return fmt::format("{:g} MiB", static_cast<double>(bytes) / static_cast<double>(1 << 20));
}

void MeasureBandwidth(const Scale& scale, Gpu& gpu, Ceilings& ceilings, Report& report) {
  const int64_t bytes = scale.buffer_bytes;
  const Tensor from = gpu.Random(DType::kBFloat16, {bytes / 2});
  const Tensor to = gpu.Allocate(DType::kBFloat16, {bytes / 2});
  const auto enqueue_copy = [&] {
    Check(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice, gpu.stream()),
          "cudaMemcpyAsync");
  };
  // The clocks of an idle device take a while to rise.
  for (int i = 0; i < kWarmUps; ++i) gpu.MedianSeconds(enqueue_copy);
  const double copy = gpu.MedianSeconds(enqueue_copy);
  ceilings.copy_bytes_per_second = 2 * static_cast<double>(bytes) / copy;
  report.SetCeilings(ceilings);
  report.Add({.name = "copy",
              .shape = Mebibytes(bytes),
              .seconds = copy,
              .bytes = 2 * static_cast<double>(bytes)});

  ReadArgs args = {
      .data = from.data, .bytes = bytes, .num_blocks = 4 * gpu.machine().num_multiprocessors};
  args.sums = gpu.Allocate(DType::kInt32, {int64_t{args.num_blocks} * kReadThreads}).as<uint32_t>();
  const double read = gpu.MedianSeconds([&] { ReadMemory(args, gpu.stream()); });
  ceilings.read_bytes_per_second = static_cast<double>(bytes) / read;
  report.SetCeilings(ceilings);
  report.Add({.name = "read",
              .shape = Mebibytes(bytes),
              .seconds = read,
              .bytes = static_cast<double>(bytes)});
}

void MeasureMatmul(const Scale& scale, Gpu& gpu, Ceilings& ceilings, Report& report) {
  const int64_t n = scale.matmul_size;
  Row row = {.name = "matmul of cuBLASLt", .shape = fmt::format("{0}x{0}x{0}", n)};
  const Tensor workspace = gpu.Allocate(DType::kByte, {VendorMatmul::kWorkspaceBytes});
  const auto matmul = VendorMatmul::Create(n, workspace.data);
  if (!matmul.ok()) {
    row.note = fmt::format("skipped: {}", std::string(matmul.status().message()));
    return report.Add(std::move(row));
  }
  const Tensor a = gpu.Random(DType::kBFloat16, {n, n}), b = gpu.Random(DType::kBFloat16, {n, n});
  const Tensor out = gpu.Allocate(DType::kBFloat16, {n, n});
  absl::Status status;
  row.seconds = gpu.MedianSeconds(
      [&] { status.Update((*matmul)->Enqueue(a.data, b.data, out.data, gpu.stream())); });
  if (!status.ok()) {
    row.seconds = 0;
    row.note = fmt::format("skipped: {}", std::string(status.message()));
    return report.Add(std::move(row));
  }
  row.flops = 2 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  ceilings.matmul_flops_per_second = row.flops / row.seconds;
  report.SetCeilings(ceilings);
  report.Add(std::move(row));
}

/// What a kernel that waits for the one before it adds at least, in a replay and launched by hand.
void MeasureGap(const Scale& scale, Gpu& gpu, Report& report) {
  const Tensor counter = gpu.Allocate(DType::kInt32, {1});
  const auto chain = [&] {
    for (int i = 0; i < scale.chain_length; ++i) Increment(counter.as<int32_t>(), gpu.stream());
  };
  const std::string shape = fmt::format("chain of {}", scale.chain_length);
  const char* const name = "graph gap per kernel";
  report.Add({.name = name,
              .shape = shape,
              .seconds = gpu.MedianRecordedSeconds(chain) / scale.chain_length,
              .target = TargetOf(scale, name, shape)});
  report.Add({.name = "launch gap per kernel",
              .shape = shape,
              .seconds = gpu.MedianSeconds(chain) / scale.chain_length});
}

}  // namespace

void MeasureCeilings(const Scale& scale, Gpu& gpu, Report& report) {
  Ceilings ceilings;
  MeasureBandwidth(scale, gpu, ceilings, report);
  MeasureMatmul(scale, gpu, ceilings, report);
  MeasureGap(scale, gpu, report);
}

}  // namespace shoal::bench
