// Result<T>: what every function that the world can make fail returns (disk, peer, config, memory).
// Bugs are not results: see check.h.
#pragma once

#include <cstring>
#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace stoker {

/// What kind of thing went wrong. The CLI maps each to a documented exit code (docs/cli.md).
enum class Errc {
  io,           ///< a read, open or map failed; os_errno says why
  corrupt,      ///< a file's content contradicts itself or its published format
  missing,      ///< a file, tensor or key that must be there is not
  unsupported,  ///< well-formed, but not something this build can run
  invalid,      ///< an argument, config value or request that makes no sense
  too_large,    ///< a prompt, message or model beyond a stated limit (both numbers in the text)
  no_memory,    ///< the budget or the machine cannot hold it
  busy,         ///< another process holds it, or a bounded queue is full
  peer_gone,    ///< the other process died or did not answer in time
  layout,       ///< shared memory made by another version or another checkpoint
  cancelled,    ///< the client asked to stop, or went away
  device_lost,  ///< the GPU fails every call from now on; only a new process can open it again
};

/// One failure: the kind, the errno if the kernel gave one (0 otherwise), and one sentence for the
/// user that names the thing and the remedy. Errors are built on failure paths only, so the string
/// may allocate; no hit path constructs one.
struct [[nodiscard]] Error {
  Errc code = Errc::io;
  int os_errno = 0;
  std::string message;

  /// Message plus the errno's text, ready for a log line or stderr.
  [[nodiscard]] std::string text() const {
    if (os_errno == 0) return message;
    return message + ": " + std::strerror(os_errno) + " (errno " + std::to_string(os_errno) + ")";
  }
};

/// The only spelling of "value or Error" in this code base; std::expected when gcc 12 is history.
template <class T>
using Result = tl::expected<T, Error>;

inline tl::unexpected<Error> fail(Errc code, std::string message, int os_errno = 0) {
  return tl::unexpected<Error>(Error{code, os_errno, std::move(message)});
}

/// Prefixes the message of an error on its way up ("while opening X: ...").
inline tl::unexpected<Error> fail(Error error, const std::string& context) {
  error.message = context + ": " + error.message;
  return tl::unexpected<Error>(std::move(error));
}

}  // namespace stoker

#define STOKER_CONCAT_INNER(a, b) a##b
#define STOKER_CONCAT(a, b) STOKER_CONCAT_INNER(a, b)

/// STOKER_TRY(auto x, expr): x = value of expr, or return its error from this function.
#define STOKER_TRY(declaration, ...) \
  STOKER_TRY_INNER(STOKER_CONCAT(stoker_try_, __LINE__), declaration, __VA_ARGS__)
#define STOKER_TRY_INNER(name, declaration, ...)                              \
  auto name = (__VA_ARGS__);                                                  \
  if (!name) return tl::unexpected<::stoker::Error>(std::move(name).error()); \
  declaration = *std::move(name)

/// STOKER_TRY_VOID(expr): as above for Result<void>.
#define STOKER_TRY_VOID(...)                                                    \
  do {                                                                          \
    if (auto stoker_status = (__VA_ARGS__); !stoker_status)                     \
      return tl::unexpected<::stoker::Error>(std::move(stoker_status).error()); \
  } while (false)
