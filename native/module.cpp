// The Python module of one variant: arrays in and out by pointer and shape, the GIL released while it works.
//
// Whatever is asked of it, memory outside of the arrays is never touched: sizes and items are checked first. Arrays
// must not change while a call works.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#endif

#include "draws.h"
#include "engine.h"
#include "ids.h"
#include "json.h"
#include "levels.h"
#include "named.h"
#include "rank.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace sasrec;

namespace {

constexpr std::size_t kMostItems = 1 << 30, kMostColumns = 1 << 30;
constexpr int kMostDims = 1 << 14, kMostHidden = 1 << 16, kMostPositions = 1 << 16, kMostBlocks = 1 << 10,
              kMostVectorDims = 1 << 16, kMostThreads = 1 << 12;

void check(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// While it lives, other Python threads run. Where the interpreter ends meanwhile, a thread that wants it back is ended
// by unwinding, which nothing here could let pass: it sleeps until the process is gone, as from Python 3.14 on.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;
  ~Released() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) ::pause();
    }
  }

 private:
  PyThreadState* state_;
};

template <typename T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <typename T>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

template <typename T>
std::string type_name() {
  if constexpr (std::is_same_v<T, bool>) return "bool";
  return (std::is_floating_point_v<T> ? "float" : std::is_signed_v<T> ? "int" : "uint") + std::to_string(8 * sizeof(T));
}

// An array to read. One that does not lie in C order is copied; values of another type are not converted, as that would
// turn a large index into another item's.
template <typename T>
In<T> in(const char* name, nb::handle given) {
  In<T> array;
  if (nb::try_cast(given, array, false)) return array;
  nb::ndarray<const T, nb::device::cpu> strided;
  if (!nb::try_cast(given, strided, false) || !nb::try_cast(given, array, true))
    throw nb::type_error((std::string(name) + " must be an array of " + type_name<T>()).c_str());
  return array;
}

// An array to write to, as it is: results in a copy of it would be lost.
template <typename T>
Out<T> out(const char* name, nb::handle given) {
  Out<T> array;
  if (!nb::try_cast(given, array, false))
    throw nb::type_error(
        (std::string(name) + " must be a writable array of " + type_name<T>() + " in C order").c_str());
  return array;
}

// An array to read as long as the object lives that it is given to, so it must not be a copy.
template <typename T>
In<T> as_it_is(const char* name, nb::handle given) {
  In<T> array;
  if (!nb::try_cast(given, array, false))
    throw nb::type_error((std::string(name) + " must be an array of " + type_name<T>() + " in C order").c_str());
  return array;
}

// Views of the engine's own memory.
using Rows1 = nb::ndarray<nb::numpy, const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats1 = nb::ndarray<nb::numpy, float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<nb::numpy, float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// The length of an axis, as an int.
template <typename Array>
int axis(const char* name, const Array& array, int i) {
  check(array.shape(i) <= kMostColumns, std::string(name) + " has too many columns");
  return static_cast<int>(array.shape(i));
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

TableSteps table_steps(bool lazy_adam, bool orthogonal_steps) {
  check(!(lazy_adam && orthogonal_steps), "orthogonal steps move every row, which lazy Adam does not");
  return lazy_adam ? TableSteps::kLazy : orthogonal_steps ? TableSteps::kOrthogonal : TableSteps::kDense;
}

// Rows of hidden items beside n rows of features; empty offsets hide nothing.
HiddenView hidden_rows(const In<std::int32_t>& values, const In<std::int64_t>& offsets, std::int64_t n) {
  if (!offsets.size()) return {};
  const RaggedView rows = ragged(values, offsets);
  check(rows.rows == n, "one row of hidden items for each row of features");
  return {rows.values, rows.offsets};
}

std::int64_t feature_rows(const ItemIndex& index, const In<float>& features) {
  check(features.ndim() == 2 && features.shape(1) == static_cast<std::size_t>(index.dim()),
        "features must be (rows, embedding_dim)");
  return static_cast<std::int64_t>(features.shape(0));
}

// Items' features, checked; what the shape has none of is not looked at.
ItemFeatures item_features(const ModelShape& shape, nb::handle given_offsets, nb::handle given_values,
                           nb::handle given_vectors) {
  ItemFeatures features;
  const std::int64_t rows = shape.n_items + 1;
  if (shape.n_features > 0) {
    const auto offsets = as_it_is<std::int64_t>("feature_offsets", given_offsets);
    const auto values = as_it_is<std::int32_t>("feature_values", given_values);
    check(ragged(values, offsets).rows == rows, "one row of features for each item, padding included");
    check(offsets.data()[1] == 0, "padding has no features");
    for (std::size_t i = 0; i < values.size(); ++i)
      check(values.data()[i] >= 0 && values.data()[i] < shape.n_features, "a feature is not in 0..n_features - 1");
    features.offsets = offsets.data(), features.values = values.data();
  }
  if (shape.vector_dim > 0) {
    const auto vectors = as_it_is<float>("vectors", given_vectors);
    check(vectors.ndim() == 2 && static_cast<std::int64_t>(vectors.shape(0)) == rows &&
              vectors.shape(1) == static_cast<std::size_t>(shape.vector_dim),
          "vectors must be (n_items + 1, vector_dim)");
    features.vectors = vectors.data();
  }
  return features;
}

// Calls f while no other call works on the engine.
template <typename F>
auto alone(Engine& engine, F&& f) {
  Released released;
  const auto working = engine.lock();
  return f();
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
  nb::set_leak_warnings(false);  // a daemon thread at the end of the interpreter holds what it works on
  m.attr("lanes") = kLanes;
  m.attr("bf16") = kDepth > 1;
  m.def("available", &available, "Whether the operating system lets this process use the variant.");

  nb::class_<IdTable>(m, "IdTable")
      .def(nb::init<>())
      .def("__len__", &IdTable::size)
      .def_prop_ro("nbytes", &IdTable::nbytes)
      .def(
          "count",
          [](IdTable& table, nb::handle given_ids, nb::handle given_counts) {
            const auto ids = in<std::int64_t>("ids", given_ids);
            const auto counts = in<std::int64_t>("counts", given_counts);
            check(counts.size() == 0 || counts.size() == ids.size(), "one count for each id, or none");
            for (std::size_t i = 0; i < counts.size(); ++i) check(counts.data()[i] > 0, "counts must be positive");
            Released released;
            table.count(ids.data(), counts.size() ? counts.data() : nullptr, static_cast<std::int64_t>(ids.size()));
          },
          "ids"_a, "counts"_a, "Add counts of ids; no counts = 1 each.")
      .def(
          "number",
          [](IdTable& table, nb::handle given_ids) {
            const auto ids = in<std::int64_t>("ids", given_ids);
            check(ids.size() <= kMostItems, "there are too many ids");
            Released released;
            table.number(ids.data(), static_cast<std::int64_t>(ids.size()));
          },
          "ids"_a, "Give different ids their places among them.")
      .def(
          "places",
          [](const IdTable& table, nb::handle given_ids, nb::handle given_places) {
            const auto ids = in<std::int64_t>("ids", given_ids);
            const auto places = out<std::int32_t>("places", given_places);
            check(places.size() == ids.size(), "one place for each id");
            Released released;
            return table.places(ids.data(), static_cast<std::int64_t>(ids.size()), places.data());
          },
          "ids"_a, "places"_a, "Where numbered ids stand, -1 = nowhere; returns whether all stand somewhere.")
      .def(
          "take",
          [](IdTable& table, nb::handle given_ids, nb::handle given_numbers) {
            const auto ids = out<std::int64_t>("ids", given_ids);
            const auto numbers = out<std::int64_t>("numbers", given_numbers);
            check(numbers.size() == ids.size(), "one number for each id");
            Released released;
            table.take(ids.data(), numbers.data(), static_cast<std::int64_t>(ids.size()));
          },
          "ids"_a, "numbers"_a, "All ids in ascending order, and their numbers; the table is empty afterwards.");

  m.def(
      "order_of",
      [](nb::handle given_keys, nb::handle given_order, nb::handle given_counts) {
        const auto keys = in<std::int32_t>("keys", given_keys);
        const auto order = out<std::int64_t>("order", given_order);
        const auto counts = out<std::int64_t>("counts", given_counts);
        const auto n = static_cast<std::int64_t>(keys.size()), n_keys = static_cast<std::int64_t>(counts.size());
        check(order.size() == keys.size(), "one place for each key");
        Released released;
        bool fit = true;
        for (std::int64_t i = 0; i < n; ++i) fit = fit && 0 <= keys.data()[i] && keys.data()[i] < n_keys;
        check(fit, "keys must be in 0..len(counts) - 1");
        order_of(keys.data(), n, n_keys, order.data(), counts.data());
      },
      "keys"_a, "order"_a, "counts"_a, "The stable order of keys from 0, and how many there are of each.");

  m.def(
      "draw_unseen",
      [](nb::handle given_seeds, nb::handle given_step_rows, nb::handle given_counts, nb::handle given_items,
         nb::handle given_starts, nb::handle given_ends, int n_items, int rounds, nb::handle given_out) {
        const auto seeds = in<std::uint64_t>("seeds", given_seeds);
        const auto step_rows = in<std::int64_t>("step_rows", given_step_rows);
        const auto counts = in<std::int64_t>("counts", given_counts);
        const auto items = in<std::int32_t>("items", given_items);
        const auto starts = in<std::int64_t>("starts", given_starts), ends = in<std::int64_t>("ends", given_ends);
        const auto drawn = out<std::int32_t>("out", given_out);
        const std::size_t steps = step_rows.size(), rows = counts.size();
        check(seeds.ndim() == 2 && seeds.shape(0) == steps && seeds.shape(1) == 3, "seeds must be (steps, 3)");
        check(starts.size() == rows && ends.size() == rows, "one range of items for each row");
        check(n_items > 0, "n_items must be positive");
        std::int64_t room = static_cast<std::int64_t>(drawn.size()), row = 0;
        for (std::size_t i = 0; i < rows; ++i) {
          check(counts.data()[i] >= 0, "counts must not be negative");
          check(0 <= starts.data()[i] && starts.data()[i] <= ends.data()[i] &&
                    ends.data()[i] <= static_cast<std::int64_t>(items.size()),
                "ranges must lie within items");
          check(counts.data()[i] <= room, "out must have room for all counts");
          room -= counts.data()[i];
        }
        check(room == 0, "out must have room for all counts and no more");
        for (std::size_t i = 0; i < steps; ++i) {
          check(row <= step_rows.data()[i] && step_rows.data()[i] <= static_cast<std::int64_t>(rows),
                "step_rows must be ascending ends of rows");
          row = step_rows.data()[i];
        }
        check(row == static_cast<std::int64_t>(rows), "step_rows must end with the last row");
        Released released;
        UnseenDrawer drawer({items.data(), starts.data(), ends.data()}, n_items);
        std::int32_t* place = drawn.data();
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

  m.def(
      "whole_numbers",
      [](const nb::bytes& json) {
        std::string numbers;
        {
          Released released;
          numbers = whole_numbers({json.c_str(), json.size()});
        }
        return nb::bytes(numbers.data(), numbers.size());
      },
      "json"_a, "JSON in which 3.0 is 3: whole numbers below 2^53 lose their point and their exponent.");

  nb::class_<Engine>(m, "Engine")
      .def(
          "__init__",
          [](Engine* self, const std::string& block, int n_items, int embedding_dim, int n_blocks, int n_heads,
             int ffn_dim, int max_seq_len, float dropout, float norm_eps, bool relu, bool tied,
             const NamedShapes& weights, int threads, bool lazy_adam, bool orthogonal_steps, int n_features,
             int vector_dim, float cold_scale, nb::handle feature_offsets, nb::handle feature_values,
             nb::handle vectors) {
            ModelShape shape{block_kind(block), n_items,  embedding_dim, n_blocks, n_heads,    ffn_dim,    max_seq_len,
                             dropout,           norm_eps, relu,          tied,     n_features, vector_dim, cold_scale};
            check(n_items > 0 && embedding_dim > 0 && n_blocks >= 0 && ffn_dim > 0 && max_seq_len > 0 && threads > 0,
                  "sizes must be positive");
            check(static_cast<std::size_t>(n_items) < kMostItems && embedding_dim <= kMostDims &&
                      n_blocks <= kMostBlocks && ffn_dim <= kMostHidden && max_seq_len <= kMostPositions &&
                      threads <= kMostThreads && n_features >= 0 &&
                      static_cast<std::size_t>(n_features) <= kMostItems && vector_dim >= 0 &&
                      vector_dim <= kMostVectorDims,
                  "sizes are out of range");
            check(dropout >= 0 && dropout < 1, "dropout must be from 0 to below 1");
            check(cold_scale >= 0 && cold_scale <= 1e6f, "cold_scale must be from 0 to 1e6");
            check(n_heads > 0 && embedding_dim % n_heads == 0, "n_heads must divide embedding_dim");
            new (self) Engine(shape, weights, threads, table_steps(lazy_adam, orthogonal_steps),
                              item_features(shape, feature_offsets, feature_values, vectors));
          },
          nb::kw_only(), "block"_a, "n_items"_a, "embedding_dim"_a, "n_blocks"_a, "n_heads"_a, "ffn_dim"_a,
          "max_seq_len"_a, "dropout"_a, "norm_eps"_a, "relu"_a, "tied"_a, "weights"_a, "threads"_a, "lazy_adam"_a,
          "orthogonal_steps"_a = false, "n_features"_a = 0, "vector_dim"_a = 0, "cold_scale"_a = 0.0f,
          "feature_offsets"_a = nb::none(), "feature_values"_a = nb::none(), "vectors"_a = nb::none(),
          nb::keep_alive<1, 20>(), nb::keep_alive<1, 21>(), nb::keep_alive<1, 22>())
      .def_prop_ro("threads", &Engine::n_threads)
      .def_prop_rw(
          "step_count", [](Engine& engine) { return alone(engine, [&] { return engine.step_count(); }); },
          [](Engine& engine, double step) {  // so that no number is too large to be refused
            check(step >= 0 && step <= static_cast<double>(kMostSteps), "step_count must be in 0..2^53");
            alone(engine, [&] { engine.set_step_count(static_cast<std::int64_t>(step)); });
          })
      .def(
          "read",
          [](Engine& engine, const std::string& name, const std::string& kind, nb::handle given) {
            const auto values = out<float>("out", given);
            Released released;
            read_array(engine, name, kind, values.data(), values.size());
          },
          "name"_a, "kind"_a, "out"_a,
          "Copy a weight, its gradient, a moment of Adam, its average, or a table with features folded in.")
      .def(
          "write",
          [](Engine& engine, const std::string& name, const std::string& kind, nb::handle given) {
            const auto values = in<float>("values", given);
            Released released;
            write_array(engine, name, kind, values.data(), values.size());
          },
          "name"_a, "kind"_a, "values"_a,
          "Replace a weight, a moment of Adam or an average; row 0 of a table stays zero.")
      .def(
          "forward_backward",
          [](Engine& engine, nb::handle given_items, nb::handle given_offsets, nb::handle given_keys,
             std::uint64_t step_key, const std::string& loss, nb::handle given_targets, nb::handle given_negatives,
             nb::handle given_earlier, nb::handle given_earlier_offsets, float positive_weight,
             nb::handle given_corrections, float l2_embedding, float feature_dropout, nb::handle given_weights,
             nb::handle given_seen, double whole_weight) {
            const auto items = in<std::int32_t>("items", given_items);
            const auto offsets = in<std::int64_t>("offsets", given_offsets);
            const auto sequence_keys = in<std::uint64_t>("sequence_keys", given_keys);
            const auto targets = in<std::int32_t>("targets", given_targets);
            const auto negatives = in<std::int32_t>("negatives", given_negatives);
            const auto earlier = in<std::int32_t>("earlier", given_earlier);
            const auto earlier_offsets = in<std::int64_t>("earlier_offsets", given_earlier_offsets);
            const auto corrections = in<float>("corrections", given_corrections);
            const auto weights = in<float>("weights", given_weights);
            const auto seen = in<std::int32_t>("seen", given_seen);
            const RaggedView inputs = ragged(items, offsets);
            check(static_cast<std::int64_t>(sequence_keys.size()) == inputs.rows, "one key for each row");
            check(targets.size() == items.size(), "one target for each input");
            const bool shared = negatives.ndim() == 1;
            check(shared || (negatives.ndim() == 2 && negatives.shape(0) == items.shape(0)),
                  "negatives must be (inputs, n), or (n,) for all");
            const int n_negatives = axis("negatives", negatives, shared ? 0 : 1);
            const LossKind kind = loss_kind(loss);
            check(kind == LossKind::kCrossEntropy || n_negatives > 0, "this loss needs negatives");
            const bool corrected = kind == LossKind::kSampledSoftmax;
            check(!corrected || corrections.size() == static_cast<std::size_t>(engine.shape().n_items) + 1,
                  "one correction for each item, padding included");
            const bool masks = earlier_offsets.size() > 0;
            check(feature_dropout >= 0 && feature_dropout <= 1, "feature_dropout must be from 0 to 1");
            const RaggedView before = masks ? ragged(earlier, earlier_offsets) : RaggedView{};
            check(!masks || before.rows == inputs.rows, "one row of earlier items for each row");
            check(!weights.size() || weights.size() == items.size(), "one weight for each input");
            check(!seen.size() || seen.size() == items.size(), "one seen item or 0 for each input");
            check(whole_weight >= 0 && std::isfinite(whole_weight), "whole_weight must be finite, 0 for a whole batch");
            Released released;
            return engine.forward_backward(
                inputs, sequence_keys.data(), step_key,
                {kind, positive_weight, corrected ? corrections.data() : nullptr, 1.0f},
                {targets.data(), negatives.data(), n_negatives, shared, masks ? &before : nullptr,
                 seen.size() ? seen.data() : nullptr, weights.size() ? weights.data() : nullptr},
                l2_embedding, feature_dropout, whole_weight);
          },
          nb::kw_only(), "items"_a, "offsets"_a, "sequence_keys"_a, "step_key"_a, "loss"_a, "targets"_a, "negatives"_a,
          "earlier"_a, "earlier_offsets"_a, "positive_weight"_a, "corrections"_a, "l2_embedding"_a,
          "feature_dropout"_a = 0.0f, "weights"_a, "seen"_a, "whole_weight"_a = 0.0,
          "Gradients of the mean loss; returns its sum over positions.")
      .def("clear_gradients", &Engine::clear_gradients, nb::call_guard<Released>(),
           "Gradients of a batch without rows.")
      .def(
          "gradient",
          [](Engine& engine) {
            const auto working = engine.lock();
            engine.check_gradients();
            engine.prepare_training();
            return Floats1(engine.gradients(), {engine.layout().size()}, nb::find(&engine));
          },
          "All gradients but the tables', as they lie in memory; to be summed over processes in place.")
      .def(
          "table_gradients",
          [](Engine& engine) {
            const auto working = engine.lock();
            engine.check_gradients();
            std::vector<std::pair<Rows1, Floats2>> tables;
            const auto width = static_cast<std::size_t>(engine.shape().width());
            for (Table& table : engine.tables()) {
              RowGradient& g = table.gradient;
              tables.push_back({Rows1(g.rows.data(), {g.rows.size()}, nb::find(&engine)),
                                Floats2(g.values.data(), {g.rows.size(), width}, nb::find(&engine))});
            }
            return tables;
          },
          "The touched rows of each table and their gradients, as they lie in memory until the next step.")
      .def(
          "sum_gradients",
          [](Engine& engine, std::size_t table, const std::vector<std::pair<nb::handle, nb::handle>>& given) {
            check(table < engine.tables().size(), "there is no such table");
            std::vector<std::pair<In<std::int32_t>, In<float>>> arrays;  // copies live as long as the call
            std::vector<GradientRows> parts;
            for (const auto& [given_rows, given_values] : given) {
              const auto& [rows, values] =
                  arrays.emplace_back(in<std::int32_t>("rows", given_rows), in<float>("values", given_values));
              check(rows.ndim() == 1 && values.ndim() == 2 && values.shape(0) == rows.shape(0) &&
                        values.shape(1) == static_cast<std::size_t>(engine.shape().width()),
                    "values must be (rows, width)");
              parts.push_back({rows.data(), rows.size(), values.data()});
            }
            Released released;
            engine.sum_gradients(table, parts);
          },
          "table"_a, "parts"_a, "The gradient of a table becomes the sum of parts: pairs of rows and values.")
      .def(
          "optimizer_step",
          [](Engine& engine, float learning_rate, float beta1, float beta2, float weight_decay, float clip_norm) {
            Released released;
            engine.optimizer_step({learning_rate, beta1, beta2, weight_decay}, clip_norm);
          },
          nb::kw_only(), "learning_rate"_a, "beta1"_a, "beta2"_a, "weight_decay"_a, "clip_norm"_a)
      .def_prop_ro("has_average", [](Engine& engine) { return alone(engine, [&] { return engine.has_average(); }); })
      .def("update_average", &Engine::update_average, "decay"_a, nb::call_guard<Released>(),
           "Move the average of all weights towards them; the first call copies them.")
      .def("swap_average", &Engine::swap_average, nb::call_guard<Released>(),
           "Weights and their average change places.")
      .def(
          "encode",
          [](Engine& engine, nb::handle given_items, nb::handle given_offsets, nb::handle given_features) {
            const auto items = in<std::int32_t>("items", given_items);
            const auto offsets = in<std::int64_t>("offsets", given_offsets);
            const auto features = out<float>("features", given_features);
            const RaggedView histories = ragged(items, offsets);
            check(features.ndim() == 2 && static_cast<std::int64_t>(features.shape(0)) == histories.rows &&
                      features.shape(1) == static_cast<std::size_t>(engine.shape().dim),
                  "features must be (rows, embedding_dim)");
            Released released;
            engine.encode(histories, features.data());
          },
          "items"_a, "offsets"_a, "features"_a, "Features after the last item of each row.");

  nb::class_<ItemIndex>(m, "ItemIndex")
      .def(
          "__init__",
          [](ItemIndex* self, nb::handle given, int threads) {
            In<float> table;  // not a copy: it is read as long as the index lives
            if (!nb::try_cast(given, table, false))
              throw nb::type_error("the table must be an array of float32 in C order");
            check(table.ndim() == 2 && table.shape(0) > 1 && table.shape(1) > 0,
                  "the table must be (n_items + 1, dim)");
            check(table.shape(0) <= kMostItems && table.shape(1) <= 1u << 16 && threads > 0 && threads <= kMostThreads,
                  "sizes are out of range");
            new (self) ItemIndex(table.data(), static_cast<int>(table.shape(0)) - 1, static_cast<int>(table.shape(1)),
                                 threads);
          },
          "table"_a, "threads"_a, nb::keep_alive<1, 2>())
      .def(
          "rank",
          [](ItemIndex& index, nb::handle given_features, nb::handle given_targets, nb::handle given_hidden,
             nb::handle given_offsets, nb::handle given_above, nb::handle given_tied, nb::handle given_lists) {
            const auto features = in<float>("features", given_features);
            const auto targets = in<std::int32_t>("targets", given_targets);
            const auto hidden = in<std::int32_t>("hidden", given_hidden);
            const auto hidden_offsets = in<std::int64_t>("hidden_offsets", given_offsets);
            const auto n_above = out<std::int64_t>("n_above", given_above);
            const auto n_tied = out<std::int64_t>("n_tied", given_tied);
            const auto lists = out<std::int32_t>("lists", given_lists);
            const std::int64_t n = feature_rows(index, features);
            const auto rows = static_cast<std::size_t>(n);
            check(targets.size() == rows && n_above.size() == rows && n_tied.size() == rows, "one target for each row");
            check(lists.ndim() == 2 && lists.shape(0) == rows, "lists must be (rows, k)");
            const int k = axis("lists", lists, 1);
            const HiddenView gone = hidden_rows(hidden, hidden_offsets, n);
            Released released;
            return index.rank(features.data(), n, targets.data(), gone, k, n_above.data(), n_tied.data(), lists.data());
          },
          "features"_a, "targets"_a, "hidden"_a, "hidden_offsets"_a, "n_above"_a, "n_tied"_a, "lists"_a,
          "Count items above each target and tied with it, and list the best; False = a score is not finite.")
      .def(
          "rank_among",
          [](ItemIndex& index, nb::handle given_features, nb::handle given_candidates, nb::handle given_above,
             nb::handle given_tied) {
            const auto features = in<float>("features", given_features);
            const auto candidates = in<std::int32_t>("candidates", given_candidates);
            const auto n_above = out<std::int64_t>("n_above", given_above);
            const auto n_tied = out<std::int64_t>("n_tied", given_tied);
            const std::int64_t n = feature_rows(index, features);
            const auto rows = static_cast<std::size_t>(n);
            check(candidates.ndim() == 2 && candidates.shape(0) == rows && candidates.shape(1) > 0 &&
                      n_above.size() == rows && n_tied.size() == rows,
                  "candidates must be (rows, 1 or more)");
            const int count = axis("candidates", candidates, 1);
            Released released;
            return index.rank_among(features.data(), n, candidates.data(), count, n_above.data(), n_tied.data());
          },
          "features"_a, "candidates"_a, "n_above"_a, "n_tied"_a,
          "Count candidates above the first of each row and tied with it; False = a score is not finite.")
      .def(
          "top_k",
          [](ItemIndex& index, nb::handle given_features, nb::handle given_hidden, nb::handle given_offsets,
             nb::handle given_allowed, nb::handle given_indices, nb::handle given_scores) {
            const auto features = in<float>("features", given_features);
            const auto hidden = in<std::int32_t>("hidden", given_hidden);
            const auto hidden_offsets = in<std::int64_t>("hidden_offsets", given_offsets);
            const auto allowed = in<bool>("allowed", given_allowed);
            const auto indices = out<std::int32_t>("indices", given_indices);
            const auto scores = out<float>("scores", given_scores);
            const std::int64_t n = feature_rows(index, features);
            const auto rows = static_cast<std::size_t>(n);
            check(indices.ndim() == 2 && indices.shape(0) == rows && indices.size() == scores.size() &&
                      indices.shape(1) > 0,
                  "indices and scores must be (rows, k)");
            check(allowed.size() == 0 || allowed.size() == static_cast<std::size_t>(index.n_items()) + 1,
                  "allowed must be (n_items + 1)");
            const int k = axis("indices", indices, 1);
            const HiddenView gone = hidden_rows(hidden, hidden_offsets, n);
            Released released;
            return index.top_k(features.data(), n, k, gone, allowed.size() ? allowed.data() : nullptr, indices.data(),
                               scores.data());
          },
          "features"_a, "hidden"_a, "hidden_offsets"_a, "allowed"_a, "indices"_a, "scores"_a,
          "The best k items of each row; False = a score is not finite.");

  nb::class_<LevelIndex>(m, "LevelIndex")
      .def(
          "__init__",
          [](LevelIndex* self, nb::handle given) {
            const auto levels = in<float>("levels", given);
            check(levels.ndim() == 1 && levels.shape(0) > 1 && levels.shape(0) <= kMostItems,
                  "levels must be (n_items + 1)");
            new (self) LevelIndex(levels.data(), static_cast<int>(levels.shape(0)) - 1);
          },
          "levels"_a)
      .def(
          "rank",
          [](const LevelIndex& index, nb::handle given_items, nb::handle given_offsets, nb::handle given_scores,
             nb::handle given_list_of, nb::handle given_targets, nb::handle given_hidden,
             nb::handle given_hidden_offsets, nb::handle given_above, nb::handle given_tied, nb::handle given_lists) {
            const auto items = in<std::int32_t>("items", given_items);
            const auto offsets = in<std::int64_t>("offsets", given_offsets);
            const auto scores = in<float>("scores", given_scores);
            const auto list_of = in<std::int64_t>("list_of", given_list_of);
            const auto targets = in<std::int32_t>("targets", given_targets);
            const auto hidden = in<std::int32_t>("hidden", given_hidden);
            const auto hidden_offsets = in<std::int64_t>("hidden_offsets", given_hidden_offsets);
            const auto n_above = out<std::int64_t>("n_above", given_above);
            const auto n_tied = out<std::int64_t>("n_tied", given_tied);
            const auto lists = out<std::int32_t>("lists", given_lists);
            const RaggedView exceptions = ragged(items, offsets);
            const std::size_t rows = list_of.size();
            check(std::all_of(list_of.data(), list_of.data() + rows,
                              [&](std::int64_t list) { return list >= 0 && list < exceptions.rows; }),
                  "list_of must name lists of exceptions");
            check(scores.size() == items.size(), "one score for each exception");
            check(targets.size() == rows && n_above.size() == rows && n_tied.size() == rows, "one target for each row");
            check(lists.ndim() == 2 && lists.shape(0) == rows, "lists must be (rows, k)");
            const int k = axis("lists", lists, 1);
            const auto n = static_cast<std::int64_t>(rows);
            const HiddenView gone = hidden_rows(hidden, hidden_offsets, n);
            Released released;
            return index.rank(n, {items.data(), scores.data(), offsets.data(), list_of.data()}, exceptions.rows,
                              targets.data(), gone, k, n_above.data(), n_tied.data(), lists.data());
          },
          "items"_a, "offsets"_a, "scores"_a, "list_of"_a, "targets"_a, "hidden"_a, "hidden_offsets"_a, "n_above"_a,
          "n_tied"_a, "lists"_a,
          "Count items above each target and tied with it, and list the best; False = a score is not finite.");
}
