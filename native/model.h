// The weights: one flat array of everything but the item tables, its padded layout, and panels of the matrices to
// multiply with.
//
// A parameter is known outside by the name and shape it has in model.py; inside, widths are padded with zeros and a
// matrix lies as (in, out), so that the forward pass reads it as it is.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "gemm.h"
#include "memory.h"

namespace sasrec {

enum class BlockKind { kSASRec, kPostNorm, kPreNorm, kLiGR };

struct ModelShape {
  BlockKind block = BlockKind::kSASRec;
  int n_items = 0;
  int dim = 0;
  int n_blocks = 0;
  int n_heads = 1;
  int ffn_dim = 0;
  int max_seq_len = 0;
  float dropout = 0;
  float eps = 1e-8f;
  bool relu = true;
  bool tied = true;

  int head_dim() const { return dim / n_heads; }
  int head_width() const { return round_up(head_dim(), kWidth); }
  int attention_width() const { return n_heads * head_width(); }
  int width() const { return round_up(dim, kWidth); }
  int ffn_width() const { return round_up(ffn_dim, kWidth); }
};

// How logical rows or columns map to padded ones: `groups` runs of `size`, each starting `stride` after the last.
struct Axis {
  int groups, size, stride;

  int logical() const { return groups * size; }
  int padded() const { return groups * stride; }
  // Up to where the last value lies: as far as a product has to go.
  int used() const { return round_up((groups - 1) * stride + size, kDepthStep); }
  Columns columns() const { return Columns::groups(groups, size, stride); }
  int place(int i) const { return i / size * stride + i % size; }
};

// A named array of the flat weights. A vector has one row. Matrices are (rows = out, columns = in) outside and
// transposed inside; the position table is (positions, dim) on both sides.
struct Parameter {
  std::string name;
  std::size_t offset;
  Axis rows, columns;
  bool transposed;

  std::size_t place(int row, int column) const {
    const std::size_t r = rows.place(row), c = columns.place(column);
    return offset + (transposed ? c * rows.padded() + r : r * columns.padded() + c);
  }
  std::size_t padded_size() const { return static_cast<std::size_t>(rows.padded()) * columns.padded(); }
};

struct Linear {
  std::size_t weight, bias;  // in the flat weights
  int in, out;               // padded
  int in_used, out_used;     // what of it a product has to read
  Columns in_columns, out_columns;
  std::size_t forward_panel, backward_panel;  // in the panels: for x W, and for dy W^T

  Panel forward(const Operand* panels) const { return {panels + forward_panel, panel_stride(out)}; }
  Panel backward(const Operand* panels) const { return {panels + backward_panel, panel_stride(in)}; }
};

struct Norm {
  std::size_t scale, shift;
};

struct BlockWeights {
  Norm attention_norm, ffn_norm;
  Linear query, key_value, output;
  Linear up, down;
  Linear gate, attention_gate, ffn_gate;  // LiGR only
};

// Names, offsets and panels of a model's weights.
class Layout {
 public:
  explicit Layout(const ModelShape& shape) {
    const Axis model{1, shape.dim, shape.width()}, hidden{1, shape.ffn_dim, shape.ffn_width()};
    const Axis heads{shape.n_heads, shape.head_dim(), shape.head_width()};
    const Axis two_heads{2 * shape.n_heads, shape.head_dim(), shape.head_width()};
    position = add("position_embedding.weight", {1, shape.max_seq_len, shape.max_seq_len}, model, false);
    for (int i = 0; i < shape.n_blocks; ++i) {
      const std::string prefix = "blocks." + std::to_string(i) + ".";
      BlockWeights block{};
      block.attention_norm = norm(prefix + "attention_norm", model);
      block.query = linear(prefix + "attention.query", model, heads);
      block.key_value = linear(prefix + "attention.key_value", model, two_heads);
      block.output = linear(prefix + "attention.output", heads, model);
      block.ffn_norm = norm(prefix + "ffn_norm", model);
      if (shape.block == BlockKind::kLiGR) block.gate = linear(prefix + "ffn.gate", model, hidden);
      block.up = linear(prefix + "ffn.up", model, hidden);
      block.down = linear(prefix + "ffn.down", hidden, model);
      if (shape.block == BlockKind::kLiGR) {
        block.attention_gate = linear(prefix + "attention_gate", model, model);
        block.ffn_gate = linear(prefix + "ffn_gate", model, model);
      }
      blocks.push_back(block);
    }
    if (shape.block != BlockKind::kLiGR) final_norm = norm("norm", model);
  }

  // Packs the matrices that products read, forward and backward, from the flat weights; matrix i of n_matrices().
  void pack(int i, const float* flat, Operand* panels, Operand* scratch) const {
    const Linear& linear = linears_[i];
    const float* weight = flat + linear.weight;
    Operand* forward = panels + linear.forward_panel;
    const auto convert = [&](Operand* to, int stride) {
      for (int r = 0; r < linear.in; ++r)
        for (int c = 0; c < linear.out; c += kLanes)
          store_operand(to + static_cast<std::ptrdiff_t>(r) * stride + c,
                        load(weight + static_cast<std::ptrdiff_t>(r) * linear.out + c));
    };
#if defined(SASREC_BF16)
    convert(scratch, linear.out);
    pack_rows(linear.in, linear.out, scratch, linear.out, forward);
    pack_transposed(linear.out, linear.in, scratch, linear.out, panels + linear.backward_panel);
#else
    (void)scratch;
    convert(forward, panel_stride(linear.out));
    pack_transposed(linear.out, linear.in, weight, linear.out, panels + linear.backward_panel);
#endif
  }

  // Shrinks matrix i of the flat weights.
  void shrink(int i, float* flat, float factor) const {
    float* weight = flat + linears_[i].weight;
    const std::size_t size = static_cast<std::size_t>(linears_[i].in) * linears_[i].out;
    for (std::size_t k = 0; k < size; k += kLanes) store(weight + k, load(weight + k) * factor);
  }

  int n_matrices() const { return static_cast<int>(linears_.size()); }
  std::size_t size() const { return size_; }
  std::size_t panels_size() const { return panels_size_; }
  std::size_t largest_matrix() const { return largest_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }

  std::size_t position;
  std::vector<BlockWeights> blocks;
  Norm final_norm{};

 private:
  std::size_t add(std::string name, Axis rows, Axis columns, bool transposed) {
    parameters_.push_back({std::move(name), size_, rows, columns, transposed});
    const std::size_t offset = size_;
    size_ += (parameters_.back().padded_size() + 15) / 16 * 16;
    return offset;
  }
  Norm norm(const std::string& name, Axis columns) {
    const Axis one{1, 1, 1};
    const std::size_t scale = add(name + ".weight", one, columns, false);
    return {scale, add(name + ".bias", one, columns, false)};
  }
  Linear linear(const std::string& name, Axis in, Axis out) {
    const std::size_t weight = add(name + ".weight", out, in, true);
    const std::size_t bias = add(name + ".bias", {1, 1, 1}, out, false);
    const std::size_t forward = static_cast<std::size_t>(in.padded()) * panel_stride(out.padded());
    const std::size_t backward = static_cast<std::size_t>(out.padded()) * panel_stride(in.padded());
    const Linear result{weight,     bias,         in.padded(),   out.padded(), in.used(),
                        out.used(), in.columns(), out.columns(), panels_size_, panels_size_ + forward};
    panels_size_ += forward + backward;
    largest_ = std::max(largest_, static_cast<std::size_t>(in.padded()) * out.padded());
    linears_.push_back(result);
    return result;
  }

  std::vector<Parameter> parameters_;
  std::vector<Linear> linears_;
  std::size_t size_ = 0, panels_size_ = 0, largest_ = 0;
};

}  // namespace sasrec
