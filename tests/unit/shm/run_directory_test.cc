// Run directory and loader lock.
#include "shm/run_directory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "tests/unit/shm/child.h"
#include "tests/unit/shm/pool_fixture.h"

using namespace stoker;
using namespace stoker::test;

namespace {
struct TempDirectory {
  std::string path;
  TempDirectory() {
    char text[] = "/tmp/stoker-test-XXXXXX";
    REQUIRE(::mkdtemp(text) != nullptr);
    path = text;
  }
  ~TempDirectory() { std::filesystem::remove_all(path); }
};
}  // namespace

TEST_CASE("the explicit path wins, then XDG_RUNTIME_DIR, then /run/stoker") {
  CHECK(run_directory_path({"/a", "/b", false}) == "/a");
  CHECK(run_directory_path({"", "/b", false}) == "/b/stoker");
  CHECK(run_directory_path({"", "", false}) == "/run/stoker");
}

TEST_CASE("the directory is made private and its path canonical") {
  const TempDirectory temp;
  for (const bool group : {false, true}) {
    const std::string path = temp.path + (group ? "/g" : "/p");
    CHECK(take(make_run_directory({temp.path + "/./" + (group ? "g" : "p") + "/", "", group})) == path);
    struct stat status {};
    REQUIRE(::stat(path.c_str(), &status) == 0);
    CHECK((status.st_mode & 07777U) == (group ? 0750U : 0700U));
  }
  CHECK(take(make_run_directory({"", temp.path, false})) == temp.path + "/stoker");
  CHECK(loader_socket_path("/x") == "/x/loader.sock");
}

TEST_CASE("a directory that cannot be trusted or used is refused, with the remedy") {
  const TempDirectory temp;
  const std::string path = temp.path + "/d";
  SECTION("writable by others") {
    REQUIRE(::mkdir(path.c_str(), 0700) == 0);
    REQUIRE(::chmod(path.c_str(), 0777) == 0);
  }
  SECTION("a file") { ::close(::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600)); }
  SECTION("parent missing") {
    const auto made = make_run_directory({path + "/deep/er", "", false});
    REQUIRE_FALSE(made);
    CHECK(made.error().code == Errc::io);
    return;
  }
  SECTION("owned by somebody else") {
    if (::geteuid() != 0) {
      WARN("skipped: needs root to give a directory away");
      return;
    }
    REQUIRE(::mkdir(path.c_str(), 0700) == 0);
    REQUIRE(::chown(path.c_str(), 65534, 65534) == 0);
  }
  const auto made = make_run_directory({path, "", false});
  REQUIRE_FALSE(made);
  CHECK(made.error().code == Errc::io);
  CHECK(made.error().message.find(path) != std::string::npos);
  CHECK(made.error().message.find("--run-dir") != std::string::npos);
}

TEST_CASE("one loader per run directory; the lock dies with its holder") {
  const TempDirectory temp;
  Child holder([&](const Link& link) {
    const auto lock = LoaderLock::acquire(temp.path, false);
    link.say(lock ? 'y' : 'n');
    return static_cast<int>(link.hear());
  });
  REQUIRE(holder.hear() == 'y');
  const auto second = LoaderLock::acquire(temp.path, false);
  REQUIRE_FALSE(second);
  CHECK(second.error().code == Errc::busy);
  CHECK(second.error().message.find("process " + std::to_string(holder.pid())) != std::string::npos);
  holder.kill_now();
  {
    const auto third = LoaderLock::acquire(temp.path, false);
    REQUIRE(third);
    CHECK_FALSE(LoaderLock::acquire(temp.path, false));
  }
  CHECK(LoaderLock::acquire(temp.path, false));
}

TEST_CASE("an unwritable run directory is a clear error for the lock") {
  const auto lock = LoaderLock::acquire("/nonexistent/dir", false);
  REQUIRE_FALSE(lock);
  CHECK(lock.error().code == Errc::io);
  CHECK(lock.error().message.find("--run-dir") != std::string::npos);
}
