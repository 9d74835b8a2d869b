// Any bytes as a request body: parsed, or refused with one clear sentence.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/status.h"
#include "server/http/json_writer.h"
#include "server/http/openai_request.h"
#include "server/service/field_error.h"

namespace {

void Check(const absl::Status& status) {
  if (status.ok()) return;
  const std::string message(status.message());
  SHOAL_CHECK(absl::IsInvalidArgument(status) && !message.empty(), "{}", status.ToString());
  SHOAL_CHECK(shoal::IsUtf8(message) && shoal::IsUtf8(shoal::FieldOf(status)), "{}", message);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  Check(shoal::ParseChatRequest(body).status());
  Check(shoal::ParseCompletionRequest(body).status());
  Check(shoal::ParseTokenizeRequest(body).status());
  Check(shoal::ParseDetokenizeRequest(body).status());
  return 0;
}
