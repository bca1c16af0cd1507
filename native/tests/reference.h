// The model once more, in double precision and plain loops, one sequence at a time: what the engine is compared with.
#pragma once

#include <map>
#include <numeric>

#include "../engine.h"
#include "check.h"

namespace sasrec::test {

struct Matrix {
  Matrix(int rows = 0, int cols = 0) : rows(rows), cols(cols), values(static_cast<std::size_t>(rows) * cols) {}
  double& operator()(int r, int c) { return values[static_cast<std::size_t>(r) * cols + c]; }
  double operator()(int r, int c) const { return values[static_cast<std::size_t>(r) * cols + c]; }

  int rows, cols;
  std::vector<double> values;
};

struct Batch {
  std::vector<std::int32_t> items, targets, negatives;
  std::vector<std::int64_t> offsets{0};
  std::vector<std::uint64_t> keys;
  std::vector<float> weights;  // of positions; none = all weigh 1
  std::uint64_t step_key = 0;
  int n_negatives = 1;

  double weight(std::int64_t position) const { return weights.empty() ? 1 : weights[position]; }
  double total_weight() const {
    return weights.empty() ? static_cast<double>(items.size()) : std::accumulate(weights.begin(), weights.end(), 0.0);
  }
  RaggedView view() const { return {items.data(), offsets.data(), static_cast<std::int64_t>(offsets.size()) - 1}; }
};

// The weights of a model, as model/weights.py lists them.
inline NamedShapes weights_of(const ModelShape& shape) {
  NamedShapes weights;
  const auto norm = [&](const std::string& name) {
    for (const char* part : {".weight", ".bias"}) weights.emplace_back(name + part, std::vector{shape.dim});
  };
  const auto linear = [&](const std::string& name, int in, int out) {
    weights.emplace_back(name + ".weight", std::vector{out, in});
    weights.emplace_back(name + ".bias", std::vector{out});
  };
  const bool gated = shape.block == BlockKind::kLiGR;
  weights.emplace_back("item_embedding.weight", std::vector{shape.n_items + 1, shape.dim});
  weights.emplace_back("position_embedding.weight", std::vector{shape.max_seq_len, shape.dim});
  for (int i = 0; i < shape.n_blocks; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    norm(name + "attention_norm");
    linear(name + "attention.query", shape.dim, shape.dim);
    linear(name + "attention.key_value", shape.dim, 2 * shape.dim);
    linear(name + "attention.output", shape.dim, shape.dim);
    norm(name + "ffn_norm");
    if (gated) linear(name + "ffn.gate", shape.dim, shape.ffn_dim);
    linear(name + "ffn.up", shape.dim, shape.ffn_dim);
    linear(name + "ffn.down", shape.ffn_dim, shape.dim);
    if (gated) linear(name + "attention_gate", shape.dim, shape.dim);
    if (gated) linear(name + "ffn_gate", shape.dim, shape.dim);
  }
  if (!gated) norm("norm");
  if (!shape.tied) weights.emplace_back("output_embedding.weight", std::vector{shape.n_items + 1, shape.dim});
  if (shape.n_features) weights.emplace_back("feature_embedding.weight", std::vector{shape.n_features, shape.dim});
  if (shape.vector_dim) weights.emplace_back("vector_projection.weight", std::vector{shape.dim, shape.vector_dim});
  return weights;
}

class Reference {
 public:
  explicit Reference(const ModelShape& shape) : shape_(shape), dropout_(shape.dropout) {}

  std::map<std::string, Matrix> weights;  // by the names and shapes they have outside
  ItemFeatures item_features;             // where the shape has any
  float feature_dropout = 0;              // of a batch

  // Features (n, dim) of a sequence of at most max_seq_len items; without a batch there is no dropout.
  Matrix features(const std::int32_t* items, int n, const Batch* batch = nullptr, std::uint64_t key = 0) {
    batch_ = batch, key_ = key;
    Matrix x(n, shape_.dim);
    for (int r = 0; r < n; ++r)
      for (int c = 0; c < shape_.dim; ++c)
        x(r, c) = item_value("item_embedding.weight", items[r], c) * std::sqrt(shape_.dim) +
                  weights["position_embedding.weight"](shape_.max_seq_len - n + r, c);
    x = drop(x, kEmbeddingSite);
    for (int i = 0; i < shape_.n_blocks; ++i) x = block(i, x);
    return shape_.block == BlockKind::kLiGR ? x : norm("norm", x);
  }

  // Weighted sum over positions of softplus(-target's score) + sum of softplus(negatives' scores); a negative that is
  // the target counts nothing.
  double loss(const Batch& batch) {
    const std::string table = shape_.tied ? "item_embedding.weight" : "output_embedding.weight";
    double total = 0;
    for (std::size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
      const std::int64_t begin = batch.offsets[i], n = batch.offsets[i + 1] - begin;
      const Matrix x = features(&batch.items[begin], static_cast<int>(n), &batch, batch.keys[i]);
      const auto score = [&](std::int64_t r, int item) {
        double s = 0;
        for (int c = 0; c < shape_.dim; ++c) s += x(static_cast<int>(r), c) * item_value(table, item, c);
        return s;
      };
      for (std::int64_t r = 0; r < n; ++r) {
        double lost = std::log1p(std::exp(-score(r, batch.targets[begin + r])));
        for (int k = 0; k < batch.n_negatives; ++k) {
          const std::int32_t negative = batch.negatives[(begin + r) * batch.n_negatives + k];
          if (negative != batch.targets[begin + r]) lost += std::log1p(std::exp(score(r, negative)));
        }
        total += batch.weight(begin + r) * lost;
      }
    }
    return total;
  }

  // A value of an item's row in a table, with what the item is like; without a batch no own embedding is left out.
  double item_value(const std::string& table, int item, int column) {
    const Matrix& own = weights[table];
    double value = own(item, column), told = 0;
    bool described = false;
    if (shape_.n_features) {
      const Matrix& features = weights["feature_embedding.weight"];
      const std::int64_t begin = item_features.offsets[item], end = item_features.offsets[item + 1];
      for (std::int64_t k = begin; k < end; ++k)
        told += features(item_features.values[k], column) / static_cast<double>(end - begin);
      described = end > begin;
    }
    if (shape_.vector_dim) {
      const Matrix& projection = weights["vector_projection.weight"];
      for (int w = 0; w < shape_.vector_dim; ++w) {
        const float given = item_features.vectors[item * shape_.vector_dim + w];
        told += given * projection(column, w);
        described |= given != 0;
      }
    }
    if (batch_ && described && !IdDropout(batch_->step_key, feature_dropout).keeps(item)) value = 0;
    return value + told;
  }

 private:
  Matrix block(int i, const Matrix& x) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    const auto norm_1 = [&](const Matrix& m) { return norm(name + "attention_norm", m); };
    const auto norm_2 = [&](const Matrix& m) { return norm(name + "ffn_norm", m); };
    switch (shape_.block) {
      case BlockKind::kSASRec: {
        const Matrix q = norm_1(x), h = norm_2(sum(q, attention(i, q, x)));
        return sum(h, feed_forward(i, h));
      }
      case BlockKind::kPostNorm: {
        const Matrix h = norm_1(sum(x, attention(i, x, x)));
        return norm_2(sum(h, feed_forward(i, h)));
      }
      case BlockKind::kPreNorm: {
        const Matrix h = norm_1(x), y = sum(x, attention(i, h, h));
        return sum(y, feed_forward(i, norm_2(y)));
      }
      default: {
        const Matrix h = norm_1(x), attended = drop(attention(i, h, h), site_of(i, kBranchSite));
        const Matrix y = sum(x, gated(name + "attention_gate", x, attended));
        return sum(y, gated(name + "ffn_gate", y, feed_forward(i, norm_2(y))));
      }
    }
  }

  Matrix attention(int i, const Matrix& x, const Matrix& context) {
    const std::string name = "blocks." + std::to_string(i) + ".attention.";
    const Matrix query = linear(name + "query", x), key_value = linear(name + "key_value", context);
    Matrix mixed(x.rows, shape_.dim);
    const int width = shape_.head_dim();
    for (int h = 0; h < shape_.n_heads; ++h) {
      const RandomKey stream = random_key(batch_ ? batch_->step_key : 0, key_, site_of(i, kAttentionSite) + h);
      for (int r = 0; r < x.rows; ++r) {
        std::vector<double> p(r + 1);
        double total = 0;
        for (int c = 0; c <= r; ++c) {
          double s = 0;
          for (int d = 0; d < width; ++d) s += query(r, h * width + d) * key_value(c, h * width + d);
          total += p[c] = std::exp(s / std::sqrt(width));
        }
        for (int c = 0; c <= r; ++c) {
          const std::uint32_t word = random_word(stream, static_cast<std::uint32_t>(r / 2 * shape_.max_seq_len + c));
          const double weight = p[c] / total * factor(r % 2 ? word >> 16 : word & 0xffff);
          for (int d = 0; d < width; ++d) mixed(r, h * width + d) += weight * key_value(c, shape_.dim + h * width + d);
        }
      }
    }
    return linear(name + "output", mixed);
  }

  Matrix feed_forward(int i, const Matrix& x) {
    const std::string name = "blocks." + std::to_string(i) + ".ffn.";
    Matrix hidden = linear(name + "up", x);
    if (shape_.block == BlockKind::kLiGR) {
      const Matrix gate = linear(name + "gate", x);
      for (std::size_t k = 0; k < hidden.values.size(); ++k)
        hidden.values[k] *= gate.values[k] / (1 + std::exp(-gate.values[k]));
    } else if (shape_.relu) {
      for (double& v : hidden.values) v = std::max(v, 0.0);
    }
    return drop(linear(name + "down", drop(hidden, site_of(i, kHiddenSite))), site_of(i, kOutputSite));
  }

  Matrix gated(const std::string& name, const Matrix& x, Matrix branch) {
    const Matrix gate = linear(name, x);
    for (std::size_t k = 0; k < branch.values.size(); ++k) branch.values[k] /= 1 + std::exp(-gate.values[k]);
    return branch;
  }

  Matrix linear(const std::string& name, const Matrix& x) {
    const Matrix &weight = weights[name + ".weight"], &bias = weights[name + ".bias"];
    Matrix y(x.rows, weight.rows);
    for (int r = 0; r < x.rows; ++r)
      for (int c = 0; c < weight.rows; ++c) {
        y(r, c) = bias(0, c);
        for (int k = 0; k < weight.cols; ++k) y(r, c) += x(r, k) * weight(c, k);
      }
    return y;
  }

  Matrix norm(const std::string& name, Matrix x) {
    const Matrix &scale = weights[name + ".weight"], &shift = weights[name + ".bias"];
    for (int r = 0; r < x.rows; ++r) {
      double mean = 0, variance = 0;
      for (int c = 0; c < x.cols; ++c) mean += x(r, c) / x.cols;
      for (int c = 0; c < x.cols; ++c) variance += (x(r, c) - mean) * (x(r, c) - mean) / x.cols;
      for (int c = 0; c < x.cols; ++c)
        x(r, c) = (x(r, c) - mean) / std::sqrt(variance + shape_.eps) * scale(0, c) + shift(0, c);
    }
    return x;
  }

  Matrix sum(Matrix a, const Matrix& b) {
    for (std::size_t k = 0; k < a.values.size(); ++k) a.values[k] += b.values[k];
    return a;
  }

  // Columns c and c + 16 of each 32 share a random word.
  Matrix drop(Matrix x, std::uint64_t site) {
    if (!batch_) return x;
    const RandomKey stream = random_key(batch_->step_key, key_, site);
    const int words = (x.cols + 31) / 32 * 16;
    for (int r = 0; r < x.rows; ++r)
      for (int c = 0; c < x.cols; ++c) {
        const std::uint32_t word = random_word(stream, static_cast<std::uint32_t>(r * words + c / 32 * 16 + c % 16));
        x(r, c) *= factor(c % 32 < 16 ? word & 0xffff : word >> 16);
      }
    return x;
  }

  double factor(std::uint32_t half) const {
    if (!batch_) return 1;
    return half >= dropout_.threshold ? 65536.0 / (65536 - dropout_.threshold) : 0;
  }

  ModelShape shape_;
  Dropout dropout_;
  const Batch* batch_ = nullptr;
  std::uint64_t key_ = 0;
};

}  // namespace sasrec::test
