// Names and explanations of errors, in our words.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <iterator>

namespace {

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};

#define ERROR_TEXT(error, text) {error, #error, text}
constexpr ErrorText kErrors[] = {
    ERROR_TEXT(cudaSuccess, "no error"),
    ERROR_TEXT(cudaErrorInvalidValue, "invalid argument"),
    ERROR_TEXT(cudaErrorMemoryAllocation, "out of memory"),
    ERROR_TEXT(cudaErrorInitializationError, "initialization error"),
    ERROR_TEXT(cudaErrorInvalidConfiguration, "invalid launch configuration"),
    ERROR_TEXT(cudaErrorInvalidPitchValue, "invalid pitch"),
    ERROR_TEXT(cudaErrorInvalidDevicePointer, "invalid device pointer"),
    ERROR_TEXT(cudaErrorInvalidMemcpyDirection, "invalid direction of a copy"),
    ERROR_TEXT(cudaErrorInsufficientDriver, "the driver is too old for this runtime"),
    ERROR_TEXT(cudaErrorInvalidDeviceFunction, "invalid device function"),
    ERROR_TEXT(cudaErrorNoDevice, "no device was found"),
    ERROR_TEXT(cudaErrorInvalidDevice, "invalid number of a device"),
    ERROR_TEXT(cudaErrorInvalidResourceHandle, "invalid handle"),
    ERROR_TEXT(cudaErrorIllegalState, "an object is not in the state that the call needs"),
    ERROR_TEXT(cudaErrorNotReady, "not ready"),
    ERROR_TEXT(cudaErrorIllegalAddress, "a kernel accessed an illegal address"),
    ERROR_TEXT(cudaErrorLaunchOutOfResources, "too many resources asked for by a launch"),
    ERROR_TEXT(cudaErrorLaunchTimeout, "a kernel ran for too long"),
    ERROR_TEXT(cudaErrorAssert, "an assertion on the device failed"),
    ERROR_TEXT(cudaErrorLaunchFailure, "a kernel failed"),
    ERROR_TEXT(cudaErrorNotSupported, "not supported"),
    ERROR_TEXT(cudaErrorStreamCaptureUnsupported, "not permitted while a stream is captured"),
    ERROR_TEXT(cudaErrorStreamCaptureInvalidated, "an earlier error made the capture invalid"),
    ERROR_TEXT(cudaErrorStreamCaptureMerge, "two captures would become one"),
    ERROR_TEXT(cudaErrorStreamCaptureUnmatched, "the capture did not begin in this stream"),
    ERROR_TEXT(cudaErrorStreamCaptureUnjoined, "another stream's captured work is not waited for"),
    ERROR_TEXT(cudaErrorStreamCaptureIsolation,
               "captured work would wait for what is not captured"),
    ERROR_TEXT(cudaErrorStreamCaptureImplicit, "the legacy stream would wait for a captured one"),
    ERROR_TEXT(cudaErrorCapturedEvent, "not permitted on an event that was recorded in a capture"),
    ERROR_TEXT(cudaErrorStreamCaptureWrongThread, "the capture began in another thread"),
    ERROR_TEXT(cudaErrorUnknown, "unknown error"),
};
#undef ERROR_TEXT

const ErrorText* Find(cudaError_t error) {
  const auto* found = std::ranges::find(kErrors, error, &ErrorText::error);
  return found == std::end(kErrors) ? nullptr : found;
}

}  // namespace

extern "C" {

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* found = Find(error);
  return found == nullptr ? "unrecognized error code" : found->name;
}

const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* found = Find(error);
  return found == nullptr ? "unrecognized error code" : found->text;
}

}  // extern "C"
