// The table of contents of a checkpoint: sealed with a checksum, checked before it is believed.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "core/rectangle.h"
#include "kernels/dtype.h"
#include "proto/manifest.pb.h"

namespace kvloom {

inline constexpr std::string_view kManifestName = "manifest.pb";
inline constexpr std::uint32_t kManifestFormat = 1;

// The bytes of manifest.pb. Throws Error when the manifest is too large for Protocol Buffers (2 GiB).
std::string seal_manifest(const proto::Manifest& manifest);

// Back from those bytes; `where` is the file for messages. Throws InputError unless the checksum is right and the
// content passes check_manifest.
proto::Manifest unseal_manifest(std::string_view bytes, const std::string& where);

// Throws InputError, naming `where` and the tensor or file, unless the format is known, file names stay inside the
// folder, dtypes are known, tensors are named once, and the slices of each tensor cover it exactly once.
void check_manifest(const proto::Manifest& manifest, const std::string& where);

// Appends the files and tensors of `part` to `manifest`; slices of one tensor from several parts come together. Throws
// InputError when parts disagree about a tensor's shape or dtype.
void merge_part(const proto::ManifestPart& part, proto::Manifest& manifest);

// Between messages and values. `dtype_named` throws InputError for a name that name_of never gives.
Shape shape_of(const google::protobuf::RepeatedField<std::int64_t>& sizes);
Rectangle rectangle_of(const proto::Slice& slice);
DType dtype_named(std::string_view name);

}  // namespace kvloom
