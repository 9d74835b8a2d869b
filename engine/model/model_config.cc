#include "engine/model/model_config.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/model/checkpoint_layout.h"
#include "engine/model/json_file.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 1 << 20;

constexpr std::string_view kModelType = "deepseek";
constexpr std::string_view kArchitecture = "DeepseekForCausalLM";

/// Fields that would change the computation, with the values that leave it as it is. Anything else
/// in them is refused.
const std::vector<std::pair<std::string, std::vector<json>>>& FixedFields() {
  static const auto* const kFields = new std::vector<std::pair<std::string, std::vector<json>>>{
      {"model_type", {kModelType}},
      {"architectures", {json::array({kArchitecture}), nullptr}},
      {"scoring_func", {"softmax"}},
      {"hidden_act", {"silu"}},
      {"topk_method", {"greedy", nullptr}},
      {"n_group", {1, nullptr}},
      {"topk_group", {1, nullptr}},
      {"routed_scaling_factor", {1, nullptr}},
      {"quantization_config", {nullptr}},
      {"sliding_window", {nullptr}},
      {"use_sliding_window", {false, nullptr}},
      {"layer_types", {nullptr}},
      {"mlp_bias", {false, nullptr}},
      {"use_qk_norm", {false, nullptr}},
      {"clip_qkv", {nullptr}},
      {"attn_logit_softcapping", {nullptr}},
      {"final_logit_softcapping", {nullptr}},
      {"logit_scale", {1, nullptr}},
      {"q_lora_rank", {nullptr}},
      {"kv_lora_rank", {nullptr}},
      {"partial_rotary_factor", {1, nullptr}},
      {"rope_parameters", {nullptr}},
      {"is_encoder_decoder", {false, nullptr}},
      {"add_cross_attention", {false, nullptr}},
  };
  return *kFields;
}

absl::Status WrongField(std::string_view name, const json& value, const std::string& expected) {
  return absl::InvalidArgumentError(
      fmt::format("{} is {}, expected {}", name, Shown(value), expected));
}

/// Reads typed fields of an object. A field that is absent leaves its target as it is; the first
/// error is kept and ends the reading.
class FieldReader {
 public:
  explicit FieldReader(const json& object) : object_(object) {}

  const absl::Status& status() const { return status_; }

  /// 0 <= min.
  template <typename Integer>
  void ReadInteger(const char* name, int64_t min, int64_t max, Integer* value) {
    const json* field = Find(name);
    if (field == nullptr) return;
    // The parser gives every integer that is not negative this type.
    if (!field->is_number_unsigned() || field->get<uint64_t>() < static_cast<uint64_t>(min) ||
        field->get<uint64_t>() > static_cast<uint64_t>(max)) {
      status_ = WrongField(name, *field, fmt::format("an integer from {} to {}", min, max));
      return;
    }
    *value = field->get<Integer>();
  }

  /// The same; null means `null_value`.
  template <typename Integer>
  void ReadIntegerOrNull(const char* name, int64_t max, Integer null_value, Integer* value) {
    const json* field = Find(name);
    if (field != nullptr && field->is_null()) {
      *value = null_value;
    } else {
      ReadInteger(name, 0, max, value);
    }
  }

  template <typename Float>
  void ReadNumber(const char* name, double min, double max, Float* value) {
    const json* field = Find(name);
    if (field == nullptr) return;
    if (!field->is_number() || field->get<double>() < min || field->get<double>() > max) {
      status_ = WrongField(name, *field, fmt::format("a number from {} to {}", min, max));
      return;
    }
    *value = field->get<Float>();
  }

  void ReadBool(const char* name, bool* value) {
    const json* field = Find(name);
    if (field == nullptr) return;
    if (!field->is_boolean()) {
      status_ = WrongField(name, *field, "true or false");
      return;
    }
    *value = field->get<bool>();
  }

  void ReadDType(const char* name, DType* value) {
    const json* field = Find(name);
    if (field == nullptr || field->is_null()) return;
    for (DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
      if (*field == Name(dtype)) {
        *value = dtype;
        return;
      }
    }
    status_ = WrongField(name, *field, R"("bfloat16", "float16" or "float32")");
  }

  void ReadRopeScaling(RopeScaling* scaling) {
    const json* field = Find("rope_scaling");
    if (field == nullptr || field->is_null()) return;
    const json type = field->is_object() ? field->value("type", json()) : json();
    const bool dynamic = type == "dynamic";
    if ((!dynamic && type != "linear") || field->size() != 2) {
      status_ = WrongField("rope_scaling", *field,
                           R"(null or {"type": "linear" or "dynamic", "factor": number})");
      return;
    }
    FieldReader reader(*field);
    reader.ReadNumber("factor", 1, 1e6, &scaling->factor);
    if (!reader.status().ok() || !field->contains("factor")) {
      status_ = WrongField("rope_scaling.factor", field->value("factor", json()),
                           "a number from 1 to 1e6");
      return;
    }
    scaling->type = dynamic ? RopeScaling::Type::kDynamic : RopeScaling::Type::kLinear;
  }

 private:
  /// The field, or null if it is absent or an error was met.
  const json* Find(const char* name) const {
    if (!status_.ok()) return nullptr;
    const auto found = object_.find(name);
    return found == object_.end() ? nullptr : &*found;
  }

  const json& object_;
  absl::Status status_;
};

absl::Status CheckFixedFields(const json& object) {
  if (!object.contains("model_type")) {
    return absl::InvalidArgumentError(
        fmt::format("model_type is missing, expected \"{}\"", kModelType));
  }
  for (const auto& [name, allowed] : FixedFields()) {
    const auto field = object.find(name);
    if (field == object.end() || std::ranges::find(allowed, *field) != allowed.end()) continue;
    return WrongField(name, *field, Shown(allowed.front()) + ", the only one supported");
  }
  return absl::OkStatus();
}

absl::Status CheckHeads(const ModelConfig& config, const json& object) {
  if (config.hidden_size % config.num_attention_heads != 0) {
    return absl::InvalidArgumentError(
        fmt::format("hidden_size is {}, expected a multiple of num_attention_heads, which is {}",
                    config.hidden_size, config.num_attention_heads));
  }
  if (config.head_dim() % 2 != 0 || config.head_dim() < 4) {
    return absl::InvalidArgumentError(fmt::format(
        "hidden_size / num_attention_heads is {}, expected an even number of at least 4",
        config.head_dim()));
  }
  if (const auto field = object.find("head_dim");
      field != object.end() && !field->is_null() && *field != config.head_dim()) {
    return WrongField(
        "head_dim", *field,
        fmt::format("hidden_size / num_attention_heads, which is {}", config.head_dim()));
  }
  if (config.num_key_value_heads < 1 ||
      config.num_attention_heads % config.num_key_value_heads != 0) {
    return absl::InvalidArgumentError(fmt::format(
        "num_key_value_heads is {}, expected a divisor of num_attention_heads, which is {}",
        config.num_key_value_heads, config.num_attention_heads));
  }
  return absl::OkStatus();
}

absl::Status CheckConsistency(const ModelConfig& config, const json& object) {
  RETURN_IF_ERROR(CheckHeads(config, object));
  if (config.n_routed_experts > 0 &&
      (config.num_experts_per_tok < 1 || config.num_experts_per_tok > config.n_routed_experts)) {
    return absl::InvalidArgumentError(
        fmt::format("num_experts_per_tok is {}, expected 1 to n_routed_experts, which is {}",
                    config.num_experts_per_tok, config.n_routed_experts));
  }
  const std::pair<const char*, int32_t> ids[] = {{"bos_token_id", config.bos_token_id},
                                                 {"eos_token_id", config.eos_token_id}};
  for (const auto& [name, id] : ids) {
    if (id >= config.vocab_size) {
      return absl::InvalidArgumentError(fmt::format(
          "{} is {}, expected less than vocab_size, which is {}", name, id, config.vocab_size));
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t ModelConfig::num_parameters() const {
  int64_t count = 0;
  for (const TensorSpec& tensor : CheckpointLayout(*this)) {
    int64_t elements = 1;
    for (int64_t dim : tensor.shape) elements *= dim;
    count += elements;
  }
  return count;
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view text) {
  ASSIGN_OR_RETURN(const json object, ParseJsonObject(text));
  RETURN_IF_ERROR(CheckFixedFields(object));
  ModelConfig config;
  FieldReader reader(object);
  reader.ReadInteger("vocab_size", 1, 1 << 24, &config.vocab_size);
  reader.ReadInteger("hidden_size", 1, 1 << 16, &config.hidden_size);
  reader.ReadInteger("intermediate_size", 1, 1 << 20, &config.intermediate_size);
  reader.ReadInteger("moe_intermediate_size", 1, 1 << 20, &config.moe_intermediate_size);
  reader.ReadInteger("num_hidden_layers", 1, 512, &config.num_hidden_layers);
  reader.ReadInteger("num_attention_heads", 1, 1024, &config.num_attention_heads);
  reader.ReadIntegerOrNull("num_key_value_heads", 1024, config.num_attention_heads,
                           &config.num_key_value_heads);
  reader.ReadIntegerOrNull("n_routed_experts", 1024, 0, &config.n_routed_experts);
  reader.ReadIntegerOrNull("n_shared_experts", 1024, 0, &config.n_shared_experts);
  reader.ReadIntegerOrNull("num_experts_per_tok", 1024, 0, &config.num_experts_per_tok);
  reader.ReadInteger("first_k_dense_replace", 0, 512, &config.first_k_dense_replace);
  reader.ReadInteger("moe_layer_freq", 1, 512, &config.moe_layer_freq);
  reader.ReadBool("norm_topk_prob", &config.norm_topk_prob);
  reader.ReadInteger("max_position_embeddings", 1, 1 << 24, &config.max_position_embeddings);
  reader.ReadNumber("rms_norm_eps", 1e-12, 1, &config.rms_norm_eps);
  reader.ReadNumber("rope_theta", 1, 1e12, &config.rope_theta);
  reader.ReadRopeScaling(&config.rope_scaling);
  reader.ReadBool("attention_bias", &config.attention_bias);
  reader.ReadBool("tie_word_embeddings", &config.tie_word_embeddings);
  reader.ReadIntegerOrNull("bos_token_id", 1 << 24, -1, &config.bos_token_id);
  reader.ReadIntegerOrNull("eos_token_id", 1 << 24, -1, &config.eos_token_id);
  reader.ReadDType("dtype", &config.torch_dtype);  // its name in files of newer tools
  reader.ReadDType("torch_dtype", &config.torch_dtype);
  reader.ReadNumber("initializer_range", 0, 1000, &config.initializer_range);
  RETURN_IF_ERROR(reader.status());
  RETURN_IF_ERROR(CheckConsistency(config, object));
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxConfigBytes));
  absl::StatusOr<ModelConfig> config = ParseModelConfig(text);
  if (!config.ok()) return AtPath(path, config.status());
  return config;
}

std::string FormatModelConfig(const ModelConfig& config) {
  const auto count_or_null = [](int count) { return count > 0 ? json(count) : json(); };
  const auto id_or_null = [](int32_t id) { return id >= 0 ? json(id) : json(); };
  json rope_scaling;
  if (config.rope_scaling.type != RopeScaling::Type::kNone) {
    const bool linear = config.rope_scaling.type == RopeScaling::Type::kLinear;
    rope_scaling = {{"type", linear ? "linear" : "dynamic"},
                    {"factor", config.rope_scaling.factor}};
  }
  const nlohmann::ordered_json object = {
      {"architectures", {kArchitecture}},
      {"attention_bias", config.attention_bias},
      {"attention_dropout", 0.0},
      {"bos_token_id", id_or_null(config.bos_token_id)},
      {"eos_token_id", id_or_null(config.eos_token_id)},
      {"first_k_dense_replace", config.first_k_dense_replace},
      {"hidden_act", "silu"},
      {"hidden_size", config.hidden_size},
      {"initializer_range", config.initializer_range},
      {"intermediate_size", config.intermediate_size},
      {"max_position_embeddings", config.max_position_embeddings},
      {"model_type", kModelType},
      {"moe_intermediate_size", config.moe_intermediate_size},
      {"moe_layer_freq", config.moe_layer_freq},
      {"n_routed_experts", count_or_null(config.n_routed_experts)},
      {"n_shared_experts", count_or_null(config.n_shared_experts)},
      {"norm_topk_prob", config.norm_topk_prob},
      {"num_attention_heads", config.num_attention_heads},
      {"num_experts_per_tok", count_or_null(config.num_experts_per_tok)},
      {"num_hidden_layers", config.num_hidden_layers},
      {"num_key_value_heads", config.num_key_value_heads},
      {"pretraining_tp", 1},
      // Through its shortest text, so that the file says 1e-06 and not the digits of a float.
      {"rms_norm_eps", std::stod(fmt::format("{}", config.rms_norm_eps))},
      {"rope_scaling", rope_scaling},
      {"rope_theta", config.rope_theta},
      {"scoring_func", "softmax"},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"torch_dtype", Name(config.torch_dtype)},
      {"use_cache", true},
      {"vocab_size", config.vocab_size},
  };
  return object.dump(2) + "\n";
}

}  // namespace shoal
