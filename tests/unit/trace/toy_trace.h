#pragma once

namespace stoker::test {

/// The event-atomic toy of shijiuzhang/moe-cache-eval (Apache-2.0): LRU, two slots per layer, must give 12
/// hits and 18 misses. One after the other it would give others.
inline constexpr const char* kToy =
    "event_index,scheduler_step,layer,requested_experts,misses,hits\n"
    "0,0,0,0 1,2,0\n1,0,1,0 1,2,0\n2,0,2,0 1,2,0\n"
    "3,1,0,0 2,1,1\n4,1,1,0 2,1,1\n5,1,2,0 2,1,1\n"
    "6,2,0,0 1,1,1\n7,2,1,0 1,1,1\n8,2,2,0 1,1,1\n"
    "9,3,0,0 3,1,1\n10,3,1,0 3,1,1\n11,3,2,0 3,1,1\n"
    "12,4,0,0 1,1,1\n13,4,1,0 1,1,1\n14,4,2,0 1,1,1\n";

}  // namespace stoker::test
