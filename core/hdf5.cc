#include "core/hdf5.h"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "kernels/error.h"

namespace kvloom::hdf5 {
namespace {

static_assert(std::is_same_v<hid_t, Id> && std::is_same_v<herr_t, int>);

constexpr const char* kDTypeAttribute = "dtype";
constexpr std::size_t kLongestDTypeName = 8;

// HDF5's walk goes from the innermost entry outwards; the first one is the reason.
herr_t keep_first_reason(unsigned position, const H5E_error2_t* entry, void* reason) {
  if (position == 0 && entry->desc != nullptr) *static_cast<std::string*>(reason) = entry->desc;
  return 0;
}

std::string innermost_reason() {
  std::string reason;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first_reason, &reason);
  H5Eclear2(H5E_DEFAULT);
  if (reason.empty()) return "no reason given";
  // Of a call to the system that failed, HDF5 tells every argument; what the system said is the reason.
  constexpr std::string_view kOfSystem = "error message = '";
  const std::size_t arguments = reason.find("time = ");
  const std::size_t said = reason.find(kOfSystem);
  if (arguments == std::string::npos || said == std::string::npos) return reason;
  const std::size_t begin = said + kOfSystem.size();
  return reason.substr(0, arguments) + reason.substr(begin, reason.find('\'', begin) - begin);
}

Id check(Id result, std::string_view call, const File& file) {
  return hdf5::check(result, call, file.name(), file.fault());
}

bool is_disguised(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kF16; }

// Not owned: HDF5's predefined types live as long as the library.
Id stored_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return H5T_IEEE_F32LE;
    case DType::kF64:
      return H5T_IEEE_F64LE;
    case DType::kI32:
      return H5T_STD_I32LE;
    case DType::kI64:
      return H5T_STD_I64LE;
    case DType::kU8:
      return H5T_STD_U8LE;
    case DType::kBF16:
    case DType::kF16:
    case DType::kU16:
      return H5T_STD_U16LE;
    case DType::kU32:
      return H5T_STD_U32LE;
  }
  fail("hdf5: no stored type for dtype {}", static_cast<int>(dtype));
}

std::vector<hsize_t> as_sizes(const Shape& shape) { return {shape.begin(), shape.end()}; }

Handle make_space(const File& file, const Shape& shape) {
  if (shape.empty()) return {check(H5Screate(H5S_SCALAR), "H5Screate", file), H5Sclose};
  const std::vector<hsize_t> sizes = as_sizes(shape);
  return {check(H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr), "H5Screate_simple", file),
          H5Sclose};
}

void select(const File& file, const Handle& space, const Rectangle& selected) {
  if (selected.shape.empty()) return;
  const std::vector<hsize_t> start = as_sizes(selected.offset);
  const std::vector<hsize_t> count = as_sizes(selected.shape);
  check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr),
        "H5Sselect_hyperslab", file);
}

Handle make_space(const File& file, const Shape& shape, const Rectangle& selected) {
  Handle space = make_space(file, shape);
  select(file, space, selected);
  return space;
}

Handle string_type(const File& file, std::size_t length) {
  Handle type(check(H5Tcopy(H5T_C_S1), "H5Tcopy", file), H5Tclose);
  check(H5Tset_size(type.get(), length), "H5Tset_size", file);
  return type;
}

// Of the file's root or of a dataset.
void write_attribute_of(const File& file, Id owner, const std::string& name, Id type, const void* value) {
  const Handle space = make_space(file, {});
  const Handle attribute(
      check(H5Acreate2(owner, name.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT), "H5Acreate2", file),
      H5Aclose);
  check(H5Awrite(attribute.get(), type, value), "H5Awrite", file);
}

void write_dtype_attribute(const File& file, const Handle& dataset, DType dtype) {
  const std::string name(name_of(dtype));
  const Handle type = string_type(file, name.size());
  write_attribute_of(file, dataset.get(), kDTypeAttribute, type.get(), name.data());
}

Handle make_dataset(const File& file, const std::string& path, const Shape& shape, DType dtype) {
  silence();
  const Handle space = make_space(file, shape);
  const Handle links(check(H5Pcreate(H5P_LINK_CREATE), "H5Pcreate", file), H5Pclose);
  check(H5Pset_create_intermediate_group(links.get(), 1), "H5Pset_create_intermediate_group", file);
  Handle dataset(
      check(H5Dcreate2(file.id(), path.c_str(), stored_type(dtype), space.get(), links.get(), H5P_DEFAULT, H5P_DEFAULT),
            "H5Dcreate2", file),
      H5Dclose);
  if (is_disguised(dtype)) write_dtype_attribute(file, dataset, dtype);
  return dataset;
}

// Whether an attribute is one string of a fixed length of at most `longest`: what is read of it then fits.
bool is_short_string(const File& file, const Handle& attribute, std::size_t longest) {
  const Handle space(check(H5Aget_space(attribute.get()), "H5Aget_space", file), H5Sclose);
  if (check(H5Sget_simple_extent_type(space.get()), "H5Sget_simple_extent_type", file) != H5S_SCALAR) return false;
  const Handle type(check(H5Aget_type(attribute.get()), "H5Aget_type", file), H5Tclose);
  return H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0 &&
         H5Tget_size(type.get()) <= longest;
}

std::string read_dtype_attribute(const File& file, const std::string& path, const Handle& dataset) {
  if (check(H5Aexists(dataset.get(), kDTypeAttribute), "H5Aexists", file) == 0) return {};
  const Handle attribute(check(H5Aopen(dataset.get(), kDTypeAttribute, H5P_DEFAULT), "H5Aopen", file), H5Aclose);
  if (!is_short_string(file, attribute, kLongestDTypeName)) {
    reject_input("{}: dataset {}: its attribute '{}' is not one string of at most {} bytes", file.name(), path,
                 kDTypeAttribute, kLongestDTypeName);
  }
  std::array<char, kLongestDTypeName + 1> name{};
  const Handle type = string_type(file, kLongestDTypeName);
  check(H5Aread(attribute.get(), type.get(), name.data()), "H5Aread", file);
  return name.data();
}

void check_stored_dtype(const File& file, const std::string& path, const Handle& dataset, DType dtype) {
  const Handle type(check(H5Dget_type(dataset.get()), "H5Dget_type", file), H5Tclose);
  const bool same = check(H5Tequal(type.get(), stored_type(dtype)), "H5Tequal", file) > 0;
  const std::string expected(is_disguised(dtype) ? name_of(dtype) : "");
  if (!same || read_dtype_attribute(file, path, dataset) != expected) {
    reject_input("{}: dataset {} is not of dtype {}", file.name(), path, name_of(dtype));
  }
}

void check_stored_shape(const File& file, const std::string& path, const Handle& dataset, const Shape& shape) {
  const Handle space(check(H5Dget_space(dataset.get()), "H5Dget_space", file), H5Sclose);
  const auto axes = check(H5Sget_simple_extent_ndims(space.get()), "H5Sget_simple_extent_ndims", file);
  std::vector<hsize_t> sizes(static_cast<std::size_t>(axes));
  check(H5Sget_simple_extent_dims(space.get(), sizes.data(), nullptr), "H5Sget_simple_extent_dims", file);
  if (sizes != as_sizes(shape)) {
    reject_input("{}: dataset {} has shape {}, not {}", file.name(), path, to_string(Shape(sizes.begin(), sizes.end())),
                 to_string(shape));
  }
}

}  // namespace

Handle::~Handle() {
  if (id_ >= 0) close_(id_);
}

Handle::Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}

Handle& Handle::operator=(Handle&& other) noexcept {
  std::swap(id_, other.id_);
  std::swap(close_, other.close_);
  return *this;
}

void silence() {
  // At the process's end HDF5 would try once more to write files that a full disk has kept open, and crash. Ours are
  // closed by their handles.
  static const herr_t left_to_handles = H5dont_atexit();
  static_cast<void>(left_to_handles);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

Id check(Id result, std::string_view call, std::string_view where, Fault fault) {
  if (result >= 0) return result;
  const std::string reason = innermost_reason();
  if (fault == Fault::kInput) reject_input("{}: {} failed: {}", where, call, reason);
  fail("{}: {} failed: {}", where, call, reason);
}

File::File(Handle handle, std::string name, Fault fault)
    : handle_(std::move(handle)), name_(std::move(name)), fault_(fault) {}

File File::create_in_memory(std::string name, std::size_t step_bytes) {
  silence();
  const Handle access(check(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate", name, Fault::kRun), H5Pclose);
  check(H5Pset_fapl_core(access.get(), step_bytes, false), "H5Pset_fapl_core", name, Fault::kRun);
  // Not the newer formats: H5Fget_file_image clears a flag in their superblock and leaves its checksum as it was, so
  // that the image would not open. Who writes the image keeps a checksum of all of it.
  check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_EARLIEST, H5F_LIBVER_V18), "H5Pset_libver_bounds", name,
        Fault::kRun);
  Handle file(check(H5Fcreate(name.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), "H5Fcreate", name, Fault::kRun),
              H5Fclose);
  return {std::move(file), std::move(name), Fault::kRun};
}

File File::create(const std::filesystem::path& path) {
  silence();
  std::string name = path.string();
  const Handle access(check(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate", name, Fault::kRun), H5Pclose);
  check(H5Pset_file_locking(access.get(), false, true), "H5Pset_file_locking", name, Fault::kRun);
  // The format whose superblock has the mark.
  check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110), "H5Pset_libver_bounds", name,
        Fault::kRun);
  Handle file(check(H5Fcreate(name.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), "H5Fcreate", name, Fault::kRun),
              H5Fclose);
  return {std::move(file), std::move(name), Fault::kRun};
}

File File::open(const std::filesystem::path& path) {
  silence();
  std::string name = path.string();
  const Handle access(check(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate", name, Fault::kInput), H5Pclose);
  check(H5Pset_file_locking(access.get(), false, true), "H5Pset_file_locking", name, Fault::kInput);
  Handle file(check(H5Fopen(name.c_str(), H5F_ACC_RDONLY, access.get()), "H5Fopen", name, Fault::kInput), H5Fclose);
  return {std::move(file), std::move(name), Fault::kInput};
}

std::vector<std::byte> File::image() const {
  silence();
  check(H5Fflush(id(), H5F_SCOPE_GLOBAL), "H5Fflush", *this);
  const auto bytes = check(H5Fget_file_image(id(), nullptr, 0), "H5Fget_file_image", *this);
  std::vector<std::byte> image(static_cast<std::size_t>(bytes));
  check(H5Fget_file_image(id(), image.data(), image.size()), "H5Fget_file_image", *this);
  return image;
}

void File::close() {
  silence();
  check(H5Fflush(id(), H5F_SCOPE_GLOBAL), "H5Fflush", *this);
  check(H5Fclose(handle_.release()), "H5Fclose", *this);
}

void write_dataset(const File& file, const std::string& path, const Shape& shape, DType dtype, const void* data) {
  const Handle dataset = make_dataset(file, path, shape, dtype);
  check(H5Dwrite(dataset.get(), stored_type(dtype), H5S_ALL, H5S_ALL, H5P_DEFAULT, data), "H5Dwrite", file);
}

void create_dataset(const File& file, const std::string& path, const Shape& shape, DType dtype) {
  make_dataset(file, path, shape, dtype);
}

void write_rectangle(const File& file, const std::string& path, const Rectangle& to, DType dtype, const void* data) {
  silence();
  const Handle dataset(check(H5Dopen2(file.id(), path.c_str(), H5P_DEFAULT), "H5Dopen2", file), H5Dclose);
  const Handle target(check(H5Dget_space(dataset.get()), "H5Dget_space", file), H5Sclose);
  select(file, target, to);
  const Handle source = make_space(file, to.shape);
  check(H5Dwrite(dataset.get(), stored_type(dtype), source.get(), target.get(), H5P_DEFAULT, data), "H5Dwrite", file);
  // What a dataset still holds back would be written as it closes, where nobody sees an error.
  check(H5Dflush(dataset.get()), "H5Dflush", file);
}

void write_attribute(const File& file, const std::string& name, const std::string& text) {
  silence();
  const Handle type = string_type(file, H5T_VARIABLE);
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8), "H5Tset_cset", file);
  const char* value = text.c_str();
  write_attribute_of(file, file.id(), name, type.get(), &value);
}

void write_attribute(const File& file, const std::string& name, std::int64_t value) {
  silence();
  write_attribute_of(file, file.id(), name, H5T_STD_I64LE, &value);
}

void write_attribute(const File& file, const std::string& name, double value) {
  silence();
  write_attribute_of(file, file.id(), name, H5T_IEEE_F64LE, &value);
}

void read_dataset(const File& file, const std::string& path, const Shape& shape, DType dtype, const Rectangle& from,
                  const Destination& to) {
  silence();
  const Handle dataset(check(H5Dopen2(file.id(), path.c_str(), H5P_DEFAULT), "H5Dopen2", file), H5Dclose);
  check_stored_dtype(file, path, dataset, dtype);
  check_stored_shape(file, path, dataset, shape);
  const Handle source = make_space(file, shape, from);
  const Handle target = make_space(file, to.buffer_shape, to.target);
  check(H5Dread(dataset.get(), stored_type(dtype), target.get(), source.get(), H5P_DEFAULT, to.buffer), "H5Dread",
        file);
}

}  // namespace kvloom::hdf5
