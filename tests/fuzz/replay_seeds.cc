// A fuzz target as a test: its seeds, then short random inputs from a fixed seed. libFuzzer finds more, this
// one sees that targets compile, hold for what they held for, and keep doing so.
//   fuzz_x [SEED_FOLDER]      the folder may be missing
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <system_error>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

constexpr int kRandomInputs = 2000;
constexpr unsigned kSeed = 7, kLengthMax = 300;

std::size_t replay(const std::filesystem::path& folder) {
  std::size_t files = 0;
  std::error_code missing;
  for (const auto& entry : std::filesystem::directory_iterator(folder, missing)) {
    std::ifstream in(entry.path(), std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    const std::vector<std::uint8_t> input(bytes.begin(), bytes.end());
    LLVMFuzzerTestOneInput(input.data(), input.size());
    ++files;
  }
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t files = argc > 1 ? replay(argv[1]) : 0;
  std::mt19937 random(kSeed);
  std::vector<std::uint8_t> input;
  for (int i = 0; i < kRandomInputs; ++i) {
    input.resize(random() % kLengthMax);
    for (std::uint8_t& byte : input) byte = static_cast<std::uint8_t>(random());
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%zu seeds, %d random inputs\n", files, kRandomInputs);
}
