// shoal bench: how fast the engine is on this machine, without a server in between.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "engine/engine.h"

namespace shoal {

struct BenchConfig {
  EngineConfig engine;       // without model_directory: the default model
  int32_t input_len = 512;   // random tokens of each prompt
  int32_t output_len = 128;  // tokens generated for each, whatever they are
  int32_t num_prompts = 32;
  // Requests per second that are sent, at random times; infinity: all at once.
  double request_rate = std::numeric_limits<double>::infinity();
  uint64_t seed = 0;        // of prompts, tokens and times
  std::string output_json;  // file for the figures; empty: none
};

/// Prints the figures on stdout and progress on stderr. Not OK if a request failed.
absl::Status RunBench(const BenchConfig& config);

}  // namespace shoal
