#include "server/serve_command.h"

#include <pthread.h>
#include <signal.h>

#include <cstdlib>
#include <ctime>
#include <future>

#include "server/http/admin_routes.h"
#include "server/http/openai_routes.h"
#include "server/log.h"
#include "server/progress_line.h"
#include "server/served_model.h"

namespace shoal {
namespace {

constexpr char kDefaultModelName[] = "shoal";
constexpr std::chrono::milliseconds kHealthInterval{500};
constexpr std::chrono::seconds kFlushTimeout{5};  // for responses whose generation has ended

/// SIGTERM and SIGINT, taken by waiting and not by handlers.
class StopSignals {
 public:
  /// Blocks the signals in this thread and in those that it starts.
  StopSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  /// From now on they end the process at once, as they do by default.
  void Release() { pthread_sigmask(SIG_UNBLOCK, &set_, nullptr); }

  /// False: none within `timeout`.
  bool WaitFor(std::chrono::milliseconds timeout) {
    const timespec duration{timeout.count() / 1000, timeout.count() % 1000 * 1'000'000};
    return sigtimedwait(&set_, nullptr, &duration) > 0;
  }

 private:
  sigset_t set_;
};

std::vector<std::string> ModelNames(const ServerConfig& config) {
  if (!config.served_model_names.empty()) return config.served_model_names;
  if (config.engine.model_directory.empty()) return {kDefaultModelName};
  return {config.engine.model_directory};
}

FairShare FairShareOf(const std::string& word) {
  if (word == "off") return FairShare::kOff;
  return word == "user" ? FairShare::kUser : FairShare::kKey;
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

/// The server process: what lives from start to end, in the order of need.
class ServeProcess {
 public:
  explicit ServeProcess(const ServerConfig& config)
      : config_(config), names_(ModelNames(config)), metrics_(names_.front()) {}

  absl::Status Run() {
    RETURN_IF_ERROR(Listen());
    RETURN_IF_ERROR(LoadModel());
    BeginService();
    const absl::Status health = WaitForEnd();
    Drain();
    return health;
  }

 private:
  absl::Status Listen();
  absl::Status LoadModel();
  absl::StatusOr<std::unique_ptr<ServedModel>> LoadInBackground(EngineConfig engine);
  void BeginService();
  /// Returns at a signal with OK, or when the engine fails, with the reason.
  absl::Status WaitForEnd();
  void Drain();
  void LogRequest(const HttpRequest& request, std::string_view route, int status, double seconds,
                  std::string_view error);
  std::vector<HttpRoute> Routes(std::vector<HttpRoute> rest) const;

  const ServerConfig& config_;
  const std::vector<std::string> names_;
  StopSignals signals_;  // before the first thread
  Readiness readiness_;
  Metrics metrics_;
  std::unique_ptr<TemporaryDirectory> temporary_;  // of the default model, while it loads
  std::unique_ptr<ServedModel> model_;
  std::unique_ptr<HttpServer> server_;
};

absl::Status ServeProcess::Listen() {
  ASSIGN_OR_RETURN(
      server_, HttpServer::Start(config_.http, Routes(LoadingRoutes(&readiness_)),
                                 [this](const HttpRequest& request, std::string_view route,
                                        int status, double seconds, std::string_view error) {
                                   metrics_.OnHttpRequest(route, request.method, status, seconds);
                                   LogRequest(request, route, status, seconds, error);
                                 }));
  LogInfo("listening", {{"host", config_.http.host},
                        {"port", server_->port()},
                        {"version", SHOAL_VERSION},
                        {"api_keys", config_.http.api_keys.size()}});
  if (config_.http.api_keys.empty() && !IsLoopback(config_.http.host)) {
    LogWarning("anybody who can reach this address can use the server: no --api-key is set",
               {{"host", config_.http.host}});
  }
  return absl::OkStatus();
}

absl::Status ServeProcess::LoadModel() {
  EngineConfig engine = config_.engine;
  if (engine.model_directory.empty()) {
    LogWarning(
        "no --model is given: serving a tiny model with random weights, its output is noise");
    ASSIGN_OR_RETURN(temporary_, TemporaryDirectory::Create());
    engine.model_directory = temporary_->path();
    // Not in the background: a signal removes the directory, and nobody may then write to it.
    readiness_.SetProgress("making random weights", 0);
    RETURN_IF_ERROR(WriteDefaultModel(engine.model_directory));
  }
  auto loading = std::async(std::launch::async, [&] { return LoadInBackground(engine); });
  while (loading.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    if (signals_.WaitFor(std::chrono::milliseconds(50))) {
      LogInfo("stopped while loading");
      temporary_.reset();
      std::_Exit(0);  // a load cannot be interrupted, and nobody is served yet
    }
  }
  ASSIGN_OR_RETURN(model_, loading.get());
  LogInfo("device", {{"device", model_->engine->device()}});
  for (const MemoryPlan& plan : model_->engine->memory_plans()) {
    LogInfo("memory taken", {{"plan", Describe(plan)}});
  }
  temporary_.reset();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ServedModel>> ServeProcess::LoadInBackground(EngineConfig engine) {
  ProgressLine line([](std::string_view phase, int percent) {
    LogInfo("loading", {{"phase", phase}, {"percent", percent}});
  });
  const GenerationService::Options options = {.seed = config_.seed,
                                              .fair_share = FairShareOf(config_.fair_share)};
  return ServedModel::Load(engine, options, &metrics_, [&](const LoadStatus& status) {
    readiness_.SetProgress(status.phase, status.fraction);
    line.Update(status.phase, status.fraction);
    if (!status.memory_plan.empty()) LogInfo("memory needed", {{"plan", status.memory_plan}});
  });
}

void ServeProcess::BeginService() {
  Engine* const engine = model_->engine.get();
  metrics_.SetEngine([engine] { return engine->Stats(); }, config_.engine.block_size);
  OpenAiOptions options;
  options.served_model_names = names_;
  options.created = std::time(nullptr);
  options.system_fingerprint = "shoal-" SHOAL_VERSION;
  options.request_timeout = std::chrono::milliseconds(config_.request_timeout_ms);
  std::vector<HttpRoute> routes = OpenAiRoutes(model_->service.get(), options);
  for (HttpRoute& route : EngineRoutes(engine)) routes.push_back(std::move(route));
  server_->SetRoutes(Routes(std::move(routes)));
  readiness_.SetReady();
  const ModelConfig& model = engine->model_config();
  LogInfo("ready", {{"model", names_.front()},
                    {"url", fmt::format("http://{}:{}/v1", config_.http.host, server_->port())},
                    {"parameters", model.num_parameters()},
                    {"max_model_len", engine->max_model_len()},
                    {"ranks", config_.engine.expert_parallel},
                    {"kv_blocks", engine->Stats().AllBlocks().num_blocks},
                    {"random_weights", config_.engine.model_directory.empty()}});
}

absl::Status ServeProcess::WaitForEnd() {
  while (!signals_.WaitFor(kHealthInterval)) {
    const absl::Status health = model_->engine->health();
    if (health.ok()) continue;
    LogError("the engine has failed", {{"error", std::string(health.message())}});
    return health;
  }
  return absl::OkStatus();
}

void ServeProcess::Drain() {
  signals_.Release();
  const auto deadline = Clock::now() + std::chrono::seconds(config_.drain_timeout_seconds);
  readiness_.SetDraining();
  server_->BeginDrain();
  LogInfo("draining", {{"requests", model_->engine->Stats().scheduler.num_running +
                                        model_->engine->Stats().scheduler.num_waiting},
                       {"timeout_seconds", config_.drain_timeout_seconds}});
  model_->engine->Drain(deadline);
  server_->WaitUntilIdle(Clock::now() + kFlushTimeout);
  server_->Stop();
  metrics_.ClearEngine();
  LogInfo("stopped");
}

void ServeProcess::LogRequest(const HttpRequest& request, std::string_view route, int status,
                              double seconds, std::string_view error) {
  LogFields fields = {{"request_id", request.request_id},
                      {"method", request.method},
                      {"route", route},
                      {"status", status},
                      {"seconds", seconds}};
  if (!error.empty()) {
    fields["error"] = error;
    LogError("request failed", fields);
    return;
  }
  // Probes and scrapes come every few seconds, and a 503 is what probes expect of a start or drain.
  if (request.method == "GET" && (status < 400 || status == 503)) return;
  LogInfo("request", fields);
}

std::vector<HttpRoute> ServeProcess::Routes(std::vector<HttpRoute> rest) const {
  std::vector<HttpRoute> routes = AdminRoutes(&readiness_, &metrics_, SHOAL_VERSION);
  for (HttpRoute& route : rest) routes.push_back(std::move(route));
  return routes;
}

}  // namespace

absl::Status RunServe(const ServerConfig& config) { return ServeProcess(config).Run(); }

}  // namespace shoal
