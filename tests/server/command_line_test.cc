#include "server/command_line.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/engine.h"

namespace shoal {
namespace {

using testing::HasSubstr;

/// What a run of the program left behind.
struct Result {
  int status = 0;
  std::string out;
  std::string err;

  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

Result Shoal(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "shoal");
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Result result;
  result.status = RunCommandLine(static_cast<int>(arguments.size()), arguments.data());
  std::fflush(stdout);
  result.out = testing::internal::GetCapturedStdout();
  result.err = testing::internal::GetCapturedStderr();
  return result;
}

class CommandLineTest : public testing::Test {
 protected:
  CommandLineTest() { std::filesystem::create_directories(directory_); }
  ~CommandLineTest() override {
    std::filesystem::remove_all(directory_);
    unsetenv("SHOAL_API_KEY");
    unsetenv("SHOAL_MAX_NUM_SEQS");
    unsetenv("SHOAL_BLOCK_SIZE");
    unsetenv("SHOAL_ENABLE_PREFIX_CACHING");
  }

  std::string File(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name) << text;
    return directory_ / name;
  }

  const std::filesystem::path directory_ =
      std::filesystem::path(testing::TempDir()) /
      testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(CommandLineTest, FlagsGoBeforeEnvironmentBeforeFileBeforeDefaults) {
  const std::string file = File("c.json", R"({"max-num-seqs": 3, "block-size": 8, "seed": 7,
      "enable-prefix-caching": false, "served-model-name": ["a", "b"]})");
  setenv("SHOAL_MAX_NUM_SEQS", "4", 1);
  setenv("SHOAL_BLOCK_SIZE", "32", 1);
  const Result result =
      Shoal({"serve", "--print-config", "--config", file.c_str(), "--max-num-seqs", "5"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.json()["max-num-seqs"], 5);
  EXPECT_EQ(result.json()["block-size"], 32);
  EXPECT_EQ(result.json()["seed"], 7);
  EXPECT_EQ(result.json()["enable-prefix-caching"], false);
  EXPECT_EQ(result.json()["served-model-name"], nlohmann::json({"a", "b"}));
  EXPECT_EQ(result.json()["port"], 8000);
}

TEST_F(CommandLineTest, AFlagTurnsOffWhatTheEnvironmentTurnsOn) {
  setenv("SHOAL_ENABLE_PREFIX_CACHING", "true", 1);
  const Result result = Shoal({"serve", "--print-config", "--no-enable-prefix-caching"});
  EXPECT_EQ(result.json()["enable-prefix-caching"], false);
  setenv("SHOAL_ENABLE_PREFIX_CACHING", "false", 1);
  EXPECT_EQ(Shoal({"serve", "--print-config"}).json()["enable-prefix-caching"], false);
}

TEST_F(CommandLineTest, PrintsEverySetting) {
  std::set<std::string> flags, printed;
  std::istringstream help(Shoal({"serve", "--help"}).out);
  for (std::string line; std::getline(help, line);) {
    const size_t begin = line.find("--");
    if (begin == line.npos || line.find_first_not_of(' ') != begin) continue;
    const size_t end = line.find_first_of(" ,{", begin);
    flags.insert(line.substr(begin + 2, end - begin - 2));
  }
  const nlohmann::json config = Shoal({"serve", "--print-config"}).json();
  for (const auto& [name, value] : config.items()) printed.insert(name);
  flags.erase("config");
  flags.erase("print-config");
  EXPECT_EQ(printed, flags);
}

TEST_F(CommandLineTest, SchedulingFlagsAreConfiguration) {
  setenv("SHOAL_ASYNC_SCHEDULING", "true", 1);
  const nlohmann::json config =
      Shoal({"serve", "--print-config", "--fair-share", "user", "--request-timeout-ms", "5000",
             "--num-speculative-tokens", "3", "--expert-parallel", "2", "--max-num-queued-tokens",
             "4294967296"})
          .json();
  unsetenv("SHOAL_ASYNC_SCHEDULING");
  EXPECT_EQ(config["async-scheduling"], true);
  EXPECT_EQ(config["fair-share"], "user");
  EXPECT_EQ(config["request-timeout-ms"], 5000);
  EXPECT_EQ(config["num-speculative-tokens"], 3);
  EXPECT_EQ(config["expert-parallel"], 2);
  EXPECT_EQ(config["max-num-queued-tokens"], int64_t{1} << 32);
  EXPECT_EQ(Shoal({"serve", "--print-config"}).json()["async-scheduling"], nullptr);
  const nlohmann::json on = Shoal({"serve", "--print-config", "--async-scheduling"}).json();
  EXPECT_EQ(on["async-scheduling"], true);
  const nlohmann::json off = Shoal({"serve", "--print-config", "--no-async-scheduling"}).json();
  EXPECT_EQ(off["async-scheduling"], false);
}

TEST_F(CommandLineTest, ReadsTheConfigurationThatItPrints) {
  const Result printed = Shoal({"serve", "--print-config", "--model", "m", "--max-num-seqs", "5"});
  const std::string file = File("c.json", printed.out);
  EXPECT_EQ(Shoal({"serve", "--print-config", "--config", file.c_str()}).out, printed.out);
}

TEST_F(CommandLineTest, NeverPrintsAKeyAndTakesNoMaskForOne) {
  const Result result = Shoal({"serve", "--print-config", "--api-key", "open sesame", "x"});
  EXPECT_EQ(result.json()["api-key"], nlohmann::json({"***", "***"}));
  EXPECT_THAT(result.out + result.err, testing::Not(HasSubstr("sesame")));
  const std::string file = File("c.json", result.out);
  const Result masked = Shoal({"serve", "--print-config", "--config", file.c_str()});
  EXPECT_EQ(masked.status, 1);
  EXPECT_THAT(masked.err, HasSubstr("api-key"));
}

TEST_F(CommandLineTest, RefusesAnEmptyKey) {
  for (const char* keys : {"", ","}) {
    const Result result = Shoal({"serve", "--print-config", "--api-key", keys});
    EXPECT_EQ(result.status, 1) << keys;
    EXPECT_THAT(result.err, HasSubstr("--api-key"));
    setenv("SHOAL_API_KEY", keys, 1);
    const Result from_environment = Shoal({"serve", "--print-config"});
    unsetenv("SHOAL_API_KEY");
    EXPECT_EQ(from_environment.status, 1) << keys;
    EXPECT_THAT(from_environment.err, HasSubstr("SHOAL_API_KEY"));
    const std::string file = File("c.json", fmt::format(R"({{"api-key": "{}"}})", keys));
    const Result from_file = Shoal({"serve", "--print-config", "--config", file.c_str()});
    EXPECT_EQ(from_file.status, 1) << keys;
    EXPECT_THAT(from_file.err, HasSubstr("api-key"));
  }
}

TEST_F(CommandLineTest, NamesABadFlagWithItsValueAndRange) {
  const std::vector<std::tuple<const char*, const char*, const char*>> cases = {
      {"--port", "70000", "0 to 65535"},
      {"--port", "80x", "0 to 65535"},
      {"--block-size", "0", "1 to 1024"},
      {"--max-model-len", "-5", "0 to"},
      {"--max-num-seqs", "1e3", "1 to 4096"},
      {"--dtype", "int3", "bfloat16"},
      {"--device", "abacus", "cpu"},
      {"--grpc-port", "50051", "gRPC is not served yet"},
      {"--threads", "99999999999999999999", "0 to 1024"},
      {"--expert-parallel", "65", "1 to 64"},
      {"--num-redundant-experts", "-1", "0 to 65536"},
      {"--max-num-batched-tokens", "65537", "1 to 65536"},
      {"--long-prefill-token-threshold", "-1", "0 to 65536"},
      {"--max-num-queued-tokens", "0", "1 to 1099511627776"},
      {"--priority-step-seconds", "0", "1 to 86400"},
      {"--schedule-conservativeness", "10.5", "a number from 0 to 10"},
      {"--schedule-conservativeness", "nan", "a number from 0 to 10"},
      {"--num-speculative-tokens", "65", "0 to 64"},
      {"--prompt-lookup-min", "0", "1 to 64"},
      {"--prompt-lookup-max", "x", "1 to 64"},
      {"--request-timeout-ms", "-1", "0 to 2147483647"},
      {"--fair-share", "nobody", "key, user, off"},
  };
  for (const auto& [flag, value, expected] : cases) {
    const Result result = Shoal({"serve", flag, value});
    EXPECT_EQ(result.status, 1) << flag;
    EXPECT_THAT(result.err, HasSubstr(flag));
    EXPECT_THAT(result.err, HasSubstr(value));
    EXPECT_THAT(result.err, HasSubstr(expected));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }
}

TEST_F(CommandLineTest, NamesWhatIsWrongInAConfigFile) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {R"({"max-num-sequences": 3})", "max-num-sequences"},
      {R"({"print-config": true})", "print-config"},
      {R"({"no-enable-prefix-caching": true})", "no-enable-prefix-caching"},
      {R"({"no-enable-prefix-caching": false})", "no-enable-prefix-caching"},
      {R"({"max-num-seqs": "x"})", "max-num-seqs"},
      {R"({"port": {"a": 1}})", "port"},
      {R"({"port": 1.5})", "port"},
      {R"([])", "not a JSON object"},
      {R"({)", "not a JSON object"},
  };
  for (const auto& [text, expected] : cases) {
    const std::string file = File("c.json", text);
    const Result result = Shoal({"serve", "--print-config", "--config", file.c_str()});
    EXPECT_EQ(result.status, 1) << text;
    EXPECT_THAT(result.err, HasSubstr(file));
    EXPECT_THAT(result.err, HasSubstr(expected));
  }
  EXPECT_THAT(Shoal({"serve", "--config", "/nowhere.json"}).err, HasSubstr("/nowhere.json"));
}

TEST_F(CommandLineTest, RefusesWhatIsNoCommand) {
  EXPECT_EQ(Shoal({}).status, 1);
  EXPECT_EQ(Shoal({"juggle"}).status, 1);
  EXPECT_THAT(Shoal({"serve", "--modle", "m"}).err, HasSubstr("--modle"));
  EXPECT_EQ(Shoal({"generate"}).status, 1);
  EXPECT_EQ(Shoal({"tokenize"}).status, 1);
  EXPECT_EQ(Shoal({"make-checkpoint", "--output", "x"}).status, 1);
}

TEST_F(CommandLineTest, HelpAndVersionSucceed) {
  for (const char* command : {"serve", "generate", "tokenize", "make-checkpoint"}) {
    EXPECT_THAT(Shoal({"--help"}).out, HasSubstr(command));
    EXPECT_EQ(Shoal({command, "--help"}).status, 0);
  }
  EXPECT_THAT(Shoal({"--version"}).out, testing::MatchesRegex("shoal [0-9.]+\n"));
}

TEST_F(CommandLineTest, TokenizeAndDecodeAreInverse) {
  const Result tokens = Shoal({"tokenize", "Grüße, shoal!"});
  ASSERT_EQ(tokens.status, 0) << tokens.err;
  std::vector<std::string> ids;
  std::istringstream lines(tokens.out);
  for (std::string line; std::getline(lines, line);) ids.push_back(line.substr(0, line.find('\t')));
  const std::string list = fmt::format("{}", fmt::join(ids, ","));
  EXPECT_EQ(Shoal({"tokenize", "--decode", list.c_str()}).out, "Grüße, shoal!\n");
  EXPECT_EQ(Shoal({"tokenize", "--decode", "99999999"}).status, 1);
}

TEST_F(CommandLineTest, MadeCheckpointsGenerateText) {
  const std::string model = directory_ / "model";
  const Result made =
      Shoal({"make-checkpoint", "--preset", "tiny", "--seed", "3", "--output", model.c_str()});
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_THAT(made.err, HasSubstr("writing weights 100 %"));
  const auto generate = [&] {
    return Shoal(
        {"generate", "--model", model.c_str(), "--max-tokens", "8", "--seed", "5", "Fish"});
  };
  const Result first = generate();
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_FALSE(first.out.empty());
  EXPECT_THAT(first.err, HasSubstr("tokens/s"));
  EXPECT_EQ(generate().out, first.out);
  const Result too_many_ranks =
      Shoal({"generate", "--model", model.c_str(), "--expert-parallel", "64", "Fish"});
  EXPECT_EQ(too_many_ranks.status, 1);
  EXPECT_THAT(too_many_ranks.err, HasSubstr("expert_parallel is 64, expected 1 to "));
}

TEST_F(CommandLineTest, MakeCheckpointHoldsConfigAgainstTokenizer) {
  const std::string model = directory_ / "model";
  ASSERT_EQ(Shoal({"make-checkpoint", "--preset", "tiny", "--output", model.c_str()}).status, 0);
  auto config = nlohmann::json::parse(std::ifstream(directory_ / "model" / "config.json"));
  const std::string output = directory_ / "other";
  const auto make = [&](const char* field, const nlohmann::json& value) {
    nlohmann::json changed = config;
    changed[field] = value;
    const std::string file = File("config.json", changed.dump());
    return Shoal({"make-checkpoint", "--config", file.c_str(), "--output", output.c_str()});
  };
  EXPECT_EQ(make("num_hidden_layers", 2).status, 0);
  EXPECT_THAT(make("vocab_size", 2040).err, HasSubstr("vocab_size is 2040"));
  EXPECT_THAT(make("eos_token_id", 5).err, HasSubstr("eos_token_id is 5"));
}

}  // namespace
}  // namespace shoal
