#include "server/service/field_error.h"

#include <absl/strings/cord.h>

namespace shoal {
namespace {

constexpr char kFieldPayload[] = "shoal.field";

}  // namespace

absl::Status FieldError(std::string_view field, const std::string& message, absl::StatusCode code) {
  absl::Status status(code, message);
  status.SetPayload(kFieldPayload, absl::Cord(absl::string_view(field.data(), field.size())));
  return status;
}

std::string FieldOf(const absl::Status& status) {
  const auto field = status.GetPayload(kFieldPayload);
  return field ? std::string(*field) : "";
}

}  // namespace shoal
