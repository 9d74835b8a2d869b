#include "tests/kernels/communicator_parity.h"

#include "kernels/comm/local_group.h"
#include "kernels/cpu/cpu_backend.h"

namespace shoal {
namespace {

constexpr CpuBackendOptions kOptions = {.num_threads = 1, .memory_limit_bytes = 16 << 20};

std::vector<Backend> MakeSingleRank(int) {
  std::vector<Backend> backends;
  backends.push_back(MakeCpuBackend(kOptions).value());
  return backends;
}

std::vector<Backend> MakeLocalRanks(int size) {
  std::vector<Backend> backends;
  for (std::unique_ptr<Communicator>& communicator : MakeLocalGroup(size)) {
    backends.push_back(MakeCpuBackend(kOptions, std::move(communicator)).value());
  }
  return backends;
}

INSTANTIATE_TEST_SUITE_P(Cpu, CommunicatorParity,
                         testing::Values(GroupCase{"SingleRank", 1, MakeSingleRank},
                                         GroupCase{"LocalGroupOf1", 1, MakeLocalRanks},
                                         GroupCase{"LocalGroupOf2", 2, MakeLocalRanks},
                                         GroupCase{"LocalGroupOf4", 4, MakeLocalRanks},
                                         GroupCase{"LocalGroupOf8", 8, MakeLocalRanks}),
                         [](const testing::TestParamInfo<GroupCase>& group) {
                           return group.param.name;
                         });

}  // namespace
}  // namespace shoal
