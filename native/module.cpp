// The Python module of one variant: arrays in and out by pointer and shape, the GIL released while it works.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "draws.h"
#include "engine.h"
#include "levels.h"
#include "rank.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace sasrec;

namespace {

template <typename T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <typename T>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

void check(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

RaggedView ragged(const In<std::int32_t>& values, const In<std::int64_t>& offsets) {
  check(values.ndim() == 1 && offsets.ndim() == 1 && offsets.shape(0) >= 1, "values and offsets must have one axis");
  const std::int64_t rows = static_cast<std::int64_t>(offsets.shape(0)) - 1;
  check(offsets.data()[0] == 0, "offsets must begin with 0");
  for (std::int64_t i = 0; i < rows; ++i) check(offsets.data()[i] <= offsets.data()[i + 1], "offsets must not fall");
  check(offsets.data()[rows] == static_cast<std::int64_t>(values.shape(0)), "offsets must end with the size of values");
  return {values.data(), offsets.data(), rows};
}

BlockKind block_kind(const std::string& name) {
  if (name == "sasrec") return BlockKind::kSASRec;
  if (name == "post_norm") return BlockKind::kPostNorm;
  if (name == "pre_norm") return BlockKind::kPreNorm;
  if (name == "ligr") return BlockKind::kLiGR;
  throw std::invalid_argument("block '" + name + "' is not known");
}

LossKind loss_kind(const std::string& name) {
  if (name == "bce" || name == "gbce") return LossKind::kBce;
  if (name == "sampled_softmax") return LossKind::kSampledSoftmax;
  if (name == "cross_entropy") return LossKind::kCrossEntropy;
  throw std::invalid_argument("loss '" + name + "' is not known");
}

// Where a named array lies: flat parameters by their layout, tables row by row.
struct Place {
  const Parameter* parameter;  // null for a table
  Table* table;
};

Place find(Engine& engine, const std::string& name) {
  if (Table* table = engine.find_table(name)) return {nullptr, table};
  for (const Parameter& parameter : engine.layout().parameters())
    if (parameter.name == name) return {&parameter, nullptr};
  throw std::invalid_argument("there is no weight named '" + name + "'");
}

float* flat_array(Engine& engine, const std::string& kind) {
  if (kind == "weight") return engine.weights();
  if (kind == "exp_avg") return engine.first_moment();
  if (kind == "exp_avg_sq") return engine.second_moment();
  if (kind == "average") return engine.average();
  if (kind == "gradient") return engine.gradients();
  throw std::invalid_argument("kind '" + kind + "' is not known");
}

float* table_array(Table& table, const std::string& kind) {
  if (kind == "weight") return table.weight.data();
  if (kind == "exp_avg") return table.first_moment.data();
  if (kind == "exp_avg_sq") return table.second_moment.data();
  if (kind == "average") return table.average.data();
  throw std::invalid_argument("kind '" + kind + "' is not known");
}

// Calls f(outside offset, inside pointer, count) for runs of values of a named array.
template <typename F>
void for_runs(Engine& engine, const std::string& name, const std::string& kind, F&& f) {
  if (kind != "weight") engine.prepare_training();
  if (kind != "gradient") engine.catch_up_all();
  if (kind == "average") engine.reserve_average();
  const Place place = find(engine, name);
  if (place.parameter) {
    const Parameter& p = *place.parameter;
    float* flat = flat_array(engine, kind);
    for (int r = 0; r < p.rows.logical(); ++r)
      for (int c = 0; c < p.columns.logical(); ++c)
        f(static_cast<std::size_t>(r) * p.columns.logical() + c, flat + p.place(r, c), 1);
    return;
  }
  const int dim = engine.shape().dim, width = engine.shape().width();
  for (int row = 1; row <= engine.shape().n_items; ++row) {
    if (kind == "gradient") {
      RowGradient& g = place.table->gradient;
      if (g.slot[row] >= 0)
        f(static_cast<std::size_t>(row) * dim, &g.values[static_cast<std::size_t>(g.slot[row]) * width], dim);
    } else {
      f(static_cast<std::size_t>(row) * dim, table_array(*place.table, kind) + static_cast<std::size_t>(row) * width,
        dim);
    }
  }
}

std::size_t size_of(Engine& engine, const std::string& name) {
  const Parameter* parameter = find(engine, name).parameter;
  if (parameter) return static_cast<std::size_t>(parameter->rows.logical()) * parameter->columns.logical();
  return static_cast<std::size_t>(engine.shape().n_items + 1) * engine.shape().dim;
}

// Rows of hidden items beside n rows of features; empty offsets hide nothing.
HiddenView hidden_rows(const In<std::int32_t>& values, const In<std::int64_t>& offsets, std::int64_t n) {
  if (!offsets.size()) return {};
  const RaggedView rows = ragged(values, offsets);
  check(rows.rows == n, "one row of hidden items for each row of features");
  return {rows.values, rows.offsets};
}

std::int64_t feature_rows(const ItemIndex& index, const In<float>& features) {
  check(features.ndim() == 2 && static_cast<int>(features.shape(1)) == index.dim(),
        "features must be (rows, embedding_dim)");
  return static_cast<std::int64_t>(features.shape(0));
}

bool available() {
#if defined(__AMX_BF16__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return true;
#endif
}

}  // namespace

NB_MODULE(SASREC_MODULE, m) {
  m.doc() = "The compiled core of sasrec, one CPU variant of it.";
  m.attr("lanes") = kLanes;
  m.attr("bf16") = kDepth > 1;
  m.def("available", &available, "Whether the operating system lets this process use the variant.");

  m.def(
      "draw_unseen",
      [](In<std::uint64_t> seeds, In<std::int64_t> step_rows, In<std::int64_t> counts, In<std::int32_t> items,
         In<std::int64_t> starts, In<std::int64_t> ends, int n_items, int rounds, Out<std::int32_t> out) {
        const std::size_t steps = step_rows.size(), rows = counts.size();
        check(seeds.ndim() == 2 && seeds.shape(0) == steps && seeds.shape(1) == 3, "seeds must be (steps, 3)");
        check(starts.size() == rows && ends.size() == rows, "one range of items for each row");
        check(n_items > 0, "n_items must be positive");
        std::int64_t total = 0, row = 0;
        for (std::size_t i = 0; i < rows; ++i) {
          check(counts.data()[i] >= 0, "counts must not be negative");
          check(0 <= starts.data()[i] && ends.data()[i] <= static_cast<std::int64_t>(items.size()),
                "ranges must lie within items");
          total += counts.data()[i];
        }
        check(total == static_cast<std::int64_t>(out.size()), "out must have room for all counts");
        for (std::size_t i = 0; i < steps; ++i) {
          check(row <= step_rows.data()[i] && step_rows.data()[i] <= static_cast<std::int64_t>(rows),
                "step_rows must be ascending ends of rows");
          row = step_rows.data()[i];
        }
        nb::gil_scoped_release released;
        UnseenDrawer drawer({items.data(), starts.data(), ends.data()}, n_items);
        std::int32_t* place = out.data();
        row = 0;
        for (std::size_t i = 0; i < steps; ++i) {
          const std::uint64_t* seed = seeds.data() + 3 * i;
          Sfc64 stream({seed[0], seed[1], seed[2]});
          if (!drawer.draw(stream, row, step_rows.data()[i], counts.data(), rounds, place)) return false;
          for (; row < step_rows.data()[i]; ++row) place += counts.data()[row];
        }
        return true;
      },
      nb::kw_only(), "seeds"_a, "step_rows"_a, "counts"_a, "items"_a, "starts"_a, "ends"_a, "n_items"_a, "rounds"_a,
      "out"_a, "Draw items that rows have not had, of steps with a stream each; False = a row has nearly everything.");

  nb::class_<Engine>(m, "Engine")
      .def(
          "__init__",
          [](Engine* self, const std::string& block, int n_items, int embedding_dim, int n_blocks, int n_heads,
             int ffn_dim, int max_seq_len, float dropout, float norm_eps, bool relu, bool tied,
             const NamedShapes& weights, int threads, bool lazy_adam) {
            ModelShape shape{block_kind(block), n_items, embedding_dim, n_blocks, n_heads, ffn_dim,
                             max_seq_len,       dropout, norm_eps,      relu,     tied};
            check(n_items > 0 && embedding_dim > 0 && n_blocks >= 0 && ffn_dim > 0 && max_seq_len > 0 && threads > 0,
                  "sizes must be positive");
            check(n_heads > 0 && embedding_dim % n_heads == 0, "n_heads must divide embedding_dim");
            new (self) Engine(shape, weights, threads, lazy_adam);
          },
          nb::kw_only(), "block"_a, "n_items"_a, "embedding_dim"_a, "n_blocks"_a, "n_heads"_a, "ffn_dim"_a,
          "max_seq_len"_a, "dropout"_a, "norm_eps"_a, "relu"_a, "tied"_a, "weights"_a, "threads"_a, "lazy_adam"_a)
      .def_prop_ro("threads", &Engine::n_threads)
      .def_prop_rw("step_count", &Engine::step_count, &Engine::set_step_count)
      .def(
          "read",
          [](Engine& engine, const std::string& name, const std::string& kind, Out<float> out) {
            check(out.size() == size_of(engine, name), "the array for " + name + " has the wrong size");
            std::fill_n(out.data(), out.size(), 0.0f);
            for_runs(engine, name, kind, [&](std::size_t outside, const float* inside, int n) {
              std::copy_n(inside, n, out.data() + outside);
            });
          },
          "name"_a, "kind"_a, "out"_a, "Copy a weight, its gradient, a moment of Adam or its average into an array.")
      .def(
          "write",
          [](Engine& engine, const std::string& name, const std::string& kind, In<float> values) {
            check(values.size() == size_of(engine, name), "the array for " + name + " has the wrong size");
            check(kind != "gradient", "gradients cannot be written");
            for_runs(engine, name, kind, [&](std::size_t outside, float* inside, int n) {
              std::copy_n(values.data() + outside, n, inside);
            });
            engine.weights_changed();
          },
          "name"_a, "kind"_a, "values"_a,
          "Replace a weight, a moment of Adam or an average; row 0 of a table stays zero.")
      .def(
          "forward_backward",
          [](Engine& engine, In<std::int32_t> items, In<std::int64_t> offsets, In<std::uint64_t> sequence_keys,
             std::uint64_t step_key, const std::string& loss, In<std::int32_t> targets, In<std::int32_t> negatives,
             In<std::int32_t> earlier, In<std::int64_t> earlier_offsets, float positive_weight, In<float> corrections,
             float l2_embedding) {
            const RaggedView inputs = ragged(items, offsets);
            check(static_cast<std::int64_t>(sequence_keys.size()) == inputs.rows, "one key for each row");
            check(targets.size() == items.size(), "one target for each input");
            const bool shared = negatives.ndim() == 1;
            check(shared || (negatives.ndim() == 2 && negatives.shape(0) == items.shape(0)),
                  "negatives must be (inputs, n), or (n,) for all");
            const int n_negatives = static_cast<int>(negatives.shape(shared ? 0 : 1));
            const LossKind kind = loss_kind(loss);
            check(kind == LossKind::kCrossEntropy || n_negatives > 0, "this loss needs negatives");
            const bool corrected = kind == LossKind::kSampledSoftmax;
            check(!corrected || static_cast<int>(corrections.size()) == engine.shape().n_items + 1,
                  "one correction for each item, padding included");
            const bool masks = earlier_offsets.size() > 0;
            const RaggedView before = masks ? ragged(earlier, earlier_offsets) : RaggedView{};
            check(!masks || before.rows == inputs.rows, "one row of earlier items for each row");
            nb::gil_scoped_release released;
            return engine.forward_backward(
                inputs, sequence_keys.data(), step_key,
                {kind, positive_weight, corrected ? corrections.data() : nullptr, 1.0f},
                {targets.data(), negatives.data(), n_negatives, shared, masks ? &before : nullptr}, l2_embedding);
          },
          nb::kw_only(), "items"_a, "offsets"_a, "sequence_keys"_a, "step_key"_a, "loss"_a, "targets"_a, "negatives"_a,
          "earlier"_a, "earlier_offsets"_a, "positive_weight"_a, "corrections"_a, "l2_embedding"_a,
          "Gradients of the mean loss; returns its sum over positions.")
      .def(
          "optimizer_step",
          [](Engine& engine, float learning_rate, float beta1, float beta2, float weight_decay, float clip_norm) {
            nb::gil_scoped_release released;
            engine.optimizer_step({learning_rate, beta1, beta2, weight_decay}, clip_norm);
          },
          nb::kw_only(), "learning_rate"_a, "beta1"_a, "beta2"_a, "weight_decay"_a, "clip_norm"_a)
      .def_prop_ro("has_average", &Engine::has_average)
      .def("update_average", &Engine::update_average, "decay"_a, nb::call_guard<nb::gil_scoped_release>(),
           "Move the average of all weights towards them; the first call copies them.")
      .def("swap_average", &Engine::swap_average, nb::call_guard<nb::gil_scoped_release>(),
           "Weights and their average change places.")
      .def(
          "encode",
          [](Engine& engine, In<std::int32_t> items, In<std::int64_t> offsets, Out<float> features) {
            const RaggedView histories = ragged(items, offsets);
            check(features.ndim() == 2 && static_cast<std::int64_t>(features.shape(0)) == histories.rows &&
                      static_cast<int>(features.shape(1)) == engine.shape().dim,
                  "features must be (rows, embedding_dim)");
            nb::gil_scoped_release released;
            engine.encode(histories, features.data());
          },
          "items"_a, "offsets"_a, "features"_a, "Features after the last item of each row.");

  nb::class_<ItemIndex>(m, "ItemIndex")
      .def(
          "__init__",
          [](ItemIndex* self, In<float> table, int threads) {
            check(table.ndim() == 2 && table.shape(0) > 1 && table.shape(1) > 0,
                  "the table must be (n_items + 1, dim)");
            check(table.shape(0) <= 1u << 30 && table.shape(1) <= 1u << 16 && threads > 0, "sizes are out of range");
            new (self) ItemIndex(table.data(), static_cast<int>(table.shape(0)) - 1, static_cast<int>(table.shape(1)),
                                 threads);
          },
          "table"_a.noconvert(), "threads"_a, nb::keep_alive<1, 2>())
      .def(
          "rank",
          [](ItemIndex& index, In<float> features, In<std::int32_t> targets, In<std::int32_t> hidden,
             In<std::int64_t> hidden_offsets, Out<std::int64_t> n_above, Out<std::int64_t> n_tied,
             Out<std::int32_t> lists) {
            const std::int64_t n = feature_rows(index, features);
            const auto rows = static_cast<std::size_t>(n);
            check(targets.size() == rows && n_above.size() == rows && n_tied.size() == rows, "one target for each row");
            check(lists.ndim() == 2 && lists.shape(0) == rows, "lists must be (rows, k)");
            const HiddenView gone = hidden_rows(hidden, hidden_offsets, n);
            nb::gil_scoped_release released;
            return index.rank(features.data(), n, targets.data(), gone, static_cast<int>(lists.shape(1)),
                              n_above.data(), n_tied.data(), lists.data());
          },
          "features"_a, "targets"_a, "hidden"_a, "hidden_offsets"_a, "n_above"_a, "n_tied"_a, "lists"_a,
          "Count items above each target and tied with it, and list the best; False = a score is not finite.")
      .def(
          "rank_among",
          [](ItemIndex& index, In<float> features, In<std::int32_t> candidates, Out<std::int64_t> n_above,
             Out<std::int64_t> n_tied) {
            const std::int64_t n = feature_rows(index, features);
            const auto rows = static_cast<std::size_t>(n);
            check(candidates.ndim() == 2 && candidates.shape(0) == rows && candidates.shape(1) > 0 &&
                      n_above.size() == rows && n_tied.size() == rows,
                  "candidates must be (rows, 1 or more)");
            nb::gil_scoped_release released;
            return index.rank_among(features.data(), n, candidates.data(), static_cast<int>(candidates.shape(1)),
                                    n_above.data(), n_tied.data());
          },
          "features"_a, "candidates"_a, "n_above"_a, "n_tied"_a,
          "Count candidates above the first of each row and tied with it; False = a score is not finite.")
      .def(
          "top_k",
          [](ItemIndex& index, In<float> features, In<std::int32_t> hidden, In<std::int64_t> hidden_offsets,
             In<bool> allowed, Out<std::int32_t> indices, Out<float> scores) {
            const std::int64_t n = feature_rows(index, features);
            const auto rows = static_cast<std::size_t>(n);
            check(indices.ndim() == 2 && indices.shape(0) == rows && indices.size() == scores.size() &&
                      indices.shape(1) > 0,
                  "indices and scores must be (rows, k)");
            check(allowed.size() == 0 || static_cast<int>(allowed.size()) == index.n_items() + 1,
                  "allowed must be (n_items + 1)");
            const HiddenView gone = hidden_rows(hidden, hidden_offsets, n);
            nb::gil_scoped_release released;
            return index.top_k(features.data(), n, static_cast<int>(indices.shape(1)), gone,
                               allowed.size() ? allowed.data() : nullptr, indices.data(), scores.data());
          },
          "features"_a, "hidden"_a, "hidden_offsets"_a, "allowed"_a, "indices"_a, "scores"_a,
          "The best k items of each row; False = a score is not finite.");

  nb::class_<LevelIndex>(m, "LevelIndex")
      .def(
          "__init__",
          [](LevelIndex* self, In<float> levels) {
            check(levels.ndim() == 1 && levels.shape(0) > 1 && levels.shape(0) <= 1u << 30,
                  "levels must be (n_items + 1)");
            new (self) LevelIndex(levels.data(), static_cast<int>(levels.shape(0)) - 1);
          },
          "levels"_a)
      .def(
          "rank",
          [](const LevelIndex& index, In<std::int32_t> items, In<std::int64_t> offsets, In<float> scores,
             In<std::int32_t> targets, In<std::int32_t> hidden, In<std::int64_t> hidden_offsets,
             Out<std::int64_t> n_above, Out<std::int64_t> n_tied, Out<std::int32_t> lists) {
            const RaggedView exceptions = ragged(items, offsets);
            const auto rows = static_cast<std::size_t>(exceptions.rows);
            check(scores.size() == items.size(), "one score for each exception");
            check(targets.size() == rows && n_above.size() == rows && n_tied.size() == rows, "one target for each row");
            check(lists.ndim() == 2 && lists.shape(0) == rows, "lists must be (rows, k)");
            const HiddenView gone = hidden_rows(hidden, hidden_offsets, exceptions.rows);
            nb::gil_scoped_release released;
            index.rank(exceptions.rows, {items.data(), scores.data(), offsets.data()}, targets.data(), gone,
                       static_cast<int>(lists.shape(1)), n_above.data(), n_tied.data(), lists.data());
          },
          "items"_a, "offsets"_a, "scores"_a, "targets"_a, "hidden"_a, "hidden_offsets"_a, "n_above"_a, "n_tied"_a,
          "lists"_a, "Count items above each target and tied with it, and list the best.");
}
