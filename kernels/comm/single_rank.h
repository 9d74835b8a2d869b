// The group of one.
#pragma once

#include "kernels/communicator.h"

namespace shoal {

class SingleRank final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
};

}  // namespace shoal
