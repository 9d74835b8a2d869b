#include "kernels/backends/backend_factory.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace shoal {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Matcher;
using testing::StartsWith;
using testing::StrEq;

constexpr const char* kModule = "libshoal_cuda.so";
constexpr std::string_view kBuildId = SHOAL_BUILD_ID;

/// Where this program lies, with the module for GPUs beside it if that was built.
fs::path BuildFolder() { return fs::read_symlink("/proc/self/exe").parent_path(); }

/// With the module for the emulated device, if that was built.
fs::path EmulatedFolder() { return BuildFolder() / "emulated"; }

bool HasModule(const fs::path& folder) { return fs::exists(folder / kModule); }

bool HasDriver() { return dlopen("libcuda.so.1", RTLD_LAZY) != nullptr; }

/// A folder that goes with its owner. The new processes of the test find it by an environment
/// variable, in place of making one each.
class SharedFolder {
 public:
  SharedFolder() {
    const char* const shared = std::getenv(kVariable);
    if (shared != nullptr) {
      path_ = shared;
      return;
    }
    std::string name = testing::TempDir() + "shoal_modules_XXXXXX";
    SHOAL_CHECK(mkdtemp(name.data()) != nullptr, "no folder {}", name);
    path_ = name;
    setenv(kVariable, name.c_str(), 1);
    is_owner_ = true;
  }
  ~SharedFolder() {
    if (!is_owner_) return;
    unsetenv(kVariable);
    fs::remove_all(path_);
  }

  const fs::path& path() const { return path_; }

  /// Writes the module.
  void Write(std::string_view contents) const {
    if (is_owner_) std::ofstream(path_ / kModule, std::ios::binary) << contents;
  }

 private:
  static constexpr const char* kVariable = "SHOAL_TEST_MODULES";

  fs::path path_;
  bool is_owner_ = false;
};

[[noreturn]] void SayWhatIsMade(const BackendFactoryConfig& config) {
  const absl::StatusOr<BackendFactory> factory = BackendFactory::Create(config);
  absl::Status status = factory.status();
  if (factory.ok()) status = factory->Make(0, nullptr).status();
  const std::string text = status.ok() ? factory->description() : status.ToString();
  std::fputs(text.c_str(), stderr);
  std::exit(0);
}

/// What is made of `config` by a new process whose module is the one in `folder`, if any: a process
/// loads it but once. CUDA devices are hidden, if there are any.
void ExpectMade(const fs::path& folder, const BackendFactoryConfig& config,
                const Matcher<const std::string&>& text) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  setenv("LD_LIBRARY_PATH", folder.c_str(), 1);
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  EXPECT_EXIT(SayWhatIsMade(config), testing::ExitedWithCode(0), text);
}

BackendFactoryConfig OneThreadOn(const std::string& device, int num_ranks = 1) {
  return {.device = device, .num_ranks = num_ranks, .num_threads = 1};
}

TEST(DeviceName, KnowsTheAcceptedForms) {
  using Kind = DeviceName::Kind;
  EXPECT_EQ(DeviceName::Parse("auto")->kind, Kind::kAuto);
  EXPECT_EQ(DeviceName::Parse("cpu")->kind, Kind::kCpu);
  for (const auto& [name, ordinal] : {std::pair("cuda", 0), {"cuda:0", 0}, {"cuda:12", 12}}) {
    const absl::StatusOr<DeviceName> device = DeviceName::Parse(name);
    ASSERT_TRUE(device.ok()) << name;
    EXPECT_EQ(device->kind, Kind::kCuda) << name;
    EXPECT_EQ(device->ordinal, ordinal) << name;
  }
}

TEST(BackendFactory, NamesTheAcceptedFormsOfADevice) {
  for (const std::string name : {"", "gpu", "CUDA", "cpu:0", "cuda:", "cuda:x", "cuda:-1",
                                 "cuda:1x", "cuda: 1", "cuda:99999999999"}) {
    const absl::Status status = BackendFactory::Create(OneThreadOn(name)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(std::string(status.message()),
              fmt::format("device is \"{}\", expected auto, cpu, cuda or cuda:N", name));
  }
}

TEST(BackendFactory, GivesEachRankItsPartOfTheMemory) {
  const BackendFactory whole = BackendFactory::Create(OneThreadOn("cpu")).value();
  const BackendFactory shared = BackendFactory::Create(OneThreadOn("cpu", 4)).value();
  EXPECT_EQ(whole.description(), "cpu");
  EXPECT_TRUE(whole.is_cpu());
  const int64_t all_bytes = whole.Make(0, nullptr)->device->FreeBytes();
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_LE(shared.Make(rank, nullptr)->device->FreeBytes(), all_bytes / 2);
  }
}

TEST(BackendFactory, AutoTakesTheCpuWhereThereIsNoDriver) {
  if (HasDriver()) GTEST_SKIP() << "this machine has an NVIDIA driver";
  if (HasModule(BuildFolder())) {
    ExpectMade(BuildFolder(), OneThreadOn("auto"),
               StrEq("cpu (this machine has no NVIDIA driver)"));
  } else {
    ExpectMade(BuildFolder(), OneThreadOn("auto"), StartsWith("cpu (no CUDA backend: "));
  }
}

TEST(BackendFactory, CudaAloneIsAnErrorWithoutADevice) {
  for (const std::string device : {"cuda", "cuda:0", "cuda:1"}) {
    if (!HasModule(BuildFolder())) {
      ExpectMade(BuildFolder(), OneThreadOn(device), StartsWith("UNAVAILABLE: no CUDA backend: "));
    } else if (HasDriver()) {
      ExpectMade(BuildFolder(), OneThreadOn(device), StartsWith("UNAVAILABLE: "));
    } else {
      ExpectMade(BuildFolder(), OneThreadOn(device),
                 StrEq("UNAVAILABLE: this machine has no NVIDIA driver"));
    }
  }
}

TEST(BackendFactory, NamesTheModuleThatIsMissing) {
  const SharedFolder empty;
  ExpectMade(empty.path(), OneThreadOn("cuda"),
             AllOf(StartsWith("UNAVAILABLE: no CUDA backend: "), HasSubstr(kModule)));
  ExpectMade(empty.path(), OneThreadOn("auto"),
             AllOf(StartsWith("cpu (no CUDA backend: "), HasSubstr(kModule)));
  ExpectMade(empty.path(), OneThreadOn("cpu"), StrEq("cpu"));
}

TEST(BackendFactory, NamesAModuleThatCannotBeLoaded) {
  const SharedFolder folder;
  folder.Write("no library at all");
  ExpectMade(folder.path(), OneThreadOn("cuda"),
             AllOf(StartsWith("UNAVAILABLE: no CUDA backend: "), HasSubstr(kModule)));
}

TEST(BackendFactory, RefusesAModuleOfAnotherBuild) {
  const fs::path source = HasModule(EmulatedFolder()) ? EmulatedFolder() : BuildFolder();
  if (!HasModule(source)) GTEST_SKIP() << "there is no module in this build";
  std::ifstream file(source / kModule, std::ios::binary);
  std::string module((std::istreambuf_iterator<char>(file)), {});
  const std::string id(kBuildId.data(), kBuildId.size() + 1);  // with its end
  int num_ids = 0;
  for (size_t at = module.find(id); at != std::string::npos; at = module.find(id, at + 1)) {
    module[at] = '9';
    ++num_ids;
  }
  ASSERT_GT(num_ids, 0);
  const SharedFolder folder;
  folder.Write(module);
  const std::string reason =
      fmt::format("no CUDA backend: {} is not of this build, {}", kModule, kBuildId);
  ExpectMade(folder.path(), OneThreadOn("cuda"), StrEq("UNAVAILABLE: " + reason));
  ExpectMade(folder.path(), OneThreadOn("auto"), StrEq("cpu (" + reason + ")"));
}

TEST(BackendFactory, GivesTheDeviceThatIsThere) {
  if (!HasModule(EmulatedFolder())) GTEST_SKIP() << "there is no emulated device in this build";
  for (const std::string device : {"auto", "cuda", "cuda:0"}) {
    ExpectMade(EmulatedFolder(), OneThreadOn(device), StrEq("cuda:0"));
  }
  ExpectMade(EmulatedFolder(), OneThreadOn("cpu"), StrEq("cpu"));
  ExpectMade(EmulatedFolder(), OneThreadOn("cuda:7"),
             StartsWith("UNAVAILABLE: device cuda:7 is not there: this machine has "));
}

TEST(BackendFactory, RanksShareNoCudaDevice) {
  if (!HasModule(EmulatedFolder())) GTEST_SKIP() << "there is no emulated device in this build";
  const std::string reason =
      "2 ranks cannot share a CUDA device: set expert_parallel to 1 or device to cpu";
  ExpectMade(EmulatedFolder(), OneThreadOn("cuda", 2), StrEq("UNAVAILABLE: " + reason));
  ExpectMade(EmulatedFolder(), OneThreadOn("auto", 2), StrEq("cpu (" + reason + ")"));
}

}  // namespace
}  // namespace shoal
