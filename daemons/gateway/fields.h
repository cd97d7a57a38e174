// Typed access to the fields of a request. The first thing that is wrong is kept; everything after it goes on
// with defaults, so that parsers need no branch per field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "daemons/gateway/api_error.h"
#include "daemons/gateway/json.h"

namespace stoker::gateway {

class Fields {
 public:
  /// `json` must outlive this. Anything but an object is a problem.
  explicit Fields(const Json& json);

  /// null counts as absent in all of these.
  [[nodiscard]] const Json* find(const char* key) const;
  std::optional<double> number(const char* key, double least, double most);
  std::optional<std::uint64_t> integer(const char* key, std::uint64_t least, std::uint64_t most);
  std::optional<std::string> string(const char* key);
  /// A string counts as a list of one.
  std::vector<std::string> strings(const char* key);
  bool flag(const char* key, bool otherwise);
  /// Anything but absent and `harmless` is refused: this server cannot do it.
  void cannot(const char* key, const Json& harmless, const std::string& why);

  void problem(const std::string& parameter, const std::string& message);
  [[nodiscard]] const std::optional<ApiError>& problem() const { return problem_; }

 private:
  const Json& json_;
  std::optional<ApiError> problem_;
};

}  // namespace stoker::gateway
