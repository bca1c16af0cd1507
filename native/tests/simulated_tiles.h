// AMX tile instructions as plain loops, so that the code around them is tested on CPUs that have none. It replaces the
// intrinsics of the same names and traps where the CPU would: no configuration, or a tile larger than it can be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sasrec::test {

struct SimulatedTile {
  int rows, bytes;
  unsigned char data[16][64];
};

struct SimulatedTiles {
  bool configured = false;
  SimulatedTile tiles[8] = {};

  void configure(const void* config) {  // bytes 16..31: widths, 16 bits each; 48..55: rows
    const auto* bytes = static_cast<const unsigned char*>(config);
    if (bytes[0] != 1) __builtin_trap();
    for (int i = 0; i < 8; ++i) {
      std::uint16_t width;
      std::memcpy(&width, bytes + 16 + 2 * i, 2);
      tiles[i].rows = bytes[48 + i], tiles[i].bytes = width;
      if (tiles[i].rows < 1 || tiles[i].rows > 16 || width < 1 || width > 64) __builtin_trap();
    }
    configured = true;
  }
  void check() const {
    if (!configured) __builtin_trap();
  }
  void load(int tile, const void* from, std::ptrdiff_t stride) {
    check();
    for (int r = 0; r < tiles[tile].rows; ++r)
      std::memcpy(tiles[tile].data[r], static_cast<const char*>(from) + r * stride, tiles[tile].bytes);
  }
  void store(int tile, void* to, std::ptrdiff_t stride) const {
    check();
    for (int r = 0; r < tiles[tile].rows; ++r)
      std::memcpy(static_cast<char*>(to) + r * stride, tiles[tile].data[r], tiles[tile].bytes);
  }
  void zero(int tile) {
    check();
    std::memset(tiles[tile].data, 0, sizeof tiles[tile].data);
  }
  static float value(const unsigned char* bf16) {
    const unsigned char bytes[4] = {0, 0, bf16[0], bf16[1]};
    float v;
    std::memcpy(&v, bytes, 4);
    return v;
  }
  // sum (rows, columns) += left (rows, pairs of depth) right (pairs of depth, columns)
  void multiply(int sum, int left, int right) {
    check();
    for (int m = 0; m < tiles[sum].rows; ++m)
      for (int n = 0; n < tiles[sum].bytes / 4; ++n) {
        float total;
        std::memcpy(&total, &tiles[sum].data[m][4 * n], 4);
        for (int k = 0; k < tiles[left].bytes / 2; ++k)
          total += value(&tiles[left].data[m][2 * k]) * value(&tiles[right].data[k / 2][4 * n + 2 * (k % 2)]);
        std::memcpy(&tiles[sum].data[m][4 * n], &total, 4);
      }
  }
};

inline thread_local SimulatedTiles simulated_tiles;

}  // namespace sasrec::test

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) sasrec::test::simulated_tiles.configure(config)
#define _tile_release() (sasrec::test::simulated_tiles.configured = false)
#define _tile_loadd(tile, from, stride) sasrec::test::simulated_tiles.load(tile, from, stride)
#define _tile_stored(tile, to, stride) sasrec::test::simulated_tiles.store(tile, to, stride)
#define _tile_zero(tile) sasrec::test::simulated_tiles.zero(tile)
#define _tile_dpbf16ps(sum, left, right) sasrec::test::simulated_tiles.multiply(sum, left, right)
