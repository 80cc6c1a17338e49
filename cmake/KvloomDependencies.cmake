# Debian 12's packages; launch/install lists them.
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(Threads REQUIRED)
# Not dnnl's own config: Debian's asks for OpenCL's headers, which only its GPU half needs.
find_path(DNNL_INCLUDE_DIR oneapi/dnnl/dnnl.hpp REQUIRED)
find_library(DNNL_LIBRARY dnnl REQUIRED)
add_library(DNNL::dnnl UNKNOWN IMPORTED)
set_target_properties(DNNL::dnnl PROPERTIES IMPORTED_LOCATION ${DNNL_LIBRARY}
                                            INTERFACE_INCLUDE_DIRECTORIES ${DNNL_INCLUDE_DIR})
find_package(Protobuf REQUIRED)
find_package(HDF5 REQUIRED COMPONENTS C)
find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED CONFIG)
find_package(nlohmann_json REQUIRED CONFIG)
pkg_check_modules(hwy REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)
# Debian's libsentencepiece carries an older protobuf under the same symbols. Ours is linked statically, stands before
# it on the link line and exports nothing (KvloomCompiler), so that neither sees the other's.
find_library(PROTOBUF_STATIC libprotobuf.a REQUIRED)
add_library(kvloom_protobuf STATIC IMPORTED)
set_target_properties(kvloom_protobuf PROPERTIES IMPORTED_LOCATION ${PROTOBUF_STATIC}
                                                 INTERFACE_LINK_LIBRARIES "PkgConfig::sentencepiece;ZLIB::ZLIB;Threads::Threads")
# Compressed texts.
find_package(ZLIB REQUIRED)
find_package(BZip2 REQUIRED)
find_package(LibLZMA REQUIRED)
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)
# Headers alone: Beast and Asio of the server. Debian's other Boost packages are not needed.
find_path(BOOST_INCLUDE_DIR boost/beast/core.hpp REQUIRED)
add_library(kvloom_boost INTERFACE)
target_include_directories(kvloom_boost SYSTEM INTERFACE ${BOOST_INCLUDE_DIR})
target_link_libraries(kvloom_boost INTERFACE Threads::Threads)
find_package(prometheus-cpp REQUIRED CONFIG COMPONENTS core)
if(KVLOOM_MPI)
  find_package(MPI REQUIRED COMPONENTS C)
endif()
