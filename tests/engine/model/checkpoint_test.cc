#include "engine/model/checkpoint.h"

#include <gmock/gmock.h>

#include <array>
#include <bit>

#include "engine/model/safetensors.h"
#include "engine/model/safetensors_writer.h"
#include "tests/engine/model/temp_directory.h"

namespace shoal {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr char kIndex[] = "model.safetensors.index.json";

/// A file of one float32 tensor [2] with these values.
std::string FileOf(const std::string& name, std::array<float, 2> values) {
  const TensorInfo info = {name, DType::kFloat32, {2}, 0, 8};
  const auto bytes = std::bit_cast<std::array<char, 8>>(values);
  return FormatSafetensorsHeader({&info, 1}) + std::string(bytes.data(), bytes.size());
}

absl::Status OpenError(const TempDirectory& directory) {
  return Checkpoint::Open(directory.path()).status();
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(Checkpoint, ReadsASingleFile) {
  const TempDirectory directory;
  directory.Write("model.safetensors", FileOf("a", {1.5f, -2.0f}));
  const auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const std::vector<int64_t> shape = {2};
  const auto tensor = (*checkpoint)->Get("a", shape);
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  Checkpoint::Prefetch(*tensor);
  EXPECT_EQ(tensor->as<const float>()[0], 1.5f);
  EXPECT_EQ(tensor->as<const float>()[1], -2.0f);
  EXPECT_EQ((*checkpoint)->tensors().size(), 1u);
}

TEST(Checkpoint, TakesFromEachShardWhatTheIndexSays) {
  const TempDirectory directory;
  directory.Write("one.safetensors", FileOf("a", {1, 2}));
  directory.Write("two.safetensors", FileOf("b", {3, 4}));
  directory.Write(kIndex,
                  R"({"metadata": {"total_size": 16},
                      "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  const auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const std::vector<int64_t> shape = {2};
  EXPECT_EQ((*checkpoint)->Get("a", shape)->as<const float>()[1], 2.0f);
  EXPECT_EQ((*checkpoint)->Get("b", shape)->as<const float>()[0], 3.0f);
}

TEST(Checkpoint, NamesATensorThatIsAbsentOrOfAnotherShape) {
  const TempDirectory directory;
  directory.Write("model.safetensors", FileOf("a", {1, 2}));
  const auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const std::vector<int64_t> shape = {1, 2};
  const absl::Status wrong_shape = (*checkpoint)->Get("a", shape).status();
  EXPECT_EQ(wrong_shape.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(wrong_shape), "tensor a has shape [2], expected [1, 2]");
  const absl::Status absent = (*checkpoint)->Get("model.b", shape).status();
  EXPECT_EQ(absent.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(absent), HasSubstr("model.b"));
}

TEST(Checkpoint, NamesTheFileThatIsMissing) {
  const TempDirectory directory;
  EXPECT_EQ(OpenError(directory).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(OpenError(directory)),
              AllOf(HasSubstr(directory.path()), HasSubstr("model.safetensors")));
  directory.Write(kIndex, R"({"weight_map": {"a": "model-00001-of-00002.safetensors"}})");
  EXPECT_EQ(OpenError(directory).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(OpenError(directory)),
              HasSubstr(directory.path() + "/model-00001-of-00002.safetensors: no such file"));
}

TEST(Checkpoint, NamesTheShardThatLacksATensorOfTheIndex) {
  const TempDirectory directory;
  directory.Write("one.safetensors", FileOf("a", {1, 2}));
  directory.Write(kIndex, R"({"weight_map": {"b": "one.safetensors"}})");
  EXPECT_EQ(OpenError(directory).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(OpenError(directory)),
              AllOf(HasSubstr("one.safetensors"), HasSubstr("\"b\"")));
}

TEST(Checkpoint, NamesTheFileThatIsCut) {
  const TempDirectory directory;
  const std::string file = FileOf("a", {1, 2});
  for (size_t size : {size_t{0}, size_t{5}, size_t{20}, file.size() - 1}) {
    directory.Write("model.safetensors", file.substr(0, size));
    EXPECT_EQ(OpenError(directory).code(), absl::StatusCode::kInvalidArgument) << size;
    EXPECT_THAT(Message(OpenError(directory)), HasSubstr(directory.path() + "/model.safetensors"));
  }
}

TEST(Checkpoint, RefusesShardsOutsideItsDirectory) {
  const TempDirectory directory;
  for (const char* shard :
       {R"("../x.safetensors")", R"("/etc/passwd")", R"("a\\b")", R"("..")", R"(".")", R"("")",
        R"("one.safetensors\u0000")", "7", "null", R"(["one.safetensors"])"}) {
    directory.Write(kIndex, std::string(R"({"weight_map": {"a": )") + shard + "}}");
    EXPECT_EQ(OpenError(directory).code(), absl::StatusCode::kInvalidArgument) << shard;
    EXPECT_THAT(Message(OpenError(directory)), AllOf(HasSubstr(kIndex), HasSubstr("\"a\"")));
  }
}

TEST(Checkpoint, RefusesAMalformedIndex) {
  const TempDirectory directory;
  for (const char* index : {"", "{", "[]", "{}", R"({"weight_map": []})", "\xff"}) {
    directory.Write(kIndex, index);
    EXPECT_EQ(OpenError(directory).code(), absl::StatusCode::kInvalidArgument) << index;
    EXPECT_THAT(Message(OpenError(directory)), HasSubstr(kIndex));
  }
}

TEST(SafetensorsWriter, NamesAPathThatCannotBeWritten) {
  const TempDirectory directory;
  const TensorInfo info = {"a", DType::kFloat32, {2}, 0, 8};
  const auto writer = SafetensorsWriter::Create(directory.path() + "/none/x", {&info, 1});
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(writer.status()), HasSubstr(directory.path() + "/none/x"));
}

TEST(SafetensorsWriter, ReportsAFullDisk) {
  const std::vector<std::byte> data(1 << 20);
  const TensorInfo info = {"a", DType::kFloat32, {1 << 18}, 0, 1 << 20};
  auto writer = SafetensorsWriter::Create("/dev/full", {&info, 1});
  absl::Status status = writer.status();
  if (status.ok()) status = writer->Append(data);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(status), HasSubstr("/dev/full"));
}

}  // namespace
}  // namespace shoal
