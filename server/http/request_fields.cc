#include "server/http/request_fields.h"

#include <cfloat>
#include <charconv>
#include <cmath>
#include <utility>

#include "server/service/field_error.h"

namespace shoal {
namespace {

using Type = JsonEvent::Type;

constexpr size_t kMaxPrompts = 64;

bool IsTokenId(const JsonEvent& event) {
  return event.type == Type::kInteger && event.integer >= 0 &&
         event.integer <= std::numeric_limits<int32_t>::max();
}

class PromptsReader {
 public:
  explicit PromptsReader(std::vector<GenerateCall::Prompt>* prompts) : prompts_(prompts) {}

  std::string operator()(const JsonEvent& event) {
    if (event.type == Type::kEnd) return "";
    if (event.depth == 1) return Begin(event);
    if (event.depth == 2) return Element(event);
    if (!IsTokenId(event)) return "a token id";
    std::get<GenerateCall::TokenIds>(prompts_->back())
        .push_back(static_cast<int32_t>(event.integer));
    return "";
  }

 private:
  std::string Begin(const JsonEvent& event) {
    prompts_->clear();
    element_.reset();
    if (event.type == Type::kString) {
      prompts_->emplace_back(std::move(*event.string));
    } else if (event.type != Type::kArray && event.type != Type::kNull) {
      return "a string, an array of strings, an array of token ids or an array of such arrays";
    }
    return "";
  }

  std::string Element(const JsonEvent& event) {
    if (!element_) {
      if (event.type != Type::kString && event.type != Type::kArray && !IsTokenId(event)) {
        return "a string, a token id or an array of token ids";
      }
      element_ = event.type;
      if (event.type == Type::kInteger) prompts_->emplace_back(GenerateCall::TokenIds());
    }
    if (event.type != *element_) return "of the same type as the elements before it";
    if (event.type == Type::kInteger) {
      if (!IsTokenId(event)) return "a token id";
      std::get<GenerateCall::TokenIds>(prompts_->back())
          .push_back(static_cast<int32_t>(event.integer));
      return "";
    }
    if (prompts_->size() == kMaxPrompts) {
      return fmt::format("the end of the array: at most {} prompts may be sent", kMaxPrompts);
    }
    if (event.type == Type::kString) {
      prompts_->emplace_back(std::move(*event.string));
    } else {
      prompts_->emplace_back(GenerateCall::TokenIds());
    }
    return "";
  }

  std::vector<GenerateCall::Prompt>* const prompts_;
  std::optional<Type> element_;  // what the outer array holds
};

/// Depths: 1 the array, 2 a message, 3 its fields, 4 a content part, 5 its fields.
class MessagesReader {
 public:
  explicit MessagesReader(std::vector<GenerateCall::Prompt>* prompts) : prompts_(prompts) {}

  std::string operator()(const JsonEvent& event) {
    switch (event.depth) {
      case 1:
        return Begin(event);
      case 2:
        return event.type == Type::kEnd ? EndMessage() : BeginMessage(event);
      case 3:
        return Field(event);
      case 4:
        return Nested(event);
      case 5:
        return field_ == "content" ? PartField(event) : "";
      default:
        return "";
    }
  }

 private:
  std::string Begin(const JsonEvent& event) {
    if (event.type == Type::kEnd) return "";
    prompts_->clear();
    if (event.type == Type::kNull) return "";
    if (event.type != Type::kArray) return "an array of messages";
    prompts_->emplace_back(GenerateCall::Conversation());
    return "";
  }

  std::string BeginMessage(const JsonEvent& event) {
    if (event.type != Type::kObject) return "an object with role and content";
    message_ = {};
    has_content_ = false;
    return "";
  }

  std::string EndMessage() {
    // An assistant's message without text is how clients repeat an empty reply.
    if (message_.role.empty() || (!has_content_ && message_.role != "assistant")) {
      return "an object with role and content";
    }
    std::get<GenerateCall::Conversation>(prompts_->back()).push_back(std::move(message_));
    return "";
  }

  std::string Field(const JsonEvent& event) {
    if (event.type == Type::kEnd) return "";
    field_ = event.key;
    if (field_ == "role") return Role(event);
    if (field_ == "content") return Content(event);
    const bool is_call = field_ == "tool_calls" || field_ == "function_call";
    if (is_call && event.type != Type::kNull && event.type != Type::kArray) {
      return "null (tools are not supported)";
    }
    return "";
  }

  std::string Role(const JsonEvent& event) {
    std::string_view role;
    if (event.type == Type::kString) role = *event.string;
    if (role != "system" && role != "developer" && role != "user" && role != "assistant") {
      return "\"system\", \"developer\", \"user\" or \"assistant\"";
    }
    message_.role = role == "developer" ? "system" : role;
    return "";
  }

  std::string Content(const JsonEvent& event) {
    message_.content.clear();
    num_parts_ = 0;
    has_content_ = event.type != Type::kNull;
    if (event.type == Type::kString) {
      message_.content = std::move(*event.string);
    } else if (event.type != Type::kArray && event.type != Type::kNull) {
      return "a string or an array of text parts";
    }
    return "";
  }

  /// What is in a field of a message.
  std::string Nested(const JsonEvent& event) {
    if (field_ == "tool_calls") return "left out (tools are not supported)";
    if (field_ != "content") return "";
    if (event.type == Type::kEnd) return EndPart();
    if (event.type != Type::kObject) return "an object with type \"text\" and text";
    part_text_.reset();
    part_is_text_ = false;
    return "";
  }

  std::string PartField(const JsonEvent& event) {
    if (event.key == "type") {
      part_is_text_ = event.type == Type::kString && *event.string == "text";
      if (!part_is_text_) return "\"text\" (other parts are not supported)";
    } else if (event.key == "text") {
      if (event.type != Type::kString) return "a string";
      part_text_ = std::move(*event.string);
    }
    return "";
  }

  std::string EndPart() {
    if (!part_is_text_ || !part_text_) return "an object with type \"text\" and text";
    if (num_parts_++ > 0) message_.content.push_back('\n');
    message_.content += *part_text_;
    return "";
  }

  std::vector<GenerateCall::Prompt>* const prompts_;
  ChatMessage message_;
  bool has_content_ = false;
  std::string field_;  // of the message, at present
  int num_parts_ = 0;
  std::optional<std::string> part_text_;
  bool part_is_text_ = false;
};

}  // namespace

absl::Status RequestFields::Read(std::string_view body) const {
  const JsonHandler* reader = nullptr;
  return ReadJson(body, [&](const JsonEvent& event) -> std::string {
    if (event.depth == 0) {
      const bool is_object = event.type == Type::kObject || event.type == Type::kEnd;
      return is_object ? "" : "a JSON object";
    }
    if (event.depth == 1 && event.type != Type::kEnd) {
      const auto found = readers_.find(std::string(event.key));
      reader = found == readers_.end() ? nullptr : &found->second;
    }
    return reader == nullptr ? "" : (*reader)(event);
  });
}

JsonHandler BoolField(bool* target) {
  return [target, initial = *target](const JsonEvent& event) -> std::string {
    if (event.type != Type::kBool && event.type != Type::kNull) return "true or false";
    *target = event.type == Type::kBool ? event.boolean : initial;
    return "";
  };
}

JsonHandler FloatField(float* target) {
  return [target, initial = *target](const JsonEvent& event) -> std::string {
    if (event.type == Type::kNull) {
      *target = initial;
    } else if (event.is_number() && std::abs(event.number) <= FLT_MAX) {
      *target = static_cast<float>(event.number);
    } else {
      return "a number";
    }
    return "";
  };
}

JsonHandler StringField(std::string* target) {
  return [target](const JsonEvent& event) -> std::string {
    if (event.type != Type::kString && event.type != Type::kNull) return "a string";
    *target = event.type == Type::kString ? std::move(*event.string) : "";
    return "";
  };
}

JsonHandler NonEmptyStringField(std::string* target) {
  return [target](const JsonEvent& event) -> std::string {
    const bool is_good = event.type == Type::kString && !event.string->empty();
    if (!is_good && event.type != Type::kNull) return "a string that is not empty";
    *target = is_good ? std::move(*event.string) : "";
    return "";
  };
}

JsonHandler SeedField(std::optional<uint64_t>* target) {
  return [target](const JsonEvent& event) -> std::string {
    target->reset();
    if (event.type == Type::kNull) return "";
    if (event.type != Type::kInteger) return "an integer of 64 bits";
    *target = static_cast<uint64_t>(event.integer);
    return "";
  };
}

JsonHandler StopField(std::vector<std::string>* target) {
  return [target](const JsonEvent& event) -> std::string {
    if (event.type == Type::kEnd) return "";
    if (event.depth == 1) target->clear();
    if (event.type == Type::kNull || (event.type == Type::kArray && event.depth == 1)) return "";
    if (event.type != Type::kString) return "a string, an array of strings or null";
    if (!event.string->empty()) target->push_back(std::move(*event.string));
    return "";
  };
}

JsonHandler TokenIdsField(std::vector<int32_t>* target) {
  return [target](const JsonEvent& event) -> std::string {
    if (event.type == Type::kEnd) return "";
    if (event.depth > 1) {
      if (!IsTokenId(event)) return "a token id";
      target->push_back(static_cast<int32_t>(event.integer));
      return "";
    }
    target->clear();
    return event.type == Type::kArray || event.type == Type::kNull ? "" : "an array of token ids";
  };
}

JsonHandler NonEmptyTokenIdsField(std::vector<int32_t>* target) {
  return [target, read = TokenIdsField(target)](const JsonEvent& event) -> std::string {
    if (event.type == Type::kEnd && target->empty()) return "an array of at least one token id";
    return read(event);
  };
}

JsonHandler LogitBiasField(std::map<int32_t, float>* target) {
  return [target](const JsonEvent& event) -> std::string {
    if (event.type == Type::kEnd) return "";
    if (event.depth == 1) {
      target->clear();
      const bool is_good = event.type == Type::kObject || event.type == Type::kNull;
      return is_good ? "" : "an object of token ids and numbers";
    }
    int32_t token_id = -1;
    const char* const end = event.key.data() + event.key.size();
    const auto [rest, error] = std::from_chars(event.key.data(), end, token_id);
    // Two names for one token would be two biases.
    if (error != std::errc() || rest != end || token_id < 0 ||
        event.key != fmt::format("{}", token_id)) {
      return "left out (its name is not a token id)";
    }
    if (!event.is_number() || std::abs(event.number) > FLT_MAX) return "a number";
    (*target)[token_id] = static_cast<float>(event.number);
    return "";
  };
}

JsonHandler PromptsField(std::vector<GenerateCall::Prompt>* target) {
  return PromptsReader(target);
}

JsonHandler MessagesField(std::vector<GenerateCall::Prompt>* target) {
  return MessagesReader(target);
}

JsonHandler EmptyField() {
  return [](const JsonEvent& event) -> std::string {
    const bool is_empty = event.type == Type::kNull || event.type == Type::kEnd ||
                          (event.type == Type::kBool && !event.boolean) ||
                          (event.type == Type::kString && event.string->empty()) ||
                          event.type == Type::kArray || event.type == Type::kObject;
    return is_empty && event.depth == 1 ? "" : "left out (it is not supported)";
  };
}

JsonHandler NeutralField(double neutral) {
  return [neutral](const JsonEvent& event) -> std::string {
    if (event.type == Type::kNull || (event.is_number() && event.number == neutral)) return "";
    return fmt::format("{} (other values are not supported)", neutral);
  };
}

JsonHandler NeutralField(bool neutral) {
  return [neutral](const JsonEvent& event) -> std::string {
    if (event.type == Type::kNull || (event.type == Type::kBool && event.boolean == neutral)) {
      return "";
    }
    return fmt::format("{} (otherwise it is not supported)", neutral);
  };
}

}  // namespace shoal
