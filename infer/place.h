// Where a text stands in its document.
#pragma once

namespace kvloom {

enum class Place {
  kStart,
  kMiddle,  // text of the same document came before
};

}  // namespace kvloom
