// The weights: one flat array of everything but the item tables, its padded layout, and panels of the matrices to
// multiply with.
//
// Outside a weight is known by its name and shape. Both are written down in model/weights.py alone: the core is told
// them in the model's order, checks the shapes and keeps the names. Inside, widths are padded with zeros and a matrix
// lies as (in, out), so that the forward pass reads it as it is.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
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
  int n_features = 0;    // 0 = items have none
  int vector_dim = 0;    // the same
  float cold_scale = 0;  // of rows of items without own embedding, where answers read them; 0 = they are left alone

  int head_dim() const { return dim / n_heads; }
  int head_width() const { return round_up(head_dim(), kWidth); }
  int attention_width() const { return n_heads * head_width(); }
  int width() const { return round_up(dim, kWidth); }
  int ffn_width() const { return round_up(ffn_dim, kWidth); }
};

// The name and the shape of each weight outside, in the order of the model.
using NamedShapes = std::vector<std::pair<std::string, std::vector<int>>>;

// Hands the names out in their order, each to the weight that has its shape.
class NamesInOrder {
 public:
  explicit NamesInOrder(const NamedShapes& weights) : weights_(weights) {}

  const std::string& next(const std::vector<int>& shape) {
    if (taken_ == weights_.size())
      throw std::invalid_argument("after " + std::to_string(taken_) + " weights the core needs one of shape " +
                                  text_of(shape));
    const auto& [name, given] = weights_[taken_++];
    if (given != shape)
      throw std::invalid_argument("weight " + name + " has shape " + text_of(given) + ", and the core needs " +
                                  text_of(shape));
    return name;
  }
  void expect_none_left() const {
    if (taken_ < weights_.size())
      throw std::invalid_argument("the core has no weight " + weights_[taken_].first + " in such a model");
  }

 private:
  static std::string text_of(const std::vector<int>& shape) {
    std::string text;
    for (const int size : shape) text += (text.empty() ? "(" : ", ") + std::to_string(size);
    return text + ")";
  }

  const NamedShapes& weights_;
  std::size_t taken_ = 0;
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

// Names, offsets and panels of a model's weights. Walks through the model in the order in which its weights are named.
class Layout {
 public:
  Layout(const ModelShape& shape, const NamedShapes& weights) {
    NamesInOrder names(weights);
    const std::vector<int> table{shape.n_items + 1, shape.dim};
    const Axis model{1, shape.dim, shape.width()}, hidden{1, shape.ffn_dim, shape.ffn_width()};
    const Axis heads{shape.n_heads, shape.head_dim(), shape.head_width()};
    const Axis two_heads{2 * shape.n_heads, shape.head_dim(), shape.head_width()};
    tables.push_back(names.next(table));
    position = add_matrix(names, {1, shape.max_seq_len, shape.max_seq_len}, model, false);
    for (int i = 0; i < shape.n_blocks; ++i) {
      BlockWeights block{};
      block.attention_norm = norm(names, model);
      block.query = linear(names, model, heads);
      block.key_value = linear(names, model, two_heads);
      block.output = linear(names, heads, model);
      block.ffn_norm = norm(names, model);
      if (shape.block == BlockKind::kLiGR) block.gate = linear(names, model, hidden);
      block.up = linear(names, model, hidden);
      block.down = linear(names, hidden, model);
      if (shape.block == BlockKind::kLiGR) {
        block.attention_gate = linear(names, model, model);
        block.ffn_gate = linear(names, model, model);
      }
      blocks.push_back(block);
    }
    if (shape.block != BlockKind::kLiGR) final_norm = norm(names, model);
    if (!shape.tied) tables.push_back(names.next(table));
    network_size_ = size_;
    if (shape.n_features > 0) features = add_matrix(names, {1, shape.n_features, shape.n_features}, model, false);
    if (shape.vector_dim > 0) projection = add_matrix(names, model, {1, shape.vector_dim, shape.vector_dim}, true);
    names.expect_none_left();
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
  std::size_t network_size() const { return network_size_; }  // without features and projection, which come last
  std::size_t panels_size() const { return panels_size_; }
  std::size_t largest_matrix() const { return largest_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }

  std::vector<std::string> tables;  // names: the items', and that of the output if it is another
  std::size_t position, features = 0, projection = 0;
  std::vector<BlockWeights> blocks;
  Norm final_norm{};

 private:
  std::size_t add_matrix(NamesInOrder& names, Axis rows, Axis columns, bool transposed) {
    return add(names.next({rows.logical(), columns.logical()}), rows, columns, transposed);
  }
  std::size_t add_vector(NamesInOrder& names, Axis columns) {
    return add(names.next({columns.logical()}), {1, 1, 1}, columns, false);
  }
  std::size_t add(const std::string& name, Axis rows, Axis columns, bool transposed) {
    parameters_.push_back({name, size_, rows, columns, transposed});
    const std::size_t offset = size_;
    size_ += (parameters_.back().padded_size() + 15) / 16 * 16;
    return offset;
  }
  Norm norm(NamesInOrder& names, Axis columns) {
    const std::size_t scale = add_vector(names, columns);
    return {scale, add_vector(names, columns)};
  }
  Linear linear(NamesInOrder& names, Axis in, Axis out) {
    const std::size_t weight = add_matrix(names, out, in, true);
    const std::size_t bias = add_vector(names, out);
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
  std::size_t size_ = 0, network_size_ = 0, panels_size_ = 0, largest_ = 0;
};

}  // namespace sasrec
