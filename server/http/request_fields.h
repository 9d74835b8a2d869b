// Readers of single fields of a request body: each checks the type and stores the value.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "server/http/json_reader.h"
#include "server/service/generation_service.h"

namespace shoal {

/// The fields of a body that is an object: a name and what its events go to. A value begins at
/// depth 1.
class RequestFields {
 public:
  /// Overrides what was there under this name.
  void Add(const std::string& name, JsonHandler reader) { readers_[name] = std::move(reader); }

  /// Reads all of `body`. Fields without a reader are ignored.
  absl::Status Read(std::string_view body) const;

 private:
  std::unordered_map<std::string, JsonHandler> readers_;
};

// Readers of one value. Null gives the target its default again, which is its value now.
JsonHandler BoolField(bool* target);
JsonHandler FloatField(float* target);
JsonHandler StringField(std::string* target);
/// Null, but not the empty string, leaves the target empty.
JsonHandler NonEmptyStringField(std::string* target);

/// `expected`: what the value must be, for the refusal.
template <typename Target>
JsonHandler IntegerField(Target* target, int64_t low, int64_t high, std::string expected) {
  return [target, initial = *target, low, high,
          expected = std::move(expected)](const JsonEvent& event) -> std::string {
    if (event.type == JsonEvent::Type::kNull) {
      *target = initial;
    } else if (event.type == JsonEvent::Type::kInteger && event.integer >= low &&
               event.integer <= high) {
      *target = static_cast<int32_t>(event.integer);
    } else {
      return expected;
    }
    return "";
  };
}

template <typename Target>
JsonHandler IntegerField(Target* target, int64_t low, int64_t high) {
  return IntegerField(target, low, high, fmt::format("an integer from {} to {}", low, high));
}

/// Any integer of 32 bits.
template <typename Target>
JsonHandler IntegerField(Target* target) {
  return IntegerField(target, std::numeric_limits<int32_t>::min(),
                      std::numeric_limits<int32_t>::max(), "an integer of 32 bits");
}

/// Any integer of 64 bits; negative ones wrap around.
JsonHandler SeedField(std::optional<uint64_t>* target);

// Readers of composed values.
/// A string or an array of strings; empty and null ones are left out.
JsonHandler StopField(std::vector<std::string>* target);
JsonHandler TokenIdsField(std::vector<int32_t>* target);
/// Null, but not the empty array, leaves the target empty.
JsonHandler NonEmptyTokenIdsField(std::vector<int32_t>* target);
/// An object of token ids, as decimals without signs or leading zeros, and numbers.
JsonHandler LogitBiasField(std::map<int32_t, float>* target);
/// A string, token ids, or an array of either.
JsonHandler PromptsField(std::vector<GenerateCall::Prompt>* target);
/// `target` gets one conversation.
JsonHandler MessagesField(std::vector<GenerateCall::Prompt>* target);

// Readers of what we cannot do. Null is neutral.
/// Only "", false, [] and {}.
JsonHandler EmptyField();
/// Only `neutral`.
JsonHandler NeutralField(double neutral);
JsonHandler NeutralField(bool neutral);

}  // namespace shoal
