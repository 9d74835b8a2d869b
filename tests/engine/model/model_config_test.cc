#include "engine/model/model_config.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/engine/model/temp_directory.h"

namespace shoal {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

/// The published config.json of deepseek-moe-16b-base.
json Published16b() {
  return json::parse(R"({
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": false,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekConfig",
                 "AutoModel": "modeling_deepseek.DeepseekModel",
                 "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"},
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "max_position_embeddings": 4096,
    "model_type": "deepseek",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": false,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": null,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "tie_word_embeddings": false,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": true,
    "vocab_size": 102400
  })");
}

json With(const std::string& field, const json& value) {
  json object = Published16b();
  object[field] = value;
  return object;
}

ModelConfig Parsed(const json& object) {
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(object.dump());
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(ModelConfig());
}

std::string Error(const std::string& text) {
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(text);
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(config.status().message());
}

TEST(ModelConfig, ReadsEveryFieldOfThePublishedFile) {
  EXPECT_EQ(Parsed(Published16b()), *PresetModelConfig("16b"));
  json other = Published16b();
  other.update({{"norm_topk_prob", true},
                {"moe_layer_freq", 2},
                {"num_key_value_heads", 4},
                {"attention_bias", true},
                {"tie_word_embeddings", true},
                {"torch_dtype", "float32"},
                {"rms_norm_eps", 1e-5},
                {"rope_theta", 5e5},
                {"bos_token_id", 7},
                {"eos_token_id", nullptr},
                {"rope_scaling", {{"type", "dynamic"}, {"factor", 4}}}});
  const ModelConfig config = Parsed(other);
  EXPECT_TRUE(config.norm_topk_prob);
  EXPECT_EQ(config.moe_layer_freq, 2);
  EXPECT_EQ(config.num_key_value_heads, 4);
  EXPECT_TRUE(config.attention_bias);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.torch_dtype, DType::kFloat32);
  EXPECT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_EQ(config.rope_theta, 5e5);
  EXPECT_EQ(config.bos_token_id, 7);
  EXPECT_EQ(config.eos_token_id, -1);
  EXPECT_EQ(config.rope_scaling, (RopeScaling{RopeScaling::Type::kDynamic, 4}));
}

TEST(ModelConfig, TakesTheClassDefaultsForAbsentKeys) {
  const ModelConfig config = Parsed({{"model_type", "deepseek"}});
  EXPECT_EQ(config, ModelConfig());
  EXPECT_FALSE(config.is_moe_layer(29));
}

TEST(ModelConfig, TakesNullForDenseLayersAndForAsManyKeyValueHeads) {
  json object = With("num_key_value_heads", nullptr);
  object["n_routed_experts"] = nullptr;
  object["n_shared_experts"] = nullptr;
  object["num_experts_per_tok"] = nullptr;
  const ModelConfig config = Parsed(object);
  EXPECT_EQ(config.num_key_value_heads, 16);
  EXPECT_EQ(config.n_routed_experts, 0);
  EXPECT_EQ(config.n_shared_experts, 0);
  EXPECT_FALSE(config.is_moe_layer(27));
}

TEST(ModelConfig, TakesDtypeUnderItsNewerNameToo) {
  EXPECT_EQ(Parsed({{"model_type", "deepseek"}, {"dtype", "float16"}}).torch_dtype,
            DType::kFloat16);
  EXPECT_THAT(Error(R"({"model_type": "deepseek", "dtype": "int8"})"), HasSubstr("dtype is"));
}

TEST(ModelConfig, RoutesEveryMoeLayerFreqthLayerAfterTheDenseOnes) {
  json object = With("moe_layer_freq", 3);
  object["first_k_dense_replace"] = 4;
  const ModelConfig config = Parsed(object);
  EXPECT_FALSE(config.is_moe_layer(0));
  EXPECT_FALSE(config.is_moe_layer(3));
  EXPECT_FALSE(config.is_moe_layer(4));
  EXPECT_TRUE(config.is_moe_layer(6));
}

TEST(ModelConfig, IgnoresKeysThatDoNotChangeTheComputation) {
  json object = Published16b();
  object.update({{"aux_loss_alpha", 0.001},
                 {"seq_aux", true},
                 {"pad_token_id", nullptr},
                 {"pretraining_tp", 4},
                 {"some_label", {1, 2, 3}},
                 {"routed_scaling_factor", 1.0},
                 {"topk_method", "greedy"},
                 {"head_dim", 128},
                 {"sliding_window", nullptr}});
  EXPECT_EQ(Parsed(object), *PresetModelConfig("16b"));
}

struct BadField {
  std::string field;
  json value;
  std::string expectation;
};

TEST(ModelConfig, RefusesWrongTypesAndRangesByName) {
  const std::vector<BadField> cases = {
      {"hidden_size", 2048.0, "an integer from 1 to 65536"},
      {"hidden_size", "2048", "an integer"},
      {"hidden_size", true, "an integer"},
      {"hidden_size", nullptr, "an integer"},
      {"hidden_size", -1, "an integer"},
      {"hidden_size", 0, "an integer"},
      {"hidden_size", 4294967297, "an integer"},
      {"hidden_size", 1e100, "an integer"},
      {"hidden_size", {2048}, "an integer"},
      {"vocab_size", 18446744073709551615u, "an integer"},
      {"intermediate_size", 1.5, "an integer"},
      {"moe_intermediate_size", -1408, "an integer"},
      {"num_hidden_layers", 1'000'000, "an integer from 1 to 512"},
      {"num_attention_heads", 0, "an integer"},
      {"num_key_value_heads", "16", "an integer"},
      {"n_routed_experts", 64.5, "an integer"},
      {"n_shared_experts", -2, "an integer"},
      {"num_experts_per_tok", false, "an integer"},
      {"first_k_dense_replace", -1, "an integer"},
      {"moe_layer_freq", 0, "an integer from 1"},
      {"max_position_embeddings", 1LL << 40, "an integer"},
      {"bos_token_id", -1, "an integer"},
      {"eos_token_id", {100001}, "an integer"},
      {"norm_topk_prob", 0, "true or false"},
      {"attention_bias", "false", "true or false"},
      {"tie_word_embeddings", nullptr, "true or false"},
      {"rms_norm_eps", "1e-6", "a number"},
      {"rms_norm_eps", 0, "a number"},
      {"rope_theta", -10000, "a number"},
      {"initializer_range", -0.02, "a number"},
      {"torch_dtype", "float64", "\"bfloat16\", \"float16\" or \"float32\""},
      {"torch_dtype", 16, "\"bfloat16\", \"float16\" or \"float32\""},
      {"rope_scaling", "linear", "null or {"},
      {"rope_scaling", {{"type", "yarn"}, {"factor", 2.0}}, "\"linear\" or \"dynamic\""},
      {"rope_scaling", {{"type", "linear"}}, "null or {"},
      {"rope_scaling", {{"type", "linear"}, {"factors", 2.0}}, "a number"},
      {"rope_scaling", {{"type", "linear"}, {"factor", "2"}}, "a number"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 0.5}}, "a number from 1"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 2}, {"beta", 1}}, "null or {"},
  };
  for (const auto& [field, value, expectation] : cases) {
    EXPECT_THAT(Error(With(field, value).dump()), AllOf(HasSubstr(field), HasSubstr(expectation)))
        << field << " = " << value;
  }
  EXPECT_THAT(Error(With("hidden_size", "2048").dump()),
              testing::StrEq(R"(hidden_size is "2048", expected an integer from 1 to 65536)"));
}

TEST(ModelConfig, RefusesValuesThatWouldChangeTheComputation) {
  const std::vector<BadField> cases = {
      {"model_type", "deepseek_v2", "\"deepseek\""},
      {"architectures", {"DeepseekV2ForCausalLM"}, "DeepseekForCausalLM"},
      {"scoring_func", "sigmoid", "softmax"},
      {"hidden_act", "gelu", "silu"},
      {"topk_method", "group_limited_greedy", "greedy"},
      {"n_group", 8, "1"},
      {"topk_group", 3, "1"},
      {"routed_scaling_factor", 2.5, "1"},
      {"quantization_config", {{"bits", 4}}, "null"},
      {"sliding_window", 4096, "null"},
      {"mlp_bias", true, "false"},
      {"q_lora_rank", 1536, "null"},
      {"rope_parameters", {{"rope_type", "yarn"}}, "null"},
  };
  for (const auto& [field, value, expectation] : cases) {
    EXPECT_THAT(Error(With(field, value).dump()),
                AllOf(HasSubstr(field + " is "), HasSubstr(expectation)));
  }
  json untyped = Published16b();
  untyped.erase("model_type");
  EXPECT_THAT(Error(untyped.dump()), HasSubstr("model_type is missing"));
}

TEST(ModelConfig, RefusesFieldsThatContradictEachOther) {
  EXPECT_THAT(Error(With("num_attention_heads", 12).dump()),
              AllOf(HasSubstr("hidden_size is 2048"), HasSubstr("multiple"), HasSubstr("12")));
  EXPECT_THAT(Error(With("hidden_size", 16 * 127).dump()),
              AllOf(HasSubstr("127"), HasSubstr("even")));
  EXPECT_THAT(Error(With("hidden_size", 16 * 2).dump()), HasSubstr("at least 4"));
  EXPECT_THAT(Error(With("head_dim", 64).dump()),
              AllOf(HasSubstr("head_dim is 64"), HasSubstr("128")));
  EXPECT_THAT(Error(With("num_key_value_heads", 3).dump()), HasSubstr("num_key_value_heads is 3"));
  EXPECT_THAT(Error(With("num_key_value_heads", 0).dump()), HasSubstr("num_key_value_heads is 0"));
  EXPECT_THAT(Error(With("num_experts_per_tok", 65).dump()),
              AllOf(HasSubstr("num_experts_per_tok is 65"), HasSubstr("64")));
  EXPECT_THAT(Error(With("num_experts_per_tok", nullptr).dump()),
              HasSubstr("num_experts_per_tok is 0"));
  EXPECT_THAT(Error(With("eos_token_id", 102400).dump()),
              AllOf(HasSubstr("eos_token_id is 102400"), HasSubstr("vocab_size")));
}

TEST(ModelConfig, SaysAtWhichByteJsonIsMalformed) {
  EXPECT_THAT(Error(R"({"model_type": "deepseek",})"), HasSubstr("malformed JSON at byte 27"));
  EXPECT_THAT(Error(""), HasSubstr("malformed JSON at byte 1"));
  EXPECT_THAT(Error("{\"model_type\": \"\xff\"}"), HasSubstr("malformed JSON at byte"));
  EXPECT_THAT(Error(R"({"model_type": "deepseek", "hidden_size": 1e999})"),
              AllOf(HasSubstr("hidden_size"), HasSubstr("out of range")));
  EXPECT_THAT(Error("[1, 2]"), HasSubstr("expected an object"));
  const std::string nested = std::string(100'000, '[') + std::string(100'000, ']');
  EXPECT_THAT(Error("{\"a\": " + nested + "}"), HasSubstr("nested more than 64 deep"));
}

TEST(ModelConfig, CutsLongValuesInErrors) {
  EXPECT_LT(Error(With("hidden_size", std::string(100'000, 'x')).dump()).size(), 300u);
}

TEST(ModelConfig, SurvivesBeingWrittenAndRead) {
  for (const char* name : {"tiny", "2b", "16b", "145b"}) {
    const ModelConfig config = *PresetModelConfig(name);
    EXPECT_EQ(Parsed(json::parse(FormatModelConfig(config))), config) << name;
  }
  ModelConfig config = *PresetModelConfig("tiny");
  config.n_routed_experts = config.n_shared_experts = config.num_experts_per_tok = 0;
  config.rope_scaling = {RopeScaling::Type::kLinear, 2.5};
  config.num_key_value_heads = 2;
  config.attention_bias = config.tie_word_embeddings = config.norm_topk_prob = true;
  config.eos_token_id = -1;
  config.torch_dtype = DType::kFloat16;
  config.rms_norm_eps = 1e-5f;
  EXPECT_EQ(Parsed(json::parse(FormatModelConfig(config))), config);
  EXPECT_THAT(FormatModelConfig(config), HasSubstr("\"rms_norm_eps\": 1e-05,"));
}

TEST(ModelConfig, CountsTheParametersOfThePapersModels) {
  EXPECT_EQ(PresetModelConfig("16b")->num_parameters(), 16'375'728'128);
  // The paper says 144.6 and 2.0 billion.
  EXPECT_NEAR(static_cast<double>(PresetModelConfig("145b")->num_parameters()), 144.6e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(PresetModelConfig("2b")->num_parameters()), 2.0e9, 0.1e9);
}

TEST(ModelConfig, CountsTiedEmbeddingsOnceAndBiasesToo) {
  ModelConfig config = *PresetModelConfig("16b");
  config.tie_word_embeddings = true;
  config.attention_bias = true;
  EXPECT_EQ(config.num_parameters(), 16'375'728'128 - 102400 * 2048 + 28 * 4 * 2048);
}

TEST(ModelConfig, NamesThePresetsWhenAskedForAnother) {
  const absl::Status status = PresetModelConfig("7b").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("7b"), HasSubstr("tiny, 2b, 16b")));
}

TEST(ModelConfig, NamesTheFileItCannotRead) {
  const TempDirectory directory;
  EXPECT_EQ(ReadModelConfig(directory.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ReadModelConfig(directory.path()).status().message()),
              HasSubstr(directory.path() + "/config.json"));
  directory.Write("config.json", With("hidden_act", "relu").dump());
  EXPECT_THAT(std::string(ReadModelConfig(directory.path()).status().message()),
              AllOf(HasSubstr("/config.json: hidden_act is")));
  directory.Write("config.json", std::string((1 << 20) + 1, ' '));
  EXPECT_THAT(std::string(ReadModelConfig(directory.path()).status().message()),
              AllOf(HasSubstr("1048577 bytes"), HasSubstr("at most 1048576")));
  directory.Write("config.json", Published16b().dump());
  EXPECT_TRUE(ReadModelConfig(directory.path()).ok());
}

}  // namespace
}  // namespace shoal
