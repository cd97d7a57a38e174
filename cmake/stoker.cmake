# Helpers: every target gets the same warnings, include root and sanitizers.

function(stoker_configure target)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow
                                           -Wold-style-cast -fno-strict-aliasing)
  if(STOKER_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(STOKER_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${STOKER_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${STOKER_SANITIZE})
  endif()
  # Libraries too: without it libFuzzer sees of the code under test only what is in headers, and searches blindly.
  if(STOKER_FUZZ)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()

# stoker_library(NAME SOURCES a.cc b.cc [LIBS x y])
function(stoker_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  set_property(GLOBAL APPEND PROPERTY STOKER_LIBRARIES ${name})  # for tests/tidy: check_headers
  stoker_configure(${name})
  target_link_libraries(${name} PUBLIC ${ARG_LIBS})
endfunction()

# stoker_binary(NAME SOURCES main.cc [LIBS x y])
function(stoker_binary name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  stoker_configure(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS})
endfunction()

# For targets that are mostly header-only templates (CLI11, nlohmann-json, Catch2) and where speed is no matter:
# they compile twice as fast with -O1.
function(stoker_quick_build)
  stoker_quick_sanitizers(${ARGN})
  if(NOT CMAKE_BUILD_TYPE STREQUAL Debug)
    foreach(target ${ARGN})
      target_compile_options(${target} PRIVATE -O1)
    endforeach()
  endif()
endfunction()

# For sources of templates over vectors, which take minutes under the undefined-behaviour sanitizer. It sees the same
# code elsewhere: compiled for plain C++ (cpu/kernels_portable.cc).
set(STOKER_NO_UBSAN "")
if(STOKER_SANITIZE MATCHES undefined)
  set(STOKER_NO_UBSAN -fno-sanitize=undefined)
endif()

# Under sanitizers, for code that nobody waits for: without optimisation it compiles 2.5 times as fast.
function(stoker_quick_sanitizers)
  if(STOKER_SANITIZE)
    foreach(target ${ARGN})
      target_compile_options(${target} PRIVATE -O0)
    endforeach()
  endif()
endfunction()

# For targets that take CLI11, nlohmann-json or protobuf in most files: they are instantiated once per dozen files
# instead of in each. The dev preset compiles file by file, which shows what a file forgot to include.
function(stoker_unity)
  if(NOT CMAKE_BUILD_TYPE STREQUAL Debug OR STOKER_SANITIZE)
    set_target_properties(${ARGN} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 14)
  endif()
endfunction()

# What test.sh does not run under sanitizers is not built there.
set(STOKER_SANITIZED_LABELS unit conformance sim process)
function(stoker_not_sanitized)
  if(STOKER_SANITIZE)
    set_target_properties(${ARGN} PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
endfunction()

# stoker_test(NAME SOURCES test.cc [LIBS x y] [LABELS unit]): a Catch2 binary, one ctest entry.
function(stoker_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  stoker_configure(${name})
  stoker_quick_build(${name})
  target_link_libraries(${name} PRIVATE stoker_test_main ${ARG_LIBS})
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" SKIP_RETURN_CODE 77)
  if(NOT ARG_LABELS IN_LIST STOKER_SANITIZED_LABELS)
    stoker_not_sanitized(${name})
  endif()
  if(ARG_TIMEOUT)
    set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT})
  endif()
endfunction()

# stoker_fuzz(NAME SOURCES fuzz_x.cc [LIBS x]): with STOKER_FUZZ a libFuzzer binary (clang only). Else the same target
# with a main() that feeds it its seeds and some random inputs: a test, and a guard against targets that do not compile.
function(stoker_fuzz name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  stoker_configure(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS})
  if(NOT STOKER_FUZZ)
    target_link_libraries(${name} PRIVATE stoker_fuzz_replay)
    stoker_quick_build(${name})
    add_test(NAME ${name} COMMAND ${name} ${CMAKE_CURRENT_SOURCE_DIR}/seeds/${name})
    set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 300)
    stoker_not_sanitized(${name})
    return()
  endif()
  target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  if(NOT TARGET fuzz_targets)
    add_custom_target(fuzz_targets)
  endif()
  add_dependencies(fuzz_targets ${name})
endfunction()
