// A client that sends exactly the bytes it is told to.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>

namespace shoal {

/// One response, taken apart.
struct RawResponse {
  int status = 0;  // 0: the connection ended before a whole response
  std::string head;
  std::string body;

  bool Has(std::string_view text) const { return head.find(text) != std::string::npos; }
};

class RawClient {
 public:
  explicit RawClient(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    const int one = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    const timeval patience{20, 0};  // so that a server that never answers fails the test
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  }
  ~RawClient() { Close(); }
  RawClient(const RawClient&) = delete;

  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t size = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (size <= 0) return;  // the server has closed: the response says why
      bytes.remove_prefix(static_cast<size_t>(size));
    }
  }

  /// Reads one response; `expect_body` is false for HEAD.
  RawResponse Read(bool expect_body = true) {
    RawResponse response;
    const size_t end = ReadUntil("\r\n\r\n", 0);
    if (end == std::string::npos) return response;
    response.head = inbox_.substr(0, end);
    inbox_.erase(0, end);
    const size_t length = response.head.find("Content-Length: ");
    if (expect_body && response.Has("Transfer-Encoding: chunked")) {
      if (!ReadChunks(response.body)) return response;
    } else if (expect_body && length != std::string::npos) {
      const size_t size = std::strtoul(response.head.c_str() + length + 16, nullptr, 10);
      while (inbox_.size() < size && ReadMore()) {
      }
      response.body = inbox_.substr(0, size);
      inbox_.erase(0, size);
    }
    response.status = std::atoi(response.head.c_str() + std::string_view("HTTP/1.1 ").size());
    return response;
  }

  RawResponse Ask(std::string_view bytes) {
    Send(bytes);
    return Read();
  }

  /// The bytes until the server closes.
  std::string ReadAll() {
    while (ReadMore()) {
    }
    return std::exchange(inbox_, {});
  }

  /// Waits until `text` has come, and drops everything up to its end.
  bool Await(std::string_view text) {
    const size_t end = ReadUntil(text, 0);
    if (end == std::string::npos) return false;
    inbox_.erase(0, end);
    return true;
  }

 private:
  bool ReadMore() {
    char bytes[4096];
    const ssize_t size = recv(fd_, bytes, sizeof(bytes), 0);
    if (size <= 0) return false;
    inbox_.append(bytes, static_cast<size_t>(size));
    return true;
  }

  size_t ReadUntil(std::string_view text, size_t from) {
    while (true) {
      const size_t found = inbox_.find(text, from);
      if (found != std::string::npos) return found + text.size();
      if (!ReadMore()) return std::string::npos;
    }
  }

  bool ReadChunks(std::string& body) {
    while (true) {
      const size_t line = ReadUntil("\r\n", 0);
      if (line == std::string::npos) return false;
      const size_t size = std::strtoul(inbox_.c_str(), nullptr, 16);
      while (inbox_.size() < line + size + 2) {
        if (!ReadMore()) return false;
      }
      body += inbox_.substr(line, size);
      inbox_.erase(0, line + size + 2);
      if (size == 0) return true;
    }
  }

  int fd_;
  std::string inbox_;
};

}  // namespace shoal
