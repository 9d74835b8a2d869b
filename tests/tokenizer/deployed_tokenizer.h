// The tokenizer that the project brings along, for tests. They run in the root of the source tree.
#pragma once

#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "kernels/status.h"
#include "tokenizer/tokenizer.h"

namespace shoal {

inline constexpr char kDeployedTokenizer[] = "deploy/tokenizer";

inline std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline const Tokenizer& DeployedTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    auto loaded = Tokenizer::Load(kDeployedTokenizer);
    SHOAL_CHECK(loaded.ok(), "{}", std::string(loaded.status().message()));
    return *std::move(loaded);
  }();
  return *tokenizer;
}

}  // namespace shoal
