// The names of everything that daemons and clients meet at, inside the run directory. The loader's attach
// socket and lock are in shm/run_directory.h: they work without ZeroMQ.
#pragma once

#include <string>

namespace stoker::endpoint {

/// ROUTER of the worker; clients connect a DEALER.
inline std::string worker(const std::string& run_directory) { return run_directory + "/worker.sock"; }
/// PUB of the worker; predictors connect a SUB.
inline std::string samples(const std::string& run_directory) { return run_directory + "/samples.sock"; }
/// PULL of the loader; predictors connect a PUSH.
inline std::string hints(const std::string& run_directory) { return run_directory + "/hints.sock"; }
/// Score of the predictor, replaced every second.
inline std::string predictor_report(const std::string& run_directory) {
  return run_directory + "/predictor.json";
}
/// HTTP, by the gateway (daemons/gateway/http_server.h).
inline std::string api(const std::string& run_directory) { return run_directory + "/api.sock"; }
/// flock'ed by the one worker of a run directory.
inline std::string worker_lock(const std::string& run_directory) { return run_directory + "/worker.lock"; }

}  // namespace stoker::endpoint
