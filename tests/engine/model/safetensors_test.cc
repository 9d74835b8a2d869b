#include "engine/model/safetensors.h"

#include <gmock/gmock.h>

#include <string>

namespace shoal {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// A file with this header and zeroed data.
std::string UnpaddedFile(const std::string& header, size_t data_bytes) {
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return length + header + std::string(data_bytes, '\0');
}

/// The same, the header padded so that the data is aligned.
std::string File(std::string header, size_t data_bytes) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return UnpaddedFile(header, data_bytes);
}

absl::StatusOr<std::vector<TensorInfo>> Parse(const std::string& file) {
  return ParseSafetensorsHeader(std::as_bytes(std::span(file)), static_cast<int64_t>(file.size()));
}

std::string Error(const std::string& file) {
  const auto tensors = Parse(file);
  EXPECT_EQ(tensors.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tensors.status().message());
}

/// A header of one tensor "w".
std::string One(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

TEST(SafetensorsHeader, ReadsWhatWasWritten) {
  const std::vector<TensorInfo> tensors = {{"a", DType::kBFloat16, {2, 3}, 0, 12},
                                           {"empty", DType::kFloat32, {0, 7}, 12, 12},
                                           {"b", DType::kFloat32, {}, 12, 16},
                                           {"c \"quoted\" \u00e9", DType::kFloat16, {5}, 16, 26}};
  const std::string header = FormatSafetensorsHeader(tensors);
  EXPECT_EQ(header.size() % 8, 0u);
  EXPECT_THAT(header, HasSubstr(R"("__metadata__":{"format":"pt"})"));
  const auto parsed = Parse(header + std::string(26, '\0'));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, tensors);
}

TEST(SafetensorsHeader, ReturnsTensorsInTheOrderOfTheData) {
  const auto parsed = Parse(File(R"({"x":{"dtype":"F16","shape":[1],"data_offsets":[2,4]},)"
                                 R"( "y":{"data_offsets":[0,2],"shape":[1],"dtype":"F16"}} )",
                                 4));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*parsed)[0].name, "y");
  EXPECT_EQ((*parsed)[1].name, "x");
}

TEST(SafetensorsHeader, AcceptsAFileWithoutTensors) {
  EXPECT_TRUE(Parse(File("{}", 0)).ok());
  EXPECT_TRUE(Parse(File(R"({"__metadata__":{"format":"pt"}})", 0)).ok());
}

TEST(SafetensorsHeader, RefusesAFileCutAnywhere) {
  const std::string file = File(One("\"F32\"", "[4]", "[0,16]"), 16);
  ASSERT_TRUE(Parse(file).ok());
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(Parse(file.substr(0, size)).ok()) << size;
  }
  EXPECT_THAT(Error(file + "x"), HasSubstr("take 16 bytes, but 17 data bytes"));
}

TEST(SafetensorsHeader, RefusesHeaderLengthsBeyondTheFile) {
  EXPECT_THAT(Error("1234567"), AllOf(HasSubstr("7 bytes"), HasSubstr("at least 8")));
  EXPECT_THAT(Error(std::string(8, '\xff') + "{}"),
              AllOf(HasSubstr("18446744073709551615"), HasSubstr("at most 2")));
  EXPECT_THAT(Error(std::string("\x03\0\0\0\0\0\0\0{}", 10)), HasSubstr("header length is 3"));
  const std::string big("\xff\xff\xff\xff\0\0\0\0", 8);
  EXPECT_THAT(
      std::string(
          ParseSafetensorsHeader(std::as_bytes(std::span(big)), 1LL << 40).status().message()),
      HasSubstr("4294967295"));
}

TEST(SafetensorsHeader, RefusesJsonOfAnotherStructure) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "malformed JSON at byte 9"},
      {"{", "malformed JSON at byte"},
      {"{}x", "malformed JSON"},
      {"{\"\xff\":{}}", "malformed JSON"},
      {"[]", "the header holds an array"},
      {"7", "the header holds a number"},
      {R"({"w":null})", "\"w\" holds null"},
      {R"({"w":[[[[[[)", "\"w\" holds an array"},
      {R"({"w":{"dtype":"F32","shape":[1]}})", "lacks one of"},
      {R"({"w":{"dtype":"F32","dtype":"F32"}})", "unexpected key \"dtype\""},
      {R"({"w":{"stride":[1]}})", "unexpected key \"stride\""},
      {R"({"__metadata__":{"a":1}})", "__metadata__ holds a number"},
      {R"({"__metadata__":{"a":{}}})", "__metadata__ holds an object"},
      {R"({"__metadata__":{},"__metadata__":{}})", "listed twice"},
      {One("\"F32\"", "4", "[0,16]"), "holds a number out of place"},
      {One("\"F32\"", "[4.0]", "[0,16]"), "expected an integer"},
      {One("\"F32\"", "[-4]", "[0,16]"), "holds the number -4"},
      {One("\"F32\"", "[true]", "[0,16]"), "holds a boolean"},
      {One("\"F32\"", "[\"4\"]", "[0,16]"), "holds a string"},
      {One("\"F32\"", "[1e400]", "[0,16]"), "malformed JSON"},
      {One("\"F32\"", "[1,1,1,1,1,4]", "[0,16]"), "more than 5 dimensions"},
      {One("\"F32\"", "[4]", "[0]"), "not two numbers"},
      {One("\"F32\"", "[4]", "[0,16,16]"), "not two numbers"},
      {One("4", "[4]", "[0,16]"), "holds a number out of place"},
  };
  for (const auto& [header, message] : cases) {
    EXPECT_THAT(Error(File(header, 16)), HasSubstr(message)) << header;
  }
}

TEST(SafetensorsHeader, NamesTheTensorOfAnUnsupportedDtype) {
  for (const char* dtype : {"F64", "I8", "I64", "U8", "BOOL", "F8_E4M3", "bf16", ""}) {
    EXPECT_THAT(Error(File(One(std::string("\"") + dtype + "\"", "[2]", "[0,16]"), 16)),
                AllOf(HasSubstr("\"w\""), HasSubstr(dtype), HasSubstr("BF16, F16 or F32")));
  }
}

TEST(SafetensorsHeader, RefusesRangesThatDoNotMatchShapeOrFile) {
  const std::pair<std::string, std::string> cases[] = {
      {One("\"F32\"", "[4]", "[0,20]"), "within the file's 16 data bytes"},
      {One("\"F32\"", "[4]", "[16,0]"), "within the file's 16 data bytes"},
      {One("\"F32\"", "[4]", "[4,16]"), "expected to begin at 0"},
      {One("\"F32\"", "[5]", "[0,16]"), "shape [5] take 20 bytes"},
      {One("\"BF16\"", "[4]", "[0,16]"), "shape [4] take 8 bytes"},
      {One("\"F32\"", "[4611686018427387904]", "[0,16]"), "too many"},
      {One("\"F32\"", "[4294967296,4294967296]", "[0,0]"), "too many"},
      {One("\"F32\"", "[9223372036854775808]", "[0,16]"), "holds the number"},
      {One("\"F32\"", "[36893488147419103232]", "[0,16]"), "expected an integer"},
      {One("\"F32\"", "[4]", "[0,18446744073709551615]"), "holds the number"},
      {One("\"F32\"", "[4]", "[0,4294967312]"), "within the file's 16"},
  };
  for (const auto& [header, message] : cases) {
    EXPECT_THAT(Error(File(header, 16)), AllOf(HasSubstr("\"w\""), HasSubstr(message))) << header;
  }
}

TEST(SafetensorsHeader, RefusesOverlapsGapsAndDuplicates) {
  const auto two = [](const char* first, const char* second) {
    return File(fmt::format(R"({{"a":{{"dtype":"F16","shape":[2],"data_offsets":{}}},)"
                            R"("{}":{{"dtype":"F16","shape":[2],"data_offsets":[{},8]}}}})",
                            first, second[0], second + 1),
                8);
  };
  EXPECT_THAT(Error(two("[0,4]", "b2")), AllOf(HasSubstr("\"b\""), HasSubstr("begin at 4")));
  EXPECT_THAT(Error(two("[0,4]", "b6")), HasSubstr("begin at 4"));
  EXPECT_THAT(Error(two("[0,4]", "b0")), HasSubstr("\"b\""));
  EXPECT_THAT(Error(two("[0,4]", "a4")), HasSubstr("\"a\" is listed twice"));
}

TEST(SafetensorsHeader, RefusesDataThatIsNotAligned) {
  const std::string header = R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  EXPECT_THAT(Error(UnpaddedFile(header + std::string((9 - header.size() % 8) % 8, ' '), 4)),
              HasSubstr("expected a multiple of 4"));
}

}  // namespace
}  // namespace shoal
