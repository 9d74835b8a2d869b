// All that a backend's Device and Ops are held to: a test file includes this and instantiates
// DeviceParity, OpsParity, NormParity, FfnParity, AttentionParity, SamplingParity and
// SamplingEditsParity with its BackendCases.
#pragma once

#include "tests/kernels/attention_parity.h"
#include "tests/kernels/copy_parity.h"
#include "tests/kernels/device_parity.h"
#include "tests/kernels/ffn_parity.h"
#include "tests/kernels/linear_parity.h"
#include "tests/kernels/norm_parity.h"
#include "tests/kernels/random_parity.h"
#include "tests/kernels/sampling_edits_parity.h"
#include "tests/kernels/sampling_parity.h"
