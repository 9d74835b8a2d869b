// A directory of its own for a test, and files in it.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace shoal {

/// Made empty under the test's name; removed with everything in it.
class TempDirectory {
 public:
  TempDirectory() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = testing::TempDir() + "shoal." + test->test_suite_name() + "." + test->name();
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TempDirectory() { std::filesystem::remove_all(path_); }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  const std::string& path() const { return path_; }

  void Write(const std::string& file, const std::string& content) const {
    std::ofstream(path_ + "/" + file, std::ios::binary) << content;
  }
  std::string Read(const std::string& file) const {
    std::ifstream stream(path_ + "/" + file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  }
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }
  bool Has(const std::string& file) const { return std::filesystem::exists(path_ + "/" + file); }

 private:
  std::string path_;
};

}  // namespace shoal
