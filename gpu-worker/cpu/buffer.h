// A zeroed, 64-byte aligned array of floats with a fixed size: workspace, state and small weights.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

namespace stoker {

class FloatBuffer {
 public:
  FloatBuffer() = default;
  explicit FloatBuffer(std::size_t size) : data_(allocate(size)), size_(size) {
    std::memset(data_.get(), 0, bytes(size));
  }
  [[nodiscard]] float* data() { return data_.get(); }
  [[nodiscard]] const float* data() const { return data_.get(); }
  [[nodiscard]] std::size_t size() const { return size_; }
  float& operator[](std::size_t i) { return data_[i]; }
  const float& operator[](std::size_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Delete {
    void operator()(float* p) const { ::operator delete[](p, kAlign); }
  };
  static std::size_t bytes(std::size_t size) { return (size == 0 ? 1 : size) * sizeof(float); }
  static float* allocate(std::size_t size) {
    return static_cast<float*>(::operator new[](bytes(size), kAlign));
  }
  std::unique_ptr<float[], Delete> data_;
  std::size_t size_ = 0;
};

}  // namespace stoker
