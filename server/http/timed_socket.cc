#include "server/http/timed_socket.h"

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace shoal {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using asio::experimental::awaitable_operators::operator||;
using boost::system::error_code;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 64 << 10;

bool WouldBlock(const error_code& error) {
  return error == asio::error::would_block || error == asio::error::try_again;
}

}  // namespace

TimedSocket::TimedSocket(tcp::socket socket) : socket_(std::move(socket)) {
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  socket_.non_blocking(true, ignored);
}

asio::awaitable<bool> TimedSocket::WaitReady(tcp::socket::wait_type type,
                                             Clock::time_point deadline) {
  asio::steady_timer timer(socket_.get_executor(), deadline);
  const auto first = co_await (socket_.async_wait(type, kAwait) || timer.async_wait(kAwait));
  co_return first.index() == 0;
}

TimedSocket::Progress TimedSocket::ReadAvailable(std::string& bytes) {
  std::array<char, kReadBytes> chunk;
  error_code error;
  const size_t size = socket_.read_some(asio::buffer(chunk), error);
  if (WouldBlock(error)) return Progress::kNone;
  if (error) return Progress::kClosed;
  bytes.append(chunk.data(), size);
  return Progress::kSome;
}

asio::awaitable<TimedSocket::ReadResult> TimedSocket::Read(std::string& bytes,
                                                           Clock::time_point deadline) {
  while (Clock::now() < deadline) {
    const Progress progress = ReadAvailable(bytes);
    if (progress == Progress::kClosed) co_return ReadResult::kClosed;
    if (progress == Progress::kSome) {
      // A peer that sends faster than we parse would otherwise keep this thread for itself.
      co_await asio::post(socket_.get_executor(), asio::use_awaitable);
      co_return ReadResult::kData;
    }
    if (!co_await WaitReady(tcp::socket::wait_read, deadline)) break;
  }
  co_return ReadResult::kTimeout;
}

asio::awaitable<bool> TimedSocket::Write(std::string_view bytes,
                                         std::chrono::milliseconds stall_timeout) {
  while (!bytes.empty()) {
    error_code error;
    const size_t size = socket_.write_some(asio::buffer(bytes), error);
    if (WouldBlock(error)) {
      const auto deadline = Clock::now() + stall_timeout;
      if (!co_await WaitReady(tcp::socket::wait_write, deadline)) co_return false;
      continue;
    }
    if (error) co_return false;
    bytes.remove_prefix(size);
  }
  co_return true;
}

asio::awaitable<bool> TimedSocket::WaitForClose(std::string& bytes, size_t max_bytes) {
  while (bytes.size() < max_bytes) {
    // Only the wait suspends, so a cancelled wait leaves unread bytes in the socket.
    const auto [error] = co_await socket_.async_wait(tcp::socket::wait_read, kAwait);
    if (error) co_return false;
    if (ReadAvailable(bytes) == Progress::kClosed) co_return true;
  }
  // More than one request ahead: such a peer is heard again after the response.
  asio::steady_timer never(socket_.get_executor(), Clock::time_point::max());
  co_await never.async_wait(kAwait);
  co_return false;
}

asio::awaitable<void> TimedSocket::Close(std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  std::string dropped;
  while (co_await Read(dropped, deadline) == ReadResult::kData) dropped.clear();
  socket_.close(ignored);
}

}  // namespace shoal
