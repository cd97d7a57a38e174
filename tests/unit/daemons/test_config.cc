#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "daemons/common/config.h"
#include "daemons/common/config_table.h"

using namespace stoker;

namespace {

/// A directory that goes away with the test.
class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "stoker-config-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::filesystem::remove_all(path_); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ + "/" + name) << text;
    return path_ + "/" + name;
  }

 private:
  std::string path_;
};

ConfigSources sources(std::vector<std::string> arguments, std::map<std::string, std::string> environment = {},
                      std::vector<std::string> files = {}) {
  return {.arguments = std::move(arguments),
          .environment = [environment](const std::string& name) -> std::optional<std::string> {
            const auto found = environment.find(name);
            if (found == environment.end()) return std::nullopt;
            return found->second;
          },
          .files = std::move(files)};
}

std::string refusal(Program program, const ConfigSources& s) {
  const auto config = load_config(program, s);
  REQUIRE_FALSE(config.has_value());
  CHECK(config.error().code == Errc::invalid);
  return config.error().message;
}

}  // namespace

TEST_CASE("flag beats environment beats later file beats earlier file beats default") {
  const Scratch scratch;
  const std::string first =
      scratch.write("a.toml", "[worker]\nthreads = 1\nqueue = 11\ncontext = 111\nchunk = 31\n");
  const std::string second = scratch.write("b.toml", "[worker]\nthreads = 2\nqueue = 12\ncontext = 112\n");
  const auto config =
      load_config(Program::worker,
                  sources({"--threads", "4"}, {{"STOKER_WORKER_THREADS", "3"}, {"STOKER_WORKER_QUEUE", "13"}},
                          {first, second}));
  REQUIRE(config.has_value());
  CHECK(config->threads == 4);
  CHECK(config->queue == 13);
  CHECK(config->context == 112);
  CHECK(config->chunk == 31);
  CHECK(config->max_sequences == 8);
  CHECK(config->origins.at("worker.threads") == "flag");
  CHECK(config->origins.at("worker.queue") == "STOKER_WORKER_QUEUE");
  CHECK(config->origins.at("worker.context") == second + ":4");
  CHECK(config->origins.count("worker.max_sequences") == 0);
}

TEST_CASE("an unknown key is refused with line and nearest name") {
  const Scratch scratch;
  const std::string file = scratch.write("c.toml", "[worker]\nthreads = 2\n\n[loader]\npool_slot = 5\n");
  const std::string text = refusal(Program::worker, sources({}, {}, {file}));
  CHECK(text.find(file + ":5") != std::string::npos);
  CHECK(text.find("loader.pool_slot\"") != std::string::npos);
  CHECK(text.find("loader.pool_slots\"") != std::string::npos);
  const std::string top = scratch.write("d.toml", "threads = 2\n");
  CHECK(refusal(Program::worker, sources({}, {}, {top})).find("d.toml:1") != std::string::npos);
}

TEST_CASE("bad values name their place") {
  const Scratch scratch;
  const std::string file = scratch.write("e.toml", "[worker]\nsimd = \"mmx\"\n");
  const std::string from_file = refusal(Program::worker, sources({}, {}, {file}));
  CHECK(from_file.find(file + ":2") != std::string::npos);
  CHECK(from_file.find("auto|scalar|avx2|avx512") != std::string::npos);
  CHECK(refusal(Program::loader, sources({}, {{"STOKER_LOADER_RAM", "lots"}})).find("STOKER_LOADER_RAM") !=
        std::string::npos);
  CHECK(refusal(Program::worker, sources({"--max-sequences", "0"})).find("--max-sequences") !=
        std::string::npos);
  CHECK(refusal(Program::worker, sources({"--no-such-flag"})).find("no-such-flag") != std::string::npos);
  CHECK(refusal(Program::worker, sources({"--ram", "8GiB"})).find("ram") !=
        std::string::npos);  // the loader's
  const std::string broken = scratch.write("f.toml", "[worker\n");
  CHECK(refusal(Program::worker, sources({}, {}, {broken})).find("f.toml:1") != std::string::npos);
  const std::string nested = scratch.write("g.toml", "[worker]\nthreads = [1]\n");
  CHECK(refusal(Program::worker, sources({}, {}, {nested})).find("g.toml:2") != std::string::npos);
}

TEST_CASE("--config reads only that file, which must exist") {
  const Scratch scratch;
  const std::string usual = scratch.write("usual.toml", "[worker]\nthreads = 1\nqueue = 7\n");
  const std::string only = scratch.write("only.toml", "[worker]\nthreads = 5\n");
  const auto config = load_config(Program::worker, sources({"--config", only}, {}, {usual}));
  REQUIRE(config.has_value());
  CHECK(config->threads == 5);
  CHECK(config->queue == 256);
  const auto absent = load_config(Program::worker, sources({"--config", only + ".not"}));
  REQUIRE_FALSE(absent.has_value());
  CHECK(absent.error().code == Errc::invalid);
}

TEST_CASE("switches can be turned on and off") {
  CHECK(load_config(Program::worker, sources({}))->samples);
  CHECK_FALSE(load_config(Program::worker, sources({"--no-predictor-samples"}))->samples);
  CHECK(load_config(Program::worker, sources({"--predictor-samples"}, {{"STOKER_WORKER_SAMPLES", "0"}}))
            ->samples);
  CHECK(load_config(Program::loader, sources({"--unlink-on-exit"}))->unlink_on_exit);
}

TEST_CASE("the run directory follows XDG_RUNTIME_DIR") {
  CHECK(load_config(Program::worker, sources({}, {{"XDG_RUNTIME_DIR", "/run/user/7"}}))->run_dir ==
        "/run/user/7/stoker");
  CHECK(load_config(Program::worker, sources({}))->run_dir == "/run/stoker");
}

TEST_CASE("the state directory: the service manager's, XDG's, the home's, or none") {
  const auto state = [](std::map<std::string, std::string> environment) {
    return load_config(Program::loader, sources({}, std::move(environment)))->state_dir;
  };
  CHECK(state({{"STATE_DIRECTORY", "/var/lib/stoker:/b"}, {"XDG_STATE_HOME", "/s"}}) == "/var/lib/stoker");
  CHECK(state({{"XDG_STATE_HOME", "/s"}, {"HOME", "/h"}}) == "/s/stoker");
  CHECK(state({{"XDG_STATE_HOME", "relative"}, {"HOME", "/h"}}) == "/h/.local/state/stoker");
  CHECK(state({}).empty());
}

TEST_CASE("help lists the flags of one program only") {
  const auto worker = load_config(Program::worker, sources({"--help"}));
  REQUIRE(worker.has_value());
  CHECK(worker->help.find("--max-sequences") != std::string::npos);
  CHECK(worker->help.find("STOKER_WORKER_CONTEXT") != std::string::npos);
  CHECK(worker->help.find("--pool-slots") == std::string::npos);
}

TEST_CASE("every setting is complete, unique, and takes back what it prints") {
  std::set<std::string> keys, flags, names;
  Config config;
  for (const Setting& setting : settings()) {
    const std::string key(setting.key);
    INFO(key);
    CHECK(keys.insert(key).second);
    CHECK(flags.insert(std::string(setting.flag)).second);
    CHECK(names.insert(environment_name(key)).second);
    CHECK_FALSE(setting.help.empty());
    std::string text = value_text(config, setting);
    if (text.front() == '"') text = text.substr(1, text.size() - 2);
    CHECK(assign(config, setting, text).has_value());
  }
  CHECK(nearest_key("worker.thread") == "worker.threads");
  CHECK(describe(config, Program::worker).size() < describe(config, Program::all).size());
}
