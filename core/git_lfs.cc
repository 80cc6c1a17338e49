#include "core/git_lfs.h"

#include "kernels/error.h"

namespace kvloom {

void refuse_git_lfs(std::string_view start, const std::string& where) {
  if (!start.starts_with("version https://git-lfs.github.com/spec/")) return;
  reject_input("{} is a pointer of Git LFS in place of the file; get the file with git lfs pull", where);
}

}  // namespace kvloom
