// FieldError: a refusal that knows which field of the call it is about.
#pragma once

#include <string>
#include <string_view>

#include "kernels/status.h"

namespace shoal {

/// An error with `message`, about the field `field`.
absl::Status FieldError(std::string_view field, const std::string& message,
                        absl::StatusCode code = absl::StatusCode::kInvalidArgument);

/// The field that `status` is about; empty if it does not say.
std::string FieldOf(const absl::Status& status);

}  // namespace shoal
