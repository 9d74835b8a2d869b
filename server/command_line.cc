#include "server/command_line.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <charconv>
#include <cstdlib>
#include <functional>

#include "kernels/backends/backend_factory.h"
#include "server/bench_command.h"
#include "server/config_file.h"
#include "server/generate_command.h"
#include "server/make_checkpoint_command.h"
#include "server/serve_command.h"
#include "server/tokenize_command.h"

namespace shoal {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

/// Accepts decimal numbers of a range, and says which range.
template <typename T>
CLI::Validator InRange(const char* what, T low, T high) {
  const std::string range = fmt::format("{} to {}", low, high);
  return CLI::Validator(
      [=](const std::string& text) {
        T value = 0;
        const char* const end = text.data() + text.size();
        const auto [rest, error] = std::from_chars(text.data(), end, value);
        if (error == std::errc() && rest == end && value >= low && value <= high) {
          return std::string();
        }
        return fmt::format("'{}' is not {} from {}", text, what, range);
      },
      range);
}

CLI::Validator Integer(int64_t low, int64_t high) { return InRange("an integer", low, high); }

CLI::Validator OneOf(std::vector<std::string> words) {
  const std::string list = fmt::format("{}", fmt::join(words, ", "));
  return CLI::Validator(
      [=](const std::string& text) {
        if (std::find(words.begin(), words.end(), text) != words.end()) return std::string();
        return fmt::format("'{}' is not one of {}", text, list);
      },
      list);
}

/// Options that say which model runs and how: of `serve` and `generate`.
void AddEngineOptions(CLI::App& app, EngineConfig& engine) {
  app.add_option("--model", engine.model_directory,
                 "Checkpoint directory in Hugging Face layout; without: a tiny random model");
  app.add_option("--max-model-len", engine.max_model_len, "Tokens of one sequence; 0: the model's")
      ->check(Integer(0, 1 << 24));
  app.add_option("--block-size", engine.block_size, "Tokens per KV cache block")
      ->check(Integer(1, 1024));
  app.add_option("--max-num-batched-tokens", engine.max_num_batched_tokens,
                 "Tokens per step; default: 512, on a GPU 8192")
      ->check(Integer(1, 65536));
  app.add_option("--kv-cache-memory-bytes", engine.kv_cache_memory_bytes, "0: automatic")
      ->check(Integer(0, int64_t{1} << 50));
  app.add_option("--load-format", engine.load_format,
                 "auto: the checkpoint's weights; dummy: random ones, of config.json's shape")
      ->check(OneOf({"auto", "dummy"}));
  app.add_option("--device", engine.device,
                 "Where the model runs: cpu, cuda, cuda:N, or auto: a GPU if there is one")
      ->check(CLI::Validator(
          [](const std::string& name) {
            return std::string(DeviceName::Parse(name).status().message());
          },
          "DEVICE"));
  app.add_option("--gpu-memory-utilization", engine.gpu_memory_utilization,
                 "Share of the GPU's memory that may be taken")
      ->check(InRange("a number", 0.01, 1.0));
  app.add_flag("--enforce-eager,!--no-enforce-eager", engine.enforce_eager,
               "Enqueue every kernel of every step, without CUDA graphs");
  app.add_option("--dtype", engine.dtype, "Type of weights and activations")
      ->check(OneOf({"auto", "bfloat16", "float32"}));
  app.add_option("--threads", engine.threads, "Compute threads; 0: one per core")
      ->check(Integer(0, 1024));
  app.add_option("--expert-parallel", engine.expert_parallel, "Ranks that share the experts")
      ->check(Integer(1, 64));
  app.add_option("--num-redundant-experts", engine.num_redundant_experts,
                 "Experts that have a second place on another rank")
      ->check(Integer(0, 65536));
  app.add_option("--num-speculative-tokens", engine.num_speculative_tokens,
                 "Tokens guessed per step, from what followed the last ones before; 0: none")
      ->check(Integer(0, 64));
  app.add_option("--prompt-lookup-min", engine.prompt_lookup_min, "Last tokens that must recur")
      ->check(Integer(1, 64));
  app.add_option("--prompt-lookup-max", engine.prompt_lookup_max, "Last tokens looked for first")
      ->check(Integer(1, 64));
}

/// How many sequences run, and how: of `serve` and `bench`.
void AddBatchOptions(CLI::App& app, EngineConfig& engine) {
  app.add_option("--max-num-seqs", engine.max_num_seqs,
                 "Sequences that run at once; default: 64, on a GPU 256")
      ->check(Integer(1, 4096));
  app.add_flag_function(
      "--async-scheduling,!--no-async-scheduling",
      [&engine](int64_t count) { engine.async_scheduling = count > 0; },
      "Schedule a step while the one before it runs; default: on a GPU");
}

/// Options that say whose turn it is: of `serve`.
void AddSchedulingOptions(CLI::App& app, ServerConfig& config) {
  EngineConfig& engine = config.engine;
  AddBatchOptions(app, engine);
  app.add_option("--long-prefill-token-threshold", engine.long_prefill_token_threshold,
                 "Prompt tokens of one request per step while there are others; 0: half a step's")
      ->check(Integer(0, 65536));
  app.add_option("--max-num-queued-requests", engine.max_num_queued_requests,
                 "Requests that may wait beyond those that run, more are refused")
      ->check(Integer(1, 1 << 20));
  app.add_option("--max-num-queued-tokens", engine.max_num_queued_tokens,
                 "Prompt tokens, times choices, that may wait; more are refused if others wait")
      ->check(Integer(1, int64_t{1} << 40));
  app.add_option("--priority-step-seconds", engine.priority_step_seconds,
                 "Seconds of waiting that a step of a request's priority is worth")
      ->check(Integer(1, 86400));
  app.add_option("--schedule-conservativeness", engine.schedule_conservativeness,
                 "Room kept for running sequences to grow; below 1: more at once, more preemptions")
      ->check(InRange("a number", 0.0, 10.0));
  app.add_option("--fair-share", config.fair_share,
                 "Who gets equal shares of the machine: each API key, each user of a key, or off")
      ->check(OneOf({"key", "user", "off"}));
  app.add_option("--request-timeout-ms", config.request_timeout_ms,
                 "Longest that a request may take, X-Request-Timeout-Ms may ask for less; 0: any")
      ->check(Integer(0, kMaxInt));
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", engine.enable_prefix_caching,
               "Share the KV cache of equal prompt beginnings");
}

/// Everything that the command line can ask for.
class CommandLine {
 public:
  CommandLine() {
    app_.require_subcommand(1);
    app_.set_version_flag("--version", std::string("shoal ") + SHOAL_VERSION);
    AddServe();
    AddGenerate();
    AddBench();
    AddTokenize();
    AddMakeCheckpoint();
    for (CLI::App* command : app_.get_subcommands({})) {
      command->option_defaults()->always_capture_default();
      ReadOptionsFromEnvironment(*command);
    }
  }

  int Run(int argc, const char* const* argv) {
    absl::Status status;
    try {
      app_.parse(argc, argv);
      status = RunCommand();
    } catch (const CLI::Success& success) {  // --help, --version
      return app_.exit(success);
    } catch (const CLI::Error& error) {
      status = absl::InvalidArgumentError(error.what());
    }
    if (status.ok()) return 0;
    fmt::print(stderr, "shoal: {}\n", std::string(status.message()));
    return 1;
  }

 private:
  void AddServe();
  void AddGenerate();
  void AddBench();
  void AddTokenize();
  void AddMakeCheckpoint();
  absl::Status RunCommand();
  absl::Status RunServeCommand();

  CLI::App app_{"Shoal serves DeepSeekMoE language models."};
  CLI::App* serve_ = app_.add_subcommand("serve", "Serve a model over HTTP (OpenAI API)");
  CLI::App* generate_ = app_.add_subcommand("generate", "Complete one prompt");
  CLI::App* bench_ = app_.add_subcommand("bench", "Measure how fast the engine is");
  CLI::App* tokenize_ = app_.add_subcommand("tokenize", "Show the tokens of a text");
  CLI::App* make_checkpoint_ =
      app_.add_subcommand("make-checkpoint", "Write a checkpoint with random weights");

  ServerConfig serve_config_;
  std::string config_path_;
  bool print_config_ = false;
  GenerateConfig generate_config_;
  BenchConfig bench_config_;
  TokenizeConfig tokenize_config_;
  MakeCheckpointConfig make_checkpoint_config_;
};

void CommandLine::AddServe() {
  CLI::App& app = *serve_;
  ServerConfig& config = serve_config_;
  AddEngineOptions(app, config.engine);
  AddSchedulingOptions(app, config);
  app.add_option("--host", config.http.host, "Address to listen on");
  app.add_option("--port", config.http.port, "Port to listen on; 0: any free one")
      ->check(Integer(0, 65535));
  app.add_option("--served-model-name", config.served_model_names,
                 "Names of the model in the API, the first in answers; default: --model")
      ->delimiter(',');
  app.add_option("--api-key", config.http.api_keys,
                 "Keys that clients must send one of (better given as SHOAL_API_KEY)")
      ->delimiter(',')
      ->check(CLI::Validator(
          [](const std::string& key) -> std::string {
            if (key.empty()) return "an empty key would let everybody in";
            return key == kMaskedKey ? "a masked key is no key" : "";
          },
          "KEY"));
  app.add_option("--seed", config.seed,
                 "Seed of the random numbers of requests that bring none; default: random")
      ->check(Integer(0, std::numeric_limits<int64_t>::max()));
  app.add_option("--grpc-port", "Port of the gRPC API, which is not served yet; 0: off")
      ->check(CLI::Validator(
          [](const std::string& text) {
            return text == "0" ? "" : fmt::format("'{}': gRPC is not served yet, only 0", text);
          },
          "0"));
  app.add_option("--drain-timeout-seconds", config.drain_timeout_seconds,
                 "How long running requests may finish after SIGTERM")
      ->check(Integer(0, 86400));
  app.add_option("--config", config_path_, "JSON object with flag names as keys");
  app.add_flag("--print-config", print_config_, "Print the configuration in force and exit");
}

void CommandLine::AddGenerate() {
  CLI::App& app = *generate_;
  GenerateCall& call = generate_config_.call;
  AddEngineOptions(app, generate_config_.engine);
  app.add_option("prompt", generate_config_.prompt, "Text to continue")->required();
  app.add_flag("--chat", generate_config_.chat, "The prompt is a chat message");
  app.add_option("--max-tokens", call.max_tokens, "Tokens to generate")->check(Integer(1, kMaxInt));
  app.add_option("--temperature", call.temperature, "0 to 2; 0: always the likeliest token");
  app.add_option("--top-p", call.top_p, "Above 0, to 1");
  app.add_option("--top-k", call.top_k, "0: all")->check(Integer(0, kMaxInt));
  app.add_option("--seed", call.seed, "Equal seeds give equal texts; default: a random one")
      ->check(Integer(0, std::numeric_limits<int64_t>::max()));
}

void CommandLine::AddBench() {
  CLI::App& app = *bench_;
  BenchConfig& config = bench_config_;
  AddEngineOptions(app, config.engine);
  AddBatchOptions(app, config.engine);
  app.add_option("--input-len", config.input_len, "Random tokens of each prompt")
      ->check(Integer(1, 1 << 24));
  app.add_option("--output-len", config.output_len, "Tokens generated for each prompt")
      ->check(Integer(1, 1 << 24));
  app.add_option("--num-prompts", config.num_prompts, "Requests sent")->check(Integer(1, 1 << 20));
  app.add_option("--request-rate", config.request_rate,
                 "Requests per second, at random times; inf: all at once")
      ->check(InRange("a number", 1e-6, std::numeric_limits<double>::infinity()));
  app.add_option("--seed", config.seed, "Equal seeds give equal prompts, times and tokens")
      ->check(Integer(0, std::numeric_limits<int64_t>::max()));
  app.add_option("--output-json", config.output_json, "File to write the figures to");
}

void CommandLine::AddTokenize() {
  CLI::App& app = *tokenize_;
  TokenizeConfig& config = tokenize_config_;
  app.add_option("--model", config.model_directory,
                 "Directory with tokenizer.json; without: the project's own tokenizer");
  CLI::Option* text = app.add_option("text", config.text, "Text to encode");
  app.add_option("--decode", config.decode_ids, "Token ids to decode instead")
      ->delimiter(',')
      ->check(Integer(0, kMaxInt))
      ->excludes(text);
}

void CommandLine::AddMakeCheckpoint() {
  CLI::App& app = *make_checkpoint_;
  MakeCheckpointConfig& config = make_checkpoint_config_;
  CLI::Option* preset = app.add_option("--preset", config.preset, "A model of the paper, or tiny")
                            ->check(OneOf({"tiny", "2b", "16b", "145b"}));
  app.add_option("--config", config.config_path, "A config.json")->excludes(preset);
  app.add_option("--tokenizer", config.tokenizer_directory,
                 "Directory with tokenizer.json and tokenizer_config.json; without: the project's");
  app.add_option("--dtype", config.dtype, "Type of the weights; default: the configuration's")
      ->check(OneOf({"bfloat16", "float32"}));
  app.add_option("--seed", config.seed, "Equal seeds give equal weights")
      ->check(Integer(0, std::numeric_limits<int64_t>::max()));
  app.add_flag("--no-weights", config.no_weights,
               "Only config.json and tokenizer, for --load-format dummy");
  app.add_option("--output", config.output, "Directory to write")->required();
}

absl::Status CommandLine::RunCommand() {
  if (*serve_) return RunServeCommand();
  if (*generate_) return RunGenerate(generate_config_);
  if (*bench_) return RunBench(bench_config_);
  if (*tokenize_) {
    if (tokenize_config_.decode_ids.empty() && tokenize_->count("text") == 0) {
      return absl::InvalidArgumentError("tokenize needs a text or --decode");
    }
    return RunTokenize(tokenize_config_);
  }
  const MakeCheckpointConfig& config = make_checkpoint_config_;
  if (config.preset.empty() && config.config_path.empty()) {
    return absl::InvalidArgumentError("make-checkpoint needs --preset or --config");
  }
  return RunMakeCheckpoint(config);
}

absl::Status CommandLine::RunServeCommand() {
  if (!config_path_.empty()) RETURN_IF_ERROR(ApplyConfigFile(*serve_, config_path_));
  // Most likely a secret that did not arrive, and not the wish to let everybody in.
  if (serve_config_.http.api_keys.empty() && std::getenv("SHOAL_API_KEY") != nullptr) {
    return absl::InvalidArgumentError("SHOAL_API_KEY is set, but has no key");
  }
  if (print_config_) {
    fmt::print("{}\n", FormatServerConfig(serve_config_));
    return absl::OkStatus();
  }
  return RunServe(serve_config_);
}

}  // namespace

int RunCommandLine(int argc, const char* const* argv) { return CommandLine().Run(argc, argv); }

}  // namespace shoal
