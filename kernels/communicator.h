// Communicator: a rank's place in its expert-parallel group.
#pragma once

namespace shoal {

/// One rank's end of a group. Experts are divided among the ranks by `rank()` and `size()`.
/// Thread: the rank's worker.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
};

}  // namespace shoal
