#include "server/service/generate_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "server/service/field_error.h"

namespace shoal {
namespace {

using testing::HasSubstr;

absl::Status Check(const std::function<void(GenerateCall&)>& change) {
  GenerateCall call;
  change(call);
  return CheckRanges(call);
}

/// INVALID_ARGUMENT that names `field`, and says `problem`.
void ExpectRefused(const std::string& field, const std::string& problem,
                   const std::function<void(GenerateCall&)>& change) {
  const absl::Status status = Check(change);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
  EXPECT_EQ(FieldOf(status), field) << status;
  EXPECT_THAT(std::string(status.message()), testing::AllOf(HasSubstr(field), HasSubstr(problem)));
}

TEST(GenerateCall, DefaultsAreInRange) { EXPECT_TRUE(CheckRanges(GenerateCall()).ok()); }

TEST(GenerateCall, BoundsAreInRange) {
  EXPECT_TRUE(Check([](auto& call) {
                call.n = 16;
                call.best_of = 16;
                call.temperature = 2;
                call.top_k = -1;
                call.min_p = 1;
                call.presence_penalty = call.frequency_penalty = -2;
                call.repetition_penalty = 10;
                call.logprobs = 20;
                call.stop.assign(16, std::string(256, 'x'));
                call.stop_token_ids.assign(16, 1);
                for (int32_t id = 0; id < 1024; ++id) call.logit_bias[id] = id % 2 ? -100 : 100;
                call.user = call.cache_salt = std::string(256, 'x');
              }).ok());
}

TEST(GenerateCall, NamesANumberOutOfRange) {
  const std::vector<std::tuple<const char*, float GenerateCall::*, float, const char*>> cases = {
      {"temperature", &GenerateCall::temperature, 2.5f, "at least 0 and at most 2, but is 2.5"},
      {"temperature", &GenerateCall::temperature, -1.f, "at least 0"},
      {"temperature", &GenerateCall::temperature, NAN, "nan"},
      {"top_p", &GenerateCall::top_p, 0.f, "above 0 and at most 1"},
      {"top_p", &GenerateCall::top_p, 1.5f, "1.5"},
      {"min_p", &GenerateCall::min_p, 1.5f, "1.5"},
      {"typical_p", &GenerateCall::typical_p, 0.f, "above 0 and at most 1"},
      {"typical_p", &GenerateCall::typical_p, 1.5f, "1.5"},
      {"presence_penalty", &GenerateCall::presence_penalty, 2.5f, "at least -2 and at most 2"},
      {"presence_penalty", &GenerateCall::presence_penalty, -2.5f, "-2.5"},
      {"frequency_penalty", &GenerateCall::frequency_penalty, 3.f, "at least -2 and at most 2"},
      {"frequency_penalty", &GenerateCall::frequency_penalty, NAN, "nan"},
      {"repetition_penalty", &GenerateCall::repetition_penalty, 0.f, "above 0 and at most 10"},
      {"repetition_penalty", &GenerateCall::repetition_penalty, 11.f, "11"},
  };
  for (const auto& [field, member, value, problem] : cases) {
    ExpectRefused(field, problem, [&](auto& call) { call.*member = value; });
  }
}

TEST(GenerateCall, NamesACountOutOfRange) {
  ExpectRefused("n", "at least 1 and at most 16, but is 0", [](auto& call) { call.n = 0; });
  ExpectRefused("n", "17", [](auto& call) { call.n = 17; });
  ExpectRefused("top_k", "at least -1, but is -2", [](auto& call) { call.top_k = -2; });
  ExpectRefused("min_tokens", "at least 0, but is -1", [](auto& call) { call.min_tokens = -1; });
  ExpectRefused("logprobs", "at most 20", [](auto& call) { call.logprobs = 21; });
  ExpectRefused("stop", "at most 16 entries", [](auto& call) { call.stop.assign(17, "a"); });
  ExpectRefused("stop", "1 to 256 bytes", [](auto& call) { call.stop = {std::string(257, 'a')}; });
  ExpectRefused("stop_token_ids", "has 17", [](auto& call) { call.stop_token_ids.assign(17, 1); });
  ExpectRefused("user", "at most 256 bytes, but has 257",
                [](auto& call) { call.user.assign(257, 'x'); });
  ExpectRefused("cache_salt", "at most 256 bytes, but has 257",
                [](auto& call) { call.cache_salt.assign(257, 'x'); });
}

TEST(GenerateCall, BestOfIsAtLeastN) {
  ExpectRefused("best_of", "at least n, which is 3, and at most 16, but is 2", [](auto& call) {
    call.n = 3;
    call.best_of = 2;
  });
  ExpectRefused("best_of", "but is 17", [](auto& call) { call.best_of = 17; });
  ExpectRefused("best_of", "but is 0", [](auto& call) { call.best_of = 0; });
}

TEST(GenerateCall, NamesABiasOutOfRange) {
  ExpectRefused("logit_bias", "at least -100 and at most 100, but is 101 for token 7",
                [](auto& call) { call.logit_bias = {{6, 5}, {7, 101}}; });
  ExpectRefused("logit_bias", "-inf for token 6",
                [](auto& call) { call.logit_bias = {{6, -INFINITY}}; });
  ExpectRefused("logit_bias", "at most 1024 entries, but has 1025", [](auto& call) {
    for (int32_t id = 0; id < 1025; ++id) call.logit_bias[id] = 1;
  });
}

}  // namespace
}  // namespace shoal
