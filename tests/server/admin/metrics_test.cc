#include "server/admin/metrics.h"

#include <gmock/gmock.h>

#include <regex>
#include <set>
#include <sstream>

namespace shoal {
namespace {

using testing::HasSubstr;
using testing::Not;

EngineStats SomeStats() {
  EngineStats stats;
  stats.scheduler.num_running = 3;
  stats.scheduler.num_waiting = 2;
  stats.scheduler.num_preemptions = 5;
  stats.blocks.num_blocks = 100;
  stats.blocks.num_free = 75;
  stats.blocks.prefix_queries_tokens = 640;
  stats.blocks.prefix_hits_tokens = 320;
  stats.prompt_tokens = 1000;
  stats.generation_tokens = 12345678901;
  return stats;
}

TEST(Metrics, ReadsTheEngineAtEachScrape) {
  Metrics metrics("m");
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("vllm:num_requests_running")));
  EngineStats stats = SomeStats();
  metrics.SetEngine([&] { return stats; }, 16);
  const std::string labels = "{engine=\"0\",model_name=\"m\"}";
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("vllm:num_requests_running" + labels + " 3\n"));
  EXPECT_THAT(text, HasSubstr("vllm:num_requests_waiting" + labels + " 2\n"));
  EXPECT_THAT(text, HasSubstr("vllm:kv_cache_usage_perc" + labels + " 0.25\n"));
  EXPECT_THAT(text, HasSubstr("vllm:prefix_cache_queries_total" + labels + " 640\n"));
  EXPECT_THAT(text, HasSubstr("vllm:prefix_cache_hits_total" + labels + " 320\n"));
  EXPECT_THAT(text, HasSubstr("vllm:num_preemptions_total" + labels + " 5\n"));
  EXPECT_THAT(text, HasSubstr("vllm:generation_tokens_total" + labels + " 12345678901\n"));
  EXPECT_THAT(text, HasSubstr("vllm:cache_config_info{block_size=\"16\",engine=\"0\","
                              "model_name=\"m\",num_gpu_blocks=\"100\"} 1\n"));
  stats.scheduler.num_running = 0;
  EXPECT_THAT(metrics.Text(), HasSubstr("vllm:num_requests_running" + labels + " 0\n"));
  metrics.ClearEngine();
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("vllm:num_requests_running")));
}

TEST(Metrics, CountsRequestsByReasonAndMeasuresThem) {
  Metrics metrics("m");
  metrics.OnFirstToken(0.015);
  metrics.OnNextToken(0.0012);
  metrics.OnFinished(FinishReason::kLength, 1.25, 0.004,
                     {.prompt_tokens = 7, .completion_tokens = 300});
  const std::string text = metrics.Text();
  const std::string labels = "{engine=\"0\",model_name=\"m\"";
  EXPECT_THAT(text, HasSubstr("finished_reason=\"length\",model_name=\"m\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("finished_reason=\"abort\",model_name=\"m\"} 0\n"));
  for (const char* name : {"vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
                           "vllm:e2e_request_latency_seconds", "vllm:request_queue_time_seconds",
                           "vllm:request_prompt_tokens", "vllm:request_generation_tokens"}) {
    EXPECT_THAT(text, HasSubstr(std::string(name) + "_count" + labels + "} 1\n"));
  }
  EXPECT_THAT(text,
              HasSubstr("vllm:time_to_first_token_seconds_bucket" + labels + ",le=\"0.01\"} 0\n"));
  EXPECT_THAT(text,
              HasSubstr("vllm:time_to_first_token_seconds_bucket" + labels + ",le=\"0.02\"} 1\n"));
}

TEST(Metrics, BoundsTheNumberOfSeries) {
  Metrics metrics("m");
  for (int i = 0; i < 1000; ++i) metrics.OnHttpRequest("", "METHOD" + std::to_string(i), 400, 0.1);
  metrics.OnHttpRequest("/v1/models/*", "GET", 200, 0.1);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("http_requests_total{handler=\"none\",method=\"other\","
                              "status=\"400\"} 1000\n"));
  EXPECT_THAT(text, HasSubstr("http_requests_total{handler=\"/v1/models/*\",method=\"GET\","
                              "status=\"200\"} 1\n"));
  EXPECT_THAT(text, Not(HasSubstr("METHOD")));
}

TEST(Metrics, IsPrometheusText) {
  Metrics metrics("a\"b\\c\nd");
  metrics.SetEngine(SomeStats, 16);
  metrics.OnHttpRequest("/health", "GET", 200, 0.1);
  const std::regex sample(
      R"re([a-z0-9_:]+(\{([a-z_]+="([^"\\]|\\.)*",?)*\})? [-+0-9.eE]+(Inf|NaN)?)re");
  std::set<std::string> described;
  std::istringstream lines(metrics.Text());
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("# HELP ")) {
      EXPECT_TRUE(described.insert(line.substr(7, line.find(' ', 7) - 7)).second) << line;
    } else if (!line.starts_with("# TYPE ")) {
      EXPECT_TRUE(std::regex_match(line, sample)) << line;
    }
  }
}

}  // namespace
}  // namespace shoal
