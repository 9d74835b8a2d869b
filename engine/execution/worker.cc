#include "engine/execution/worker.h"

#include <deque>
#include <new>
#include <system_error>
#include <utility>

#include "engine/model/checkpoint.h"
#include "engine/model/random_weights.h"

namespace shoal {
namespace {

/// A runner, and what its device's memory is for.
struct Loaded {
  std::unique_ptr<ModelRunner> runner;
  MemoryPlan memory_plan;
};

absl::StatusOr<ModelWeights> LoadWeights(const WorkerConfig& config,
                                         const ExpertPlacement& placement, Backend& backend,
                                         const LoadProgress& progress) {
  const ModelRunnerConfig& runner = config.runner;
  if (!config.has_weights) {
    return MakeRandomWeights(runner.model, {}, runner.dtype, placement, backend, progress);
  }
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(config.model_directory));
  return LoadModelWeights(runner.model, *checkpoint, runner.dtype, placement, backend, progress);
}

absl::StatusOr<Loaded> Load(const WorkerConfig& config, const ExpertPlacement& placement,
                            std::unique_ptr<Communicator> communicator,
                            const LoadProgress& progress, Backend& backend) {
  const int rank = communicator == nullptr ? 0 : communicator->rank();
  ASSIGN_OR_RETURN(backend, config.make_backend(rank, std::move(communicator)));
  const ModelRunnerConfig& runner = config.runner;
  RETURN_IF_ERROR(ModelRunner::CheckModel(runner, *backend.ops));
  const int64_t free_bytes = backend.device->FreeBytes();
  ASSIGN_OR_RETURN(const MemoryPlan expected,
                   ModelRunner::PlanMemory(runner, placement, rank, free_bytes));
  if (config.on_memory_plan) config.on_memory_plan(rank, expected);
  ASSIGN_OR_RETURN(ModelWeights weights, LoadWeights(config, placement, backend, progress));
  const int64_t weight_bytes = free_bytes - backend.device->FreeBytes();
  Loaded loaded;
  ASSIGN_OR_RETURN(loaded.runner, ModelRunner::Create(runner, std::move(weights), &backend));
  loaded.memory_plan = loaded.runner->memory_plan();
  loaded.memory_plan.weight_bytes = weight_bytes;
  return loaded;
}

absl::Status ThreadRefused(const std::system_error& error) {
  return absl::ResourceExhaustedError(
      fmt::format("the system refused a thread ({}): lower threads", error.what()));
}

/// Load(), with what the standard library throws for want of memory or threads as a status.
absl::StatusOr<Loaded> LoadOrSayWhy(const WorkerConfig& config, const ExpertPlacement& placement,
                                    std::unique_ptr<Communicator> communicator,
                                    const LoadProgress& progress, Backend& backend) {
  try {
    return Load(config, placement, std::move(communicator), progress, backend);
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
                                                       std::unique_ptr<Communicator> communicator,
                                                       LoadProgress progress) {
  std::unique_ptr<Worker> worker(new Worker);
  std::promise<absl::StatusOr<MemoryPlan>> ready;
  worker->ready_ = ready.get_future();
  // The thread makes all that it uses, so that memory lies near it and nobody else can touch it.
  auto run = [worker = worker.get(), ready = std::move(ready), config, placement,
              communicator = std::move(communicator), progress = std::move(progress)]() mutable {
    Backend backend;
    auto loaded = LoadOrSayWhy(config, placement, std::move(communicator), progress, backend);
    if (!loaded.ok()) return ready.set_value(std::move(loaded).status());
    ready.set_value(loaded->memory_plan);
    worker->Serve(*loaded->runner);
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
  orders_.Put({.kind = Order::Kind::kEnd});
  thread_.join();
}

void Worker::Post(ScheduledBatch batch) {
  SHOAL_CHECK(num_in_flight_ < kMaxInFlight, "{} batches are in flight", num_in_flight_);
  ++num_in_flight_;
  orders_.Put({.kind = Order::Kind::kRun, .batch = std::move(batch)});
}

void Worker::Ask() {
  SHOAL_CHECK(num_in_flight_ > 0 && !asked_, "{} batches are in flight{}", num_in_flight_,
              asked_ ? ", and the oldest was asked for" : "");
  asked_ = true;
  orders_.Put({.kind = Order::Kind::kCollect});
}

absl::StatusOr<std::vector<SampledRow>> Worker::Take() {
  SHOAL_CHECK(asked_, "no result was asked for");
  asked_ = false;
  --num_in_flight_;
  return results_.Take();
}

/// A step is enqueued as soon as it is posted, also while the one before it runs. The worker waits
/// only when the engine does: whatever it is going to post before that is enqueued by then.
void Worker::Serve(ModelRunner& runner) {
  std::deque<StepInFlight> steps;  // enqueued, their results not given yet
  int num_unasked = 0;             // results that were given before they were asked for
  const auto collect = [&] {
    StepInFlight step = std::move(steps.front());
    steps.pop_front();
    return runner.Collect(std::move(step));
  };
  for (Order order = orders_.Take(); order.kind != Order::Kind::kEnd; order = orders_.Take()) {
    if (order.kind == Order::Kind::kRun) {
      steps.push_back(runner.Enqueue(std::move(order.batch)));
      // A device whose ops are done when they return has nothing to wait for.
      for (; !steps.empty() && steps.front().done(); ++num_unasked) results_.Put(collect());
    } else if (num_unasked > 0) {
      --num_unasked;
    } else {
      results_.Put(collect());
    }
  }
  while (!steps.empty()) collect().IgnoreError();
}

}  // namespace shoal
