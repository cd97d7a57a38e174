# Writes the commit of SOURCE to the header OUT; "+" stands for changes that are not committed. Run with cmake -P.
set(commit "unknown")
find_program(GIT git)
if(GIT)
  # safe.directory: a checkout owned by somebody else (containers) is only read here.
  execute_process(COMMAND ${GIT} -c safe.directory=* -C ${SOURCE} describe --always --abbrev=7 --dirty=+ --exclude=*
                  OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(commit "${found}")
  endif()
endif()
configure_file(${SOURCE}/cli/commit.h.in ${OUT} @ONLY)
