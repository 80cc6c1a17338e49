// An HDF5 file as any other tool of HDF5 sees it: nothing of kvloom reads it here.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <filesystem>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace kvloom::test {

template <typename T>
struct Hdf5Dataset {
  std::vector<hsize_t> shape;
  std::vector<T> values;
};

// Throws where HDF5 fails: for a file that does not open, a name that is not there, numbers that are of another type.
class Hdf5File {
 public:
  explicit Hdf5File(const std::filesystem::path& path) {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    file_ = check(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), path.string());
  }
  ~Hdf5File() { H5Fclose(file_); }
  Hdf5File(const Hdf5File&) = delete;
  Hdf5File& operator=(const Hdf5File&) = delete;

  static bool opens(const std::filesystem::path& path) {
    try {
      const Hdf5File file(path);
      return true;
    } catch (const std::runtime_error&) {
      return false;
    }
  }

  std::set<std::string> names() const {
    std::set<std::string> names;
    const auto add = [](hid_t, const char* name, const H5L_info_t*, void* all) {
      static_cast<std::set<std::string>*>(all)->insert(name);
      return 0;
    };
    check(H5Literate(file_, H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names), "H5Literate");
    return names;
  }

  Hdf5Dataset<float> floats(const std::string& name) const {
    return read<float>(name, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT);
  }
  Hdf5Dataset<std::int32_t> integers(const std::string& name) const {
    return read<std::int32_t>(name, H5T_STD_I32LE, H5T_NATIVE_INT32);
  }

  std::int64_t integer(const std::string& attribute) const {
    std::int64_t value = 0;
    read_attribute(attribute, H5T_NATIVE_INT64, &value);
    return value;
  }
  double number(const std::string& attribute) const {
    double value = 0;
    read_attribute(attribute, H5T_NATIVE_DOUBLE, &value);
    return value;
  }
  std::string text(const std::string& attribute) const {
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    H5Tset_cset(type, H5T_CSET_UTF8);
    char* value = nullptr;
    read_attribute(attribute, type, &value);
    H5Tclose(type);
    std::string text = value;
    H5free_memory(value);
    return text;
  }

 private:
  static hid_t check(hid_t result, const std::string& what) {
    if (result < 0) throw std::runtime_error("HDF5: " + what);
    return result;
  }

  template <typename T>
  Hdf5Dataset<T> read(const std::string& name, hid_t stored, hid_t wanted) const {
    const hid_t dataset = check(H5Dopen2(file_, name.c_str(), H5P_DEFAULT), name);
    const hid_t type = H5Dget_type(dataset);
    const hid_t space = H5Dget_space(dataset);
    Hdf5Dataset<T> result;
    result.shape.resize(static_cast<std::size_t>(H5Sget_simple_extent_ndims(space)));
    H5Sget_simple_extent_dims(space, result.shape.data(), nullptr);
    result.values.resize(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
    const bool as_stored = H5Tequal(type, stored) > 0;
    const herr_t status = H5Dread(dataset, wanted, H5S_ALL, H5S_ALL, H5P_DEFAULT, result.values.data());
    H5Sclose(space);
    H5Tclose(type);
    H5Dclose(dataset);
    check(as_stored ? status : -1, name + " is of another type");
    return result;
  }

  void read_attribute(const std::string& name, hid_t type, void* value) const {
    const hid_t attribute = check(H5Aopen(file_, name.c_str(), H5P_DEFAULT), name);
    const herr_t status = H5Aread(attribute, type, value);
    H5Aclose(attribute);
    check(status, name);
  }

  hid_t file_;
};

}  // namespace kvloom::test
