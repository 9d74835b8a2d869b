// Arbitrary bytes as a template, and as the content of a message: never more than a clean error,
// and in the second case no byte of the content passes for the template's own.
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "tokenizer/jinja/jinja.h"

namespace {

using shoal::jinja::Segment;
using shoal::jinja::Template;
using Json = nlohmann::ordered_json;

constexpr Template::Limits kLimits{.max_steps = 20'000, .max_output_bytes = 1 << 16};

void RenderAsTemplate(const std::string& source) {
  const auto parsed = Template::Parse(source);
  if (!parsed.ok()) return;
  const Json trusted = {
      {"bos_token", "<s>"}, {"eos_token", "</s>"}, {"add_generation_prompt", true}};
  const Json input = {{"messages",
                       {{{"role", "system"}, {"content", " Be brief.\n"}},
                        {{"role", "user"}, {"content", "1+1=? \u00e9\u4f60"}},
                        {{"role", "assistant"}, {"content", ""}, {"n", 2}}}}};
  (void)(*parsed)->Render(trusted, input, kLimits);
}

void RenderAsContent(const std::string& content) {
  static const auto* const kTemplate =
      Template::Parse(
          "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}|"
          "{{ m.content | trim | upper | replace('A', 'b') }}|{{ m.content | tojson }}|"
          "{{ m.content.split() | join(' ') }}|{{ [m.content, m.content[::-1]] }}|"
          "{{ m.content.title().splitlines() | list | indent(2) }}{{ eos_token }}{% endfor %}")
          ->release();
  const Json trusted = {{"bos_token", "\x01"}, {"eos_token", "\x02"}};
  const Json input = {{"messages", {{{"role", "user"}, {"content", content}}}}};
  const auto segments = kTemplate->Render(trusted, input, kLimits);
  if (!segments.ok()) return;
  int special = 0;
  for (const Segment& segment : *segments) {
    if (segment.from_input) continue;
    for (const char c : segment.text) special += static_cast<int>(c == '\x01' || c == '\x02');
  }
  if (special != 2) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  RenderAsTemplate(bytes);
  RenderAsContent(bytes);
  return 0;
}
