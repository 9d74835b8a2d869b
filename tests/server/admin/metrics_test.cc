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
  stats.scheduler.num_waiting_tokens = 70;
  stats.scheduler.num_preemptions = 5;
  stats.scheduler.prefill_tokens = 11;
  stats.scheduler.decode_tokens = 12;
  stats.scheduler.recomputed_tokens = 13;
  stats.scheduler.discarded_tokens = 14;
  stats.scheduler.prompt_tokens = 1000;
  stats.scheduler.generation_tokens = 12345678901;
  stats.scheduler.num_drafts = 21;
  stats.scheduler.drafted_tokens = 22;
  stats.scheduler.accepted_tokens = 23;
  stats.scheduler.step_prefills = 31;
  stats.scheduler.step_decodes = 32;
  stats.scheduler.step_prefill_tokens = 33;
  stats.scheduler.step_decode_tokens = 34;
  stats.num_reserved = 8;
  stats.requests_per_second = 2.5;
  stats.tenants.resize(6);  // of which two have nothing to do
  for (size_t i = 0; i < 4; ++i)
    ++(i < 2 ? stats.tenants[i].num_waiting : stats.tenants[i].num_running);
  stats.tenants[0].name = "somebody";
  stats.blocks = {{.num_blocks = 60,
                   .num_free = 40,
                   .num_cached = 15,
                   .num_shared = 5,
                   .prefix_queries_tokens = 600,
                   .prefix_hits_tokens = 300},
                  {.num_blocks = 40,
                   .num_free = 35,
                   .num_cached = 1,
                   .num_shared = 2,
                   .prefix_queries_tokens = 40,
                   .prefix_hits_tokens = 20}};
  stats.step_tokens = {.bounds = {1, 8}, .counts = {4, 2, 1}, .sum = 110};
  stats.step_seconds = {.bounds = {0.001, 0.5}, .counts = {3, 3, 1}, .sum = 1.5};
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
  EXPECT_THAT(text, HasSubstr("vllm:prompt_tokens_total" + labels + " 1000\n"));
  EXPECT_THAT(text, HasSubstr("vllm:generation_tokens_total" + labels + " 12345678901\n"));
  EXPECT_THAT(text, HasSubstr("vllm:cache_config_info{block_size=\"16\",engine=\"0\","
                              "model_name=\"m\",num_gpu_blocks=\"100\"} 1\n"));
  stats.scheduler.num_running = 0;
  EXPECT_THAT(metrics.Text(), HasSubstr("vllm:num_requests_running" + labels + " 0\n"));
  metrics.ClearEngine();
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("vllm:num_requests_running")));
}

TEST(Metrics, TellsAllThatTheEngineDoes) {
  Metrics metrics("m");
  metrics.SetEngine(SomeStats, 16);
  const std::string text = metrics.Text();
  const std::string labels = "engine=\"0\",model_name=\"m\"";
  for (const char* line : {
           "shoal:num_waiting_tokens{E} 70",
           "shoal:num_requests_reserved{E} 8",
           "shoal:num_tenants{E} 4",
           "shoal:requests_per_second{E} 2.5",
           "shoal:kv_blocks{E,rank=\"0\",state=\"active\"} 15",
           "shoal:kv_blocks{E,rank=\"0\",state=\"shared\"} 5",
           "shoal:kv_blocks{E,rank=\"0\",state=\"cached\"} 15",
           "shoal:kv_blocks{E,rank=\"0\",state=\"free\"} 25",
           "shoal:kv_blocks{E,rank=\"1\",state=\"active\"} 3",
           "shoal:kv_blocks{E,rank=\"1\",state=\"free\"} 34",
           "shoal:step_sequences{E,kind=\"prefill\"} 31",
           "shoal:step_sequences{E,kind=\"decode\"} 32",
           "shoal:step_batch_tokens{E,kind=\"prefill\"} 33",
           "shoal:step_batch_tokens{E,kind=\"decode\"} 34",
           "shoal:computed_tokens_total{E,kind=\"prefill\"} 11",
           "shoal:computed_tokens_total{E,kind=\"decode\"} 12",
           "shoal:computed_tokens_total{E,kind=\"recomputed\"} 13",
           "shoal:computed_tokens_total{E,kind=\"discarded\"} 14",
           "vllm:spec_decode_num_drafts_total{E} 21",
           "vllm:spec_decode_num_draft_tokens_total{E} 22",
           "vllm:spec_decode_num_accepted_tokens_total{E} 23",
       }) {
    std::string expected = line;
    expected.replace(expected.find("E"), 1, labels);
    // Labels stand in the order of their names.
    const auto kind = expected.find(",kind=");
    if (kind != std::string::npos) {
      const std::string label = expected.substr(kind, expected.find('}') - kind);
      expected.erase(kind, label.size());
      expected.insert(expected.find(",model_name"), label);
    }
    EXPECT_THAT(text, HasSubstr(expected + "\n"));
  }
  EXPECT_THAT(text, Not(HasSubstr("somebody"))) << "one series per tenant has no bound";
}

TEST(Metrics, HistogramsOfTheEngineAreCumulative) {
  Metrics metrics("m");
  EngineStats stats = SomeStats();
  metrics.SetEngine([&] { return stats; }, 16);
  const std::string text = metrics.Text();
  const std::string labels = "{engine=\"0\",model_name=\"m\"";
  for (const auto& [name, end] : std::vector<std::pair<const char*, const char*>>{
           {"vllm:iteration_tokens_total_bucket", ",le=\"1\"} 4"},
           {"vllm:iteration_tokens_total_bucket", ",le=\"8\"} 6"},
           {"vllm:iteration_tokens_total_bucket", ",le=\"+Inf\"} 7"},
           {"vllm:iteration_tokens_total_count", "} 7"},
           {"vllm:iteration_tokens_total_sum", "} 110"},
           {"shoal:step_seconds_bucket", ",le=\"0.5\"} 6"},
           {"shoal:step_seconds_sum", "} 1.5"},
       }) {
    EXPECT_THAT(text, HasSubstr(name + labels + end + "\n"));
  }
}

TEST(Metrics, AMissedDeadlineIsAReasonOfItsOwn) {
  Metrics metrics("m");
  metrics.OnFinished(FinishReason::kError, absl::StatusCode::kDeadlineExceeded, 1, {}, {});
  metrics.OnFinished(FinishReason::kError, absl::StatusCode::kInternal, 1, {}, {});
  metrics.OnFinished(FinishReason::kError, absl::StatusCode::kUnavailable, 1, {}, {});
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("finished_reason=\"deadline\",model_name=\"m\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("finished_reason=\"error\",model_name=\"m\"} 2\n"));
}

TEST(Metrics, CountsRequestsByReasonAndMeasuresThem) {
  Metrics metrics("m");
  metrics.OnFirstToken(0.015);
  metrics.OnNextToken(0.0012);
  metrics.OnFinished(FinishReason::kLength, absl::StatusCode::kOk, 1.25, 0.004,
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
