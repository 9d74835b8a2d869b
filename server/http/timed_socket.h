// TimedSocket: a TCP connection on which nothing waits for ever.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <string>
#include <string_view>

namespace shoal {

/// Thread: the strand of the socket's executor. At most one reader and one writer at a time.
class TimedSocket {
 public:
  using Clock = std::chrono::steady_clock;
  enum class ReadResult { kData, kTimeout, kClosed };

  explicit TimedSocket(boost::asio::ip::tcp::socket socket);

  boost::asio::any_io_executor executor() { return socket_.get_executor(); }

  /// Appends what has come to `bytes`; waits for at least one byte until `deadline`. Lets other
  /// connections go on each time, even if the bytes are there already.
  boost::asio::awaitable<ReadResult> Read(std::string& bytes, Clock::time_point deadline);

  /// Sends everything. False: the peer is gone, or took nothing for `stall_timeout`.
  boost::asio::awaitable<bool> Write(std::string_view bytes,
                                     std::chrono::milliseconds stall_timeout);

  /// True: the peer has closed its side. Until then appends what comes to `bytes`, up to
  /// `max_bytes`. False: cancelled, without losing a byte.
  boost::asio::awaitable<bool> WaitForClose(std::string& bytes, size_t max_bytes);

  /// Says goodbye, then takes and drops what the peer still sends, for up to `timeout`: closing
  /// with unread bytes would destroy the response on its way.
  boost::asio::awaitable<void> Close(std::chrono::milliseconds timeout);

 private:
  enum class Progress { kSome, kNone, kClosed };

  Progress ReadAvailable(std::string& bytes);
  /// False: not ready before `deadline`.
  boost::asio::awaitable<bool> WaitReady(boost::asio::ip::tcp::socket::wait_type type,
                                         Clock::time_point deadline);

  boost::asio::ip::tcp::socket socket_;
};

}  // namespace shoal
