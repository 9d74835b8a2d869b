#include "engine/execution/worker.h"

#include <new>
#include <system_error>
#include <utility>

#include "engine/model/checkpoint.h"

namespace shoal {
namespace {

absl::StatusOr<std::unique_ptr<ModelRunner>> Load(const WorkerConfig& config,
                                                  const ExpertPlacement& placement,
                                                  WorkerShare& share, const LoadProgress& progress,
                                                  Backend& backend) {
  ASSIGN_OR_RETURN(backend, MakeCpuBackend(share.backend, std::move(share.communicator)));
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(config.model_directory));
  const ModelRunnerConfig& runner = config.runner;
  ASSIGN_OR_RETURN(ModelWeights weights, LoadModelWeights(runner.model, *checkpoint, runner.dtype,
                                                          placement, backend, progress));
  return ModelRunner::Create(runner, std::move(weights), &backend);
}

absl::Status ThreadRefused(const std::system_error& error) {
  return absl::ResourceExhaustedError(
      fmt::format("the system refused a thread ({}): lower threads", error.what()));
}

/// Load(), with what the standard library throws for want of memory or threads as a status.
absl::StatusOr<std::unique_ptr<ModelRunner>> LoadRunner(const WorkerConfig& config,
                                                        const ExpertPlacement& placement,
                                                        WorkerShare& share,
                                                        const LoadProgress& progress,
                                                        Backend& backend) {
  try {
    return Load(config, placement, share, progress, backend);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        "the system has too little memory for the model: lower max_model_len or "
        "max_num_batched_tokens");
  } catch (const std::system_error& error) {
    return ThreadRefused(error);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Worker>> Worker::Launch(const WorkerConfig& config,
                                                       const ExpertPlacement& placement,
                                                       WorkerShare share, LoadProgress progress) {
  std::unique_ptr<Worker> worker(new Worker);
  std::promise<absl::StatusOr<int32_t>> ready;
  worker->ready_ = ready.get_future();
  // The thread makes all that it uses, so that memory lies near it and nobody else can touch it.
  auto run = [worker = worker.get(), ready = std::move(ready), config, placement,
              share = std::move(share), progress = std::move(progress)]() mutable {
    Backend backend;
    auto runner = LoadRunner(config, placement, share, progress, backend);
    if (!runner.ok()) return ready.set_value(std::move(runner).status());
    ready.set_value((*runner)->num_kv_blocks());
    worker->Serve(**runner);
  };
  try {
    worker->thread_ = std::thread(std::move(run));
  } catch (const std::system_error& error) {
    return ThreadRefused(error);
  }
  return worker;
}

Worker::~Worker() {
  if (!thread_.joinable()) return;  // it was refused
  batches_.Put(std::nullopt);
  thread_.join();
}

void Worker::Post(ScheduledBatch batch) {
  SHOAL_CHECK(num_in_flight_ < kMaxInFlight, "{} batches are in flight", num_in_flight_);
  ++num_in_flight_;
  batches_.Put(std::move(batch));
}

absl::StatusOr<std::vector<SampledRow>> Worker::Take() {
  SHOAL_CHECK(num_in_flight_ > 0, "no batch is in flight");
  --num_in_flight_;
  return results_.Take();
}

void Worker::Serve(ModelRunner& runner) {
  while (std::optional<ScheduledBatch> batch = batches_.Take()) results_.Put(runner.Run(*batch));
}

}  // namespace shoal
