# cmake --install build/release --prefix /usr (docs/service.md). The programs find each other in one directory and the
# GPU module in ../lib/stoker (device_module.cc), so neither follows Debian's lib/<architecture>. The units name programs
# without a path, which systemd looks up in /usr/local/bin and /usr/bin: these two are the prefixes for services.
include(GNUInstallDirs)

install(TARGETS stoker stoker-loader stoker-worker stoker-predictor stoker-gateway raw_read
        RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
if(TARGET stoker-cuda)
  install(TARGETS stoker-cuda LIBRARY DESTINATION lib/stoker)
endif()

set(units ${PROJECT_SOURCE_DIR}/systemd)
install(FILES ${units}/stoker.target ${units}/stoker-loader.service ${units}/stoker-worker@.service
              ${units}/stoker-predictor.service ${units}/stoker-gateway.service
        DESTINATION lib/systemd/system)
install(DIRECTORY ${units}/stoker-worker@default.service.d DESTINATION lib/systemd/system)
install(FILES ${units}/sysusers.d/stoker.conf DESTINATION lib/sysusers.d)
install(FILES ${units}/tmpfiles.d/stoker.conf DESTINATION lib/tmpfiles.d)

install(FILES README.md ARCHITECTURE.md systemd/config.toml DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR} FILES_MATCHING PATTERN "*.md")

# The daemons read /etc/stoker whatever the prefix. What is there is the administrator's, and is never replaced.
install(CODE "
  set(etc \"\$ENV{DESTDIR}/etc/stoker\")
  if(CMAKE_INSTALL_PREFIX MATCHES \"^/usr(/local)?/?$\" AND NOT EXISTS \"\${etc}/config.toml\")
    file(INSTALL \"${units}/config.toml\" DESTINATION /etc/stoker)
  endif()
")
