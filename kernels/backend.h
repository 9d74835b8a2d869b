// Backend: what one rank computes with.
#pragma once

#include <memory>

#include "kernels/communicator.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace shoal {

/// The device, kernels and group membership of one rank. Thread: the rank's worker.
struct Backend {
  std::unique_ptr<Device> device;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Communicator> communicator;
};

}  // namespace shoal
