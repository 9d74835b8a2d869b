// Renders every case of cases.json; the expected texts are Python Jinja2's (see update_cases.py).
#include <cstdio>
#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tokenizer/jinja/jinja.h"

namespace shoal::jinja {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<std::string> Render(const Json& test_case) {
  ASSIGN_OR_RETURN(const auto parsed, Template::Parse(test_case["template"].get<std::string>()));
  ASSIGN_OR_RETURN(const auto segments,
                   parsed->Render(Json::object(), test_case["context"], Limits()));
  std::string text;
  for (const Segment& segment : segments) text += segment.text;
  return text;
}

TEST(JinjaCases, RenderAsPythonDoes) {
  std::ifstream file("tests/tokenizer/jinja/cases.json");
  const Json cases = Json::parse(file);
  ASSERT_GE(cases.size(), 120);
  for (const auto& test_case : cases) {
    SCOPED_TRACE(test_case["name"].get<std::string>());
    const auto text = Render(test_case);
    if (test_case.contains("error")) {
      EXPECT_FALSE(text.ok()) << "rendered: " << *text;
    } else if (!text.ok()) {
      ADD_FAILURE() << text.status();
    } else {
      EXPECT_EQ(*text, test_case["expected"].get<std::string>());
    }
  }
  std::printf("%zu cases\n", cases.size());
}

}  // namespace
}  // namespace shoal::jinja
