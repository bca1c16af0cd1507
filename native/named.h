// Weights, their gradients, Adam's moments and averages as arrays of their names and shapes outside: copied out and in
// while no other call works on the engine.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "engine.h"

namespace sasrec {

// Where a named array lies: flat parameters by their layout, tables row by row.
struct Place {
  const Parameter* parameter;  // null for a table
  Table* table;
};

inline Place find(Engine& engine, const std::string& name) {
  if (Table* table = engine.find_table(name)) return {nullptr, table};
  for (const Parameter& parameter : engine.layout().parameters())
    if (parameter.name == name) return {&parameter, nullptr};
  throw std::invalid_argument("there is no weight named '" + name + "'");
}

inline float* flat_array(Engine& engine, const std::string& kind) {
  if (kind == "weight") return engine.weights();
  if (kind == "exp_avg") return engine.first_moment();
  if (kind == "exp_avg_sq") return engine.second_moment();
  if (kind == "average") return engine.average();
  if (kind == "gradient") return engine.gradients();
  throw std::invalid_argument("kind '" + kind + "' is not known");
}

inline float* table_array(Table& table, const std::string& kind) {
  if (kind == "weight") return table.weight.data();
  if (kind == "exp_avg") return table.first_moment.data();
  if (kind == "exp_avg_sq") return table.second_moment.data();
  if (kind == "average") return table.average.data();
  if (kind == "folded") return table.folded.size() ? table.folded.data() : table.weight.data();
  throw std::invalid_argument("kind '" + kind + "' is not known");
}

// Calls f(outside offset, inside pointer, count) for runs of values of a named array.
template <typename F>
void for_runs(Engine& engine, const std::string& name, const std::string& kind, F&& f) {
  if (kind != "weight" && kind != "folded") engine.prepare_training();
  if (kind != "gradient") engine.catch_up_all();
  if (kind == "folded") engine.fold_all();
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

inline void check_size(Engine& engine, const std::string& name, std::size_t size) {
  const Parameter* parameter = find(engine, name).parameter;
  const std::size_t rows = parameter ? parameter->rows.logical() : engine.shape().n_items + 1;
  const std::size_t columns = parameter ? parameter->columns.logical() : engine.shape().dim;
  if (size != rows * columns) throw std::invalid_argument("the array for " + name + " has the wrong size");
}

// Copies a weight, its gradient, a moment of Adam, its average, or a table with features folded in, into an array of
// `size` values.
inline void read_array(Engine& engine, const std::string& name, const std::string& kind, float* out, std::size_t size) {
  const auto working = engine.lock();
  check_size(engine, name, size);
  if (kind == "gradient") engine.check_gradients();
  if (kind == "average") engine.check_average();
  std::fill_n(out, size, 0.0f);
  for_runs(engine, name, kind,
           [&](std::size_t outside, const float* inside, int n) { std::copy_n(inside, n, out + outside); });
}

// Replaces a weight, a moment of Adam or an average; row 0 of a table stays zero.
inline void write_array(Engine& engine, const std::string& name, const std::string& kind, const float* values,
                        std::size_t size) {
  const auto working = engine.lock();
  check_size(engine, name, size);
  if (kind == "gradient") throw std::invalid_argument("gradients cannot be written");
  if (kind == "folded") throw std::invalid_argument("folded tables cannot be written");
  if (kind == "average") engine.reserve_average();
  for_runs(engine, name, kind,
           [&](std::size_t outside, float* inside, int n) { std::copy_n(values + outside, n, inside); });
  engine.weights_changed();
}

}  // namespace sasrec
