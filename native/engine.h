// The engine: weights, optimizer state and threads; one training step, or features of histories.
//
// A step goes: plan (cut the batch into chunks of about kChunkTokens tokens, whole sequences, longest first, and give
// each to the thread with the least to do) -> every thread takes its chunks one after another all the way from the
// embedding to the loss and back, while they are in its core's L2 -> rows of the item table get their gradients, summed
// item by item in the order of the batch, so that they do not depend on the number of threads (but for candidates that
// all positions share, which each thread has summed for its chunks) -> the threads' gradients of everything else are
// summed in a fixed order. The optimizer is a call of its own: in between, processes that share a batch sum their
// gradients. Where items have features, the rows that a step reads are folded before it, and their gradients go on to
// the features after it (features.h).
//
// Calls from several threads at once wait for each other: they share one pool and one set of workspaces. That holds for
// calls, not for what is told between two of them: a training step is two calls.
//
// Nothing depends on timing: the same inputs, build and number of threads give the same bits.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "adam.h"
#include "block.h"
#include "candidates.h"
#include "cold_rows.h"
#include "features.h"
#include "heads.h"
#include "items.h"
#include "orthogonal.h"
#include "row_sums.h"
#include "threads.h"

namespace sasrec {

inline constexpr int kChunkTokens = 128;  // a chunk's activations of two blocks take about half of a 2 MiB L2
inline constexpr int kSharedTokens = 16;  // short sequences share a segment of up to this many tokens
inline constexpr int kWaitFrom = 8;  // rows of a table wait for their steps where one in so many or fewer is touched
inline constexpr int kAhead = 12;    // rows that are asked for before they are needed
inline constexpr std::int64_t kMostScores = 1 << 30;               // of a chunk's negatives
inline constexpr std::int64_t kMostSteps = std::int64_t{1} << 53;  // what a double counts

// The gradient of a table: only the rows that a batch touched, summed.
struct RowGradient {
  std::vector<std::int32_t> rows;  // table rows, in order of first use
  std::vector<std::int32_t> slot;  // of each table row: where in `rows`, or -1
  Array<float> values;             // (rows, width)

  void clear() {
    for (const std::int32_t row : rows) slot[row] = -1;
    rows.clear();
  }
};

struct Table {
  std::string name;
  // (n_items + 1, width); row 0 is padding and stays zero
  Array<float> weight, first_moment, second_moment, average;
  Array<float> folded;  // with features; empty where there are none
  RowGradient gradient;
  struct Stand {
    // The steps after which they stand. Moments are no further than the weight, and an average that waits for its
    // update is a step behind it.
    std::int64_t weight, moments, average;
  };
  std::vector<Stand> stands;  // of each row, which may be behind (see adam.h)
  bool waits = false;         // whether the last step left rows behind

  // What a model reads of it.
  const float* rows() const { return folded.size() ? folded.data() : weight.data(); }
};

// A row of a table: values and their two moments.
struct MovingRow {
  float *p, *m, *v;

  MovingRow(Table& table, std::size_t row, int width)
      : p(&table.weight[row * width]), m(&table.first_moment[row * width]), v(&table.second_moment[row * width]) {}
};

// Items one after another.
struct ItemsView {
  const std::int32_t* items;
  std::int64_t count;
};

// Gradients that are a coefficient times a row of `source`: what tables' rows are summed from.
struct Contributions {
  const std::int32_t* items;
  const float* coefficients;  // null = `constant` for all
  float constant;
  std::int64_t count;
  const float* source;             // (count / repeat, width)
  std::int64_t repeat;             // contributions in a row that share a row of the source
  const float* weights = nullptr;  // (count / repeat,) those of weight 0 contribute nothing; null = all do

  bool counts(std::int64_t i) const { return !weights || weights[i / repeat] > 0; }
};

// Rows of a gradient as they come from outside, each row once.
struct GradientRows {
  const std::int32_t* rows;
  std::size_t count;
  const float* values;  // (count, width)
};

enum class TableSteps {
  kDense,
  kLazy,        // rows that a step does not touch catch up in closed form (see MissedSteps)
  kOrthogonal,  // equally long in all directions (see OrthogonalSteps); no row waits
};

class Engine {
 public:
  // weights: their names and shapes outside (see Layout). steps: how rows of the tables move. features: where the shape
  // has any.
  Engine(const ModelShape& shape, const NamedShapes& weights, int n_threads, TableSteps steps,
         const ItemFeatures& features = {})
      : shape_(shape), lazy_(steps == TableSteps::kLazy), orthogonal_(steps == TableSteps::kOrthogonal),
        orthogonal_steps_(shape.dim, shape.width()), layout_(shape_, weights), features_(shape_, layout_, features),
        cold_rows_(shape_), pool_(n_threads), weights_(layout_.size()), first_moment_(layout_.size()),
        second_moment_(layout_.size()), panels_(layout_.panels_size()), mask_(shape.width()) {
    std::fill_n(mask_.data(), shape.dim, 1.0f);
    for (const std::string& name : layout_.tables) {
      Table& table = tables_.emplace_back();
      table.name = name;
      const std::size_t size = static_cast<std::size_t>(shape.n_items + 1) * shape.width();
      table.weight.resize(size);
      if (features_) table.folded.resize(size);
      table.gradient.slot.assign(shape.n_items + 1, -1);
      table.stands.assign(shape.n_items + 1, {0, 0, 0});
    }
    for (int t = 0; t < pool_.size(); ++t) threads_.push_back(std::make_unique<Thread>());
  }

  const ModelShape& shape() const { return shape_; }
  const Layout& layout() const { return layout_; }
  int n_threads() const { return pool_.size(); }

  // What to hold while weights, gradients or optimizer state are looked at or changed from outside: no other call
  // works meanwhile. Calls that work on all of them take it by themselves.
  [[nodiscard]] std::unique_lock<std::mutex> lock() { return std::unique_lock(working_); }

  std::int64_t step_count() const { return step_count_; }
  void set_step_count(std::int64_t step) {
    if (step < 0 || step > kMostSteps) throw std::invalid_argument("step_count must be in 0..2^53");
    step_count_ = step;
    past_.start_after(step);
    missed_.start_after(step);
    for (Table& table : tables_) {
      table.stands.assign(table.stands.size(), {step, step, step});
      table.waits = false;
    }
  }

  Table& item_table() { return tables_.front(); }
  Table& output_table() { return tables_.back(); }
  // The table of this name; null where it is that of a flat parameter.
  Table* find_table(const std::string& name) {
    const auto found = std::find_if(tables_.begin(), tables_.end(), [&](const Table& t) { return t.name == name; });
    return found == tables_.end() ? nullptr : &*found;
  }

  // The arrays of the flat parameters; the optimizer's are there from the first training step on.
  float* weights() { return weights_.data(); }
  float* first_moment() { return first_moment_.data(); }
  float* second_moment() { return second_moment_.data(); }
  float* average() { return average_.data(); }
  float* gradients() { return threads_.front()->gradients.data(); }
  void weights_changed() { panels_valid_ = folded_ = false; }
  void check_gradients() const {
    if (!gradients_are_whole_)
      throw std::runtime_error("the last forward_backward failed, so there are no gradients; call it again");
  }
  // Gradients of nothing: what a process has of a batch all rows of which are others'.
  void clear_gradients() {
    std::lock_guard working(working_);
    prepare_training();
    std::fill_n(gradients(), layout_.size(), 0.0f);
    for (Table& table : tables_) table.gradient.clear();
    gradients_are_whole_ = true;
  }
  // The gradient of a table becomes the sum of parts, added up in their order; they do not lie in the gradient itself.
  void sum_gradients(std::size_t table, const std::vector<GradientRows>& parts) {
    std::lock_guard working(working_);
    check_gradients();
    for (const GradientRows& part : parts)
      check_items(part.rows, static_cast<std::int64_t>(part.count), shape_.n_items);
    RowGradient& gradient = tables_[table].gradient;
    const std::size_t width = shape_.width();
    gradient.clear();
    std::vector<std::size_t> known{0};  // rows that there are before each part, which come first
    for (const GradientRows& part : parts) {
      for (std::size_t i = 0; i < part.count; ++i) {
        if (gradient.slot[part.rows[i]] >= 0) continue;
        gradient.slot[part.rows[i]] = static_cast<std::int32_t>(gradient.rows.size());
        gradient.rows.push_back(part.rows[i]);
      }
      known.push_back(gradient.rows.size());
    }
    gradient.values.reserve(gradient.rows.size() * width);
    for (std::size_t p = 0; p < parts.size(); ++p)
      pool_.run_ranges(parts[p].count, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
          const std::size_t slot = gradient.slot[parts[p].rows[i]];
          float* sum = &gradient.values[slot * width];
          const float* row = parts[p].values + i * width;
          if (slot >= known[p]) std::fill_n(sum, width, 0.0f);
          for (std::size_t c = 0; c < width; c += kLanes) store(sum + c, load(sum + c) + load(row + c));
        }
      });
  }
  std::vector<Table>& tables() { return tables_; }
  void prepare_training() {
    for (Table& table : tables_) {
      table.first_moment.reserve(table.weight.size());
      table.second_moment.reserve(table.weight.size());
    }
    if (orthogonal_) {
      orthogonal_steps_.reserve();
      for (auto& thread : threads_) thread->moves.reserve(static_cast<std::size_t>(kStepRows) * shape_.width());
    }
    for (auto& thread : threads_)
      thread->gradients.reserve(thread == threads_.front() ? layout_.size() : layout_.network_size());
  }

  // Gradients of the batch's mean loss per position, weighted; returns the weighted sum of the loss over positions.
  // sequence_keys (rows,) and step_key decide dropout; feature_dropout is how often items' own embeddings are left out.
  // whole_weight: the sum of weights of the batch that this is a share of, whose mean loss it is then; 0 = it is whole.
  double forward_backward(RaggedView inputs, const std::uint64_t* sequence_keys, std::uint64_t step_key, Loss loss,
                          const Wanted& wanted, float l2_embedding, float feature_dropout = 0,
                          double whole_weight = 0) {
    std::lock_guard working(working_);
    const std::int64_t n = inputs.size();
    check_batch(inputs, wanted);
    const double own_weight = total_weight(wanted, n);
    loss.scale = 1.0f / static_cast<float>(whole_weight > 0 ? whole_weight : own_weight);
    check_items(inputs.values, n, shape_.n_items);
    check_items(wanted.targets, n, shape_.n_items);
    check_items(wanted.negatives, wanted.shared ? wanted.n_negatives : n * wanted.n_negatives, shape_.n_items);
    if (wanted.earlier) check_items(wanted.earlier->values, wanted.earlier->size(), shape_.n_items);
    check_seen(wanted, n);
    prepare_training();
    gradients_are_whole_ = false;
    if (rows_are_behind()) catch_up_used(inputs, loss, wanted, l2_embedding);
    if (features_) fold_used(inputs, loss, wanted, {step_key, feature_dropout});
    pack_weights();
    plan(inputs, chunk_tokens(inputs.size()));
    const bool common = prepare_candidates(loss, wanted);
    reserve_step(n, common ? 0 : wanted.n_negatives);
    const Dropout dropout(shape_.dropout);
    pool_.run([&](int t) {
      Tiles tiles;
      Thread& thread = *threads_[t];
      std::fill_n(thread.gradients.data(), layout_.network_size(), 0.0f);
      thread.loss = 0;
      if (common) clear_candidates(thread);
      Network network = network_of(thread);
      for (const Rows rows : thread.chunks) {
        const Chunk& chunk = fill_chunk(thread, rows, inputs, sequence_keys);
        network.forward(chunk, item_table().rows(), dropout, step_key, token_features_.data());
        thread.loss += head(chunk, loss, wanted, common, thread);
        network.backward(thread.gradients.data(), embedding_gradients_.data());
      }
    });
    sum_threads();
    sum_tables(inputs, wanted, common, l2_embedding);
    if (features_) push_to_features(l2_embedding);
    double total = 0;
    for (const auto& thread : threads_) total += thread->loss;
    gradients_are_whole_ = true;
    return total;
  }

  // One step of Adam with the gradients of the last forward_backward; clip_norm bounds their norm (0 = no bound).
  void optimizer_step(const Adam& adam, float clip_norm) {
    std::lock_guard working(working_);
    check_gradients();
    prepare_training();
    const float scale = clip_norm > 0 ? clip_scale(clip_norm) : 1.0f;
    const AdamStep step(adam, step_count_ + 1);
    if (adam.weight_decay > 0) shrink_matrices(1 - adam.learning_rate * adam.weight_decay);
    const int width = shape_.width();
    bool any_waits = false;
    for (Table& table : tables_) any_waits |= table.waits = rows_wait(table);
    pool_.run([&](int t) {
      const TinyIsZero tiny_is_zero;
      const auto [begin, end] = vector_range(layout_.size(), t);
      const float* gradient = gradients();
      for (std::size_t i = begin; i < end; i += kLanes)
        step.apply(&weights_[i], &first_moment_[i], &second_moment_[i], load(gradient + i) * scale);
      if (orthogonal_) return;
      for (Table& table : tables_) {
        const RowGradient& g = table.gradient;
        const auto move = [&](std::size_t row, std::int32_t slot) {
          catch_up(table, row);
          const Decay decay = missed_decay(table, row);
          const float* values = slot < 0 ? nullptr : &g.values[static_cast<std::size_t>(slot) * width];
          const auto [p, m, v] = MovingRow(table, row, width);
          for (int c = 0; c < width; c += kLanes)
            step.apply(p + c, m + c, v + c, values ? load(values + c) * scale : Floats{}, decay);
          table.stands[row] = {step_count_ + 1, step_count_ + 1, step_count_};
        };
        if (table.waits) {
          const auto [first, last] = range(g.rows.size(), t);
          for (std::size_t i = first; i < last; ++i) {
            if (i + kAhead < last) prefetch(table, g.rows[i + kAhead], true);
            move(g.rows[i], static_cast<std::int32_t>(i));
          }
        } else {
          const auto [first, last] = range(shape_.n_items, t);
          for (std::size_t row = first + 1; row <= last; ++row) move(row, g.slot[row]);
        }
      }
    });
    if (orthogonal_)
      for (Table& table : tables_) take_orthogonal_step(table, adam, scale);
    ++step_count_;
    weights_changed();
    if (lazy_) return missed_.record(adam, step_count_);
    past_.record(step);
    if (past_.full()) catch_up_all();
    if (past_.full() || !any_waits) past_.start_after(step_count_);
  }

  // The moving average of all weights: begins as a copy of them, later keeps `decay` of itself. Rows that wait for
  // their steps wait for it, too.
  bool has_average() const { return average_.size() > 0; }
  void update_average(float decay) {
    std::lock_guard working(working_);
    const float rest = has_average() ? 1 - decay : 1.0f;
    const bool may_wait = !lazy_ && has_average() && !past_.is_averaged();
    if (!may_wait) catch_up_all();
    reserve_average();
    const int width = shape_.width();
    pool_.run([&](int t) {
      const TinyIsZero tiny_is_zero;
      const auto [begin, end] = vector_range(layout_.size(), t);
      for (std::size_t i = begin; i < end; i += kLanes)
        store(&average_[i], averaged(load(&average_[i]), load(&weights_[i]), rest));
      for (Table& table : tables_) {
        if (may_wait && table.waits) continue;
        const auto [first, last] = range(shape_.n_items, t);
        for (std::size_t row = first + 1; row <= last; ++row) {
          const float* weight = &table.weight[row * width];
          float* average = &table.average[row * width];
          for (int c = 0; c < width; c += kLanes)
            store(average + c, averaged(load(average + c), load(weight + c), rest));
          table.stands[row].average = step_count_;
        }
      }
    });
    const bool any_waits = std::any_of(tables_.begin(), tables_.end(), [](const Table& table) { return table.waits; });
    if (may_wait && any_waits) past_.record_average(rest);
  }
  // Room for an average; zeros where there was none.
  void reserve_average() {
    for (Table& table : tables_) table.average.reserve(table.weight.size());
    average_.reserve(weights_.size());  // the last: it says that there is an average
  }
  void check_average() const {
    if (!has_average()) throw std::invalid_argument("there is no average of the weights; update_average makes one");
  }
  // Weights and average change places.
  void swap_average() {
    std::lock_guard working(working_);
    check_average();
    catch_up_all();
    std::swap(weights_, average_);
    for (Table& table : tables_) std::swap(table.weight, table.average);
    weights_changed();
  }

  // Folds all rows of the tables for answers, which can be read then; every item has its own embedding.
  void fold_all() {
    if (!features_ || folded_) return;
    left_out_ = {};
    for (Table& table : tables_) {
      fold(table, every_item());
      cold_rows_.place(table.weight.data(), table.folded.data(), pool_);
    }
    folded_ = true;
  }

  // Brings every row of the tables up to the last step; weights and moments can be read then.
  void catch_up_all() {
    if (!rows_are_behind()) return;
    pool_.run([&](int t) {
      const TinyIsZero tiny_is_zero;
      for (Table& table : tables_) {
        const auto [first, last] = range(shape_.n_items, t);
        for (std::size_t row = first + 1; row <= last; ++row) {
          catch_up(table, row);
          catch_up_moments(table, row);
        }
      }
    });
  }

  // Features (rows, dim) after the last item of each history; only the newest max_seq_len items are read.
  void encode(RaggedView histories, float* features) {
    std::lock_guard working(working_);
    check_items(histories.values + histories.offsets[0], histories.size() - histories.offsets[0], shape_.n_items);
    for (std::int64_t row = 0; row < histories.rows; ++row) check_not_empty(histories, row);
    catch_up_all();
    fold_all();
    pack_weights();
    plan(histories, kChunkTokens);
    const int width = shape_.width();
    const auto work = [&](int t) {
      Tiles tiles;
      Thread& thread = *threads_[t];
      Network network = network_of(thread);
      for (const Rows rows : thread.chunks) {
        const Chunk& chunk = fill_chunk(thread, rows, histories, nullptr);
        network.forward_last(chunk, item_table().rows());
        for (std::size_t s = 0; s < chunk.sequences.size(); ++s)
          std::memcpy(features + chunk.rows[s] * shape_.dim, thread.workspace->features + s * width,
                      sizeof(float) * shape_.dim);
      }
    };
    if (single_chunk_) {
      work(0);  // waking others would cost more than the work
    } else {
      pool_.run(work);
    }
  }

 private:
  // Which rows of the batch make a chunk: order_[begin] to order_[end].
  struct Rows {
    std::size_t begin, end;
  };

  struct Thread {
    std::unique_ptr<Workspace> workspace;
    std::vector<Rows> chunks;
    Chunk chunk;  // the one it works on
    Array<float> gradients;
    HeadScratch head;
    Array<Operand> pack_scratch;
    Array<float> moves;  // (kStepRows, width) of an orthogonal step
    CandidateScratch candidates;
    double loss = 0;
    double planned = 0;  // cost of its chunks
  };

  bool rows_are_behind() const { return lazy_ ? step_count_ > missed_.base() : !past_.empty() || past_.is_averaged(); }

  bool is_behind(const Table::Stand& stand) const {
    return stand.weight < step_count_ || (stand.average < step_count_ && past_.is_averaged());
  }

  // The row's weight and average. Lazy Adam's moments are left as they are: they are written once a step, when the row
  // moves; its average is updated for all rows at once.
  void catch_up(Table& table, std::size_t row) {
    Table::Stand& stand = table.stands[row];
    if (!is_behind(stand)) return;
    const int width = shape_.width();
    const auto [p, m, v] = MovingRow(table, row, width);
    if (lazy_) {
      const float factor = missed_.factor(stand.weight);
      const Decay decay = missed_.decay(stand.moments, stand.weight);
      for (int c = 0; c < width; c += kLanes) missed_.move(factor, decay, p + c, m + c, v + c);
      stand.weight = step_count_;
    } else {
      float* average = has_average() ? &table.average[row * width] : nullptr;
      past_.take(stand.weight, stand.average < stand.weight, width, p, m, v, average);
      stand = {step_count_, step_count_, step_count_ - !past_.is_averaged()};
    }
  }

  // What the row's moments have yet to be multiplied with.
  Decay missed_decay(const Table& table, std::size_t row) const {
    return lazy_ ? missed_.decay(table.stands[row].moments, step_count_) : Decay{};
  }

  void catch_up_moments(Table& table, std::size_t row) {
    Table::Stand& stand = table.stands[row];
    if (stand.moments == step_count_) return;
    const int width = shape_.width();
    const auto [p, m, v] = MovingRow(table, row, width);
    const Decay decay = missed_decay(table, row);
    for (int c = 0; c < width; c += kLanes) {
      store(m + c, load(m + c) * decay.mean);
      store(v + c, load(v + c) * decay.square);
    }
    stand.moments = step_count_;
  }

  // Adam's step of a table, made equally long in all directions. Its learning rate comes last: one of 0 moves nothing.
  void take_orthogonal_step(Table& table, const Adam& adam, float scale) {
    const AdamStep step({1.0f, adam.beta1, adam.beta2}, step_count_ + 1);
    const int width = shape_.width();
    orthogonal_steps_.start();
    pool_.run([&](int t) {
      for (int slice = t; slice < kSlices; slice += pool_.size())
        for_step_rows(
            part_of(shape_.n_items, slice, kSlices), part_of(shape_.n_items, slice + 1, kSlices), t,
            [&](std::size_t row, float* moves) {
              const auto [p, m, v] = MovingRow(table, row, width);
              const std::int32_t slot = table.gradient.slot[row];
              const float* g = slot < 0 ? nullptr : &table.gradient.values[static_cast<std::size_t>(slot) * width];
              for (int c = 0; c < width; c += kLanes)
                store(moves + c, step.apply_to_moments(m + c, v + c, g ? load(g + c) * scale : Floats{}));
            },
            [&](std::size_t, int, const float* moves) { orthogonal_steps_.add(slice, moves); });
    });
    orthogonal_steps_.finish(adam.learning_rate);
    pool_.run([&](int t) {
      const auto [first, last] = range(shape_.n_items, t);
      for_step_rows(
          first, last, t,
          [&](std::size_t row, float* moves) {
            const auto [p, m, v] = MovingRow(table, row, width);
            for (int c = 0; c < width; c += kLanes) store(moves + c, step.move(load(m + c), load(v + c)));
            table.stands[row] = {step_count_ + 1, step_count_ + 1, step_count_};
          },
          [&](std::size_t row, int n, const float* moves) {
            orthogonal_steps_.turn(moves, n, &table.weight[row * width]);
          });
    });
  }

  // Calls make(row, moves) for the rows of items first + 1 .. last, and take(row, n, moves) for each kStepRows of them.
  template <typename Make, typename Take>
  void for_step_rows(std::size_t first, std::size_t last, int t, Make&& make, Take&& take) {
    const TinyIsZero tiny_is_zero;
    const int width = shape_.width();
    Array<float>& moves = threads_[t]->moves;
    for (std::size_t row = first + 1; row <= last; row += kStepRows) {
      const int n = static_cast<int>(std::min<std::size_t>(kStepRows, last + 1 - row));
      for (int r = 0; r < n; ++r) make(row + r, &moves[r * width]);
      std::fill(&moves[n * width], moves.data() + kStepRows * width, 0.0f);
      take(row, n, moves.data());
    }
  }

  // Asks for a row that is about to move; where it does not, unless `always`, nothing is asked for.
  void prefetch(Table& table, std::size_t row, bool always) const {
    if (!always && !is_behind(table.stands[row])) return;
    const auto [p, m, v] = MovingRow(table, row, shape_.width());
    for (int c = 0; c < shape_.width(); c += 16) {
      __builtin_prefetch(p + c);
      __builtin_prefetch(m + c);
      __builtin_prefetch(v + c);
      if (has_average() && !lazy_) __builtin_prefetch(&table.average[row * shape_.width() + c]);
    }
  }

  // Whether rows that the gradient does not touch wait: not where so many are touched that memory streams faster than
  // rows are found in it.
  bool rows_wait(const Table& table) const {
    if (orthogonal_) return false;
    return lazy_ || table.gradient.rows.size() * kWaitFrom < static_cast<std::size_t>(shape_.n_items);
  }

  void shrink_matrices(float factor) {
    pool_.run([&](int t) {
      for (int i = t; i < layout_.n_matrices(); i += pool_.size()) layout_.shrink(i, weights_.data(), factor);
    });
  }

  // Rows that the batch reads. A hash says which thread a row is for. Where a row stands is asked for before the row
  // is.
  void catch_up_used(RaggedView inputs, const Loss& loss, const Wanted& wanted, float l2_embedding) {
    if (loss.kind == LossKind::kCrossEntropy || l2_embedding > 0) return catch_up_all();
    const std::int64_t n = inputs.size(), n_negatives = (wanted.shared ? 1 : n) * wanted.n_negatives;
    pool_.run([&](int t) {
      const TinyIsZero tiny_is_zero;
      const auto is_mine = [&](std::int32_t item) {
        const std::uint32_t hash = static_cast<std::uint32_t>(item) * 0x9e3779b1u;
        return static_cast<int>(static_cast<std::uint64_t>(hash) * static_cast<std::uint32_t>(pool_.size()) >> 32) == t;
      };
      const auto visit = [&](Table& table, const Contributions& read) {
        const auto [items, count] = std::pair(read.items, read.count);
        for (std::int64_t i = 0; i < count; ++i) {
          const std::int64_t next = i + kAhead, after = next + kAhead;
          if (after < count && is_mine(items[after])) __builtin_prefetch(&table.stands[items[after]]);
          if (next < count && is_mine(items[next])) prefetch(table, items[next], false);
          if (is_mine(items[i]) && read.counts(i)) catch_up(table, items[i]);
        }
      };
      const float* weights = wanted.weights;
      visit(item_table(), {inputs.values, nullptr, 0, n, nullptr, 1});
      visit(output_table(), {wanted.targets, nullptr, 0, n, nullptr, 1, weights});
      visit(output_table(), {wanted.negatives, nullptr, 0, n_negatives, nullptr, std::max(1, wanted.n_negatives),
                             wanted.shared ? nullptr : weights});
    });
  }

  // Folds the rows that the batch reads, of which a loss over all items reads all.
  void fold_used(RaggedView inputs, const Loss& loss, const Wanted& wanted, const IdDropout& left_out) {
    left_out_ = left_out, folded_ = false;
    const std::int64_t n = inputs.size();
    const ItemsView in{inputs.values, n}, targets{wanted.targets, n};
    const ItemsView negatives{wanted.negatives, (wanted.shared ? 1 : n) * wanted.n_negatives};
    const bool all = loss.kind == LossKind::kCrossEntropy && negatives.count == 0;
    if (shape_.tied) return fold(item_table(), all ? every_item() : each_once({in, targets, negatives}));
    fold(item_table(), each_once({in}));
    fold(output_table(), all ? every_item() : each_once({targets, negatives}));
  }

  void fold(Table& table, const std::vector<std::int32_t>& items) {
    pool_.run([&](int t) {
      const auto [first, last] = range(items.size(), t);
      features_.fold(items.data() + first, last - first, table.weight.data(), weights_.data(), left_out_,
                     table.folded.data());
    });
  }

  const std::vector<std::int32_t>& every_item() {
    if (every_item_.empty()) {
      every_item_.resize(shape_.n_items);
      std::iota(every_item_.begin(), every_item_.end(), 1);
    }
    return every_item_;
  }

  // The items of all parts, each once, in the order in which they are met.
  const std::vector<std::int32_t>& each_once(std::initializer_list<ItemsView> parts) {
    met_.resize(shape_.n_items + 1);
    some_items_.clear();
    for (const ItemsView& part : parts)
      for (std::int64_t i = 0; i < part.count; ++i) {
        if (i + kAhead < part.count) __builtin_prefetch(&met_[part.items[i + kAhead]]);
        if (std::exchange(met_[part.items[i]], 1) == 0) some_items_.push_back(part.items[i]);
      }
    for (const std::int32_t item : some_items_) met_[item] = 0;
    return some_items_;
  }

  // Gradients of folded rows become those of features, of the projection and of the items' own rows.
  void push_to_features(float l2_embedding) {
    std::vector<FoldedGradient> parts;
    for (const Table& table : tables_)
      parts.push_back({table.gradient.rows.data(), table.gradient.rows.size(), table.gradient.values.data()});
    features_.push(parts, gradients(), pool_);
    const int width = shape_.width();
    pool_.run([&](int t) {
      for (Table& table : tables_) {
        const float l2 = &table == &item_table() ? l2_embedding : 0;
        const auto [first, last] = range(table.gradient.rows.size(), t);
        for (std::size_t i = first; i < last; ++i) {
          const std::int32_t item = table.gradient.rows[i];
          float* row = &table.gradient.values[i * width];
          const float* own = &table.weight[static_cast<std::size_t>(item) * width];
          if (!features_.keeps_own(item, left_out_)) std::fill_n(row, width, 0.0f);
          for (int c = 0; l2 > 0 && c < width; c += kLanes) store(row + c, load(row + c) + load(own + c) * (2 * l2));
        }
      }
    });
  }

  Network network_of(Thread& thread) {
    const int capacity = std::max(kChunkTokens, shape_.max_seq_len);
    if (!thread.workspace) thread.workspace = std::make_unique<Workspace>(shape_, capacity);
    return Network(shape_, layout_, mask_.data(), weights_.data(), panels_.data(), *thread.workspace);
  }

  std::pair<std::size_t, std::size_t> range(std::size_t n, int thread) const {
    return {part_of(n, thread, pool_.size()), part_of(n, thread + 1, pool_.size())};
  }
  static std::size_t part_of(std::size_t n, int part, int parts) { return n * part / parts; }  // where one begins
  // A thread's range in whole vectors; n a multiple of kLanes.
  std::pair<std::size_t, std::size_t> vector_range(std::size_t n, int thread) const {
    const auto [begin, end] = range(n / kLanes, thread);
    return {kLanes * begin, kLanes * end};
  }

  void pack_weights() {
    if (panels_valid_) return;
    const auto pack = [&](int t) {
      Array<Operand>& scratch = threads_[t]->pack_scratch;
      scratch.reserve(layout_.largest_matrix());
      for (int i = t; i < layout_.n_matrices(); i += pool_.size())
        layout_.pack(i, weights_.data(), panels_.data(), scratch.data());
    };
    if (layout_.n_matrices()) pool_.run(pack);
    panels_valid_ = true;
  }

  // Whether all positions are scored with the same items; those are made ready.
  bool prepare_candidates(const Loss& loss, const Wanted& wanted) {
    if (loss.kind != LossKind::kCrossEntropy && !wanted.shared) return false;
    std::vector<std::int32_t> chosen;
    if (wanted.shared) chosen.assign(wanted.negatives, wanted.negatives + wanted.n_negatives);
    candidates_.prepare(output_table().rows(), shape_.n_items, shape_.width(), std::move(chosen), pool_);
    return true;
  }

  void clear_candidates(Thread& thread) const {
    const std::size_t values = static_cast<std::size_t>(candidates_.padded_size()) * shape_.width();
    thread.candidates.gradients.reserve(values);
    std::fill_n(thread.candidates.gradients.data(), values, 0.0f);
  }

  double head(const Chunk& chunk, const Loss& loss, const Wanted& wanted, bool common, Thread& thread) {
    const Workspace& w = *thread.workspace;
    const int width = shape_.width();
    const float* table = output_table().rows();
    const Coefficients coefficients{target_gradients_.data(), negative_gradients_.data()};
    if (!common)
      return sampled_head(loss, wanted, chunk.size(), width, token_features_.data(), table, chunk.tokens.data(), w.dy,
                          coefficients, thread.head);
    CandidateHead head(loss, candidates_, width, shape_.dim, thread.candidates);
    return head.run(chunk, wanted, token_features_.data(), table, w.dy, coefficients.targets);
  }

  // Gradients of the tables' rows: of items as inputs, as targets, as negatives or candidates.
  void sum_tables(RaggedView inputs, const Wanted& wanted, bool common, float l2_embedding) {
    const std::int64_t n = inputs.size();
    std::vector<Contributions> input, output;
    if (common) {
      for (const auto& thread : threads_)
        output.push_back({candidates_.items(), nullptr, 1, candidates_.size(), thread->candidates.gradients.data(), 1});
    } else {
      output.push_back({wanted.negatives, negative_gradients_.data(), 0, n * wanted.n_negatives, token_features_.data(),
                        wanted.n_negatives, wanted.weights});
    }
    output.push_back({wanted.targets, target_gradients_.data(), 0, n, token_features_.data(), 1, wanted.weights});
    const float embedding_scale = std::sqrt(static_cast<float>(shape_.dim));
    input.push_back({inputs.values, nullptr, embedding_scale, n, embedding_gradients_.data(), 1});
    for (Table& table : tables_) table.gradient.clear();
    if (shape_.tied) {
      output.insert(output.end(), input.begin(), input.end());
      sum_rows(item_table(), output, l2_embedding);
    } else {
      sum_rows(item_table(), input, l2_embedding);
      sum_rows(output_table(), output, 0);
    }
  }

  static void check_not_empty(RaggedView rows, std::int64_t row) {
    if (rows.length(row) < 1) throw std::invalid_argument("row " + std::to_string(row) + " is empty");
  }

  // Every position of a batch has to be computed, and what a chunk's scores are counted in must not overflow.
  void check_batch(RaggedView inputs, const Wanted& wanted) const {
    if (inputs.rows < 1) throw std::invalid_argument("the batch is empty");
    std::int64_t longest = kChunkTokens;
    for (std::int64_t row = 0; row < inputs.rows; ++row) {
      check_not_empty(inputs, row);
      if (inputs.length(row) > shape_.max_seq_len)
        throw std::invalid_argument("row " + std::to_string(row) + " has " + std::to_string(inputs.length(row)) +
                                    " items, and the model sees " + std::to_string(shape_.max_seq_len));
      longest = std::max(longest, inputs.length(row));
    }
    const std::int64_t scores = (wanted.shared ? 1 : longest) * std::int64_t{wanted.n_negatives};
    if (scores > kMostScores) throw std::invalid_argument("there are too many negatives");
  }

  void check_seen(const Wanted& wanted, std::int64_t n) const {
    for (std::int64_t i = 0; wanted.seen && i < n; ++i)
      if (wanted.seen[i]) check_items(wanted.seen + i, 1, shape_.n_items);
  }

  static double total_weight(const Wanted& wanted, std::int64_t n) {
    if (!wanted.weights) return static_cast<double>(n);
    double total = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      if (!(wanted.weights[i] >= 0)) throw std::invalid_argument("weights must not be negative");
      total += wanted.weights[i];
    }
    if (!(total > 0) || std::isinf(total)) throw std::invalid_argument("weights must have a positive sum");
    return total;
  }

  std::int64_t tokens_of(RaggedView rows, std::int64_t row) const {
    return std::min<std::int64_t>(rows.length(row), shape_.max_seq_len);
  }

  // Cuts rows into chunks of up to `limit` tokens, or of a single row, and gives them to threads.
  void plan(RaggedView rows, int limit) {
    order_.resize(rows.rows);
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](auto a, auto b) { return tokens_of(rows, a) > tokens_of(rows, b); });
    for (auto& thread : threads_) thread->chunks.clear(), thread->planned = 0;
    std::size_t n_chunks = 0;
    for (std::size_t i = 0; i < order_.size(); ++n_chunks) {
      Thread& thread = **std::min_element(threads_.begin(), threads_.end(),
                                          [](const auto& a, const auto& b) { return a->planned < b->planned; });
      const std::size_t begin = i;
      std::int64_t size = 0;
      do {
        const std::int64_t n = tokens_of(rows, order_[i]);
        size += n;
        thread.planned += n * (1 + n / 400.0);
        ++i;
      } while (i < order_.size() && size + tokens_of(rows, order_[i]) <= limit);
      thread.chunks.push_back({begin, i});
    }
    single_chunk_ = n_chunks <= 1;
  }

  // How long chunks of a batch may be: kChunkTokens, or less where that lets all threads have as many chunks.
  int chunk_tokens(std::int64_t tokens) const {
    const std::int64_t round = static_cast<std::int64_t>(kChunkTokens) * pool_.size();
    const std::int64_t n_chunks = (tokens + round - 1) / round * pool_.size();
    const std::int64_t even = (tokens + n_chunks - 1) / n_chunks;
    return static_cast<int>(std::min<std::int64_t>(kChunkTokens, even + even / 16));  // rows do not fill all of it
  }

  // There are no keys when encoding.
  const Chunk& fill_chunk(Thread& thread, Rows which, RaggedView rows, const std::uint64_t* sequence_keys) const {
    thread.chunk.clear();
    for (std::size_t i = which.begin; i < which.end; ++i) add_sequence(thread.chunk, rows, order_[i], sequence_keys);
    return thread.chunk;
  }

  void add_sequence(Chunk& chunk, RaggedView rows, std::int64_t row, const std::uint64_t* sequence_keys) const {
    const int start = chunk.size(), n = static_cast<int>(tokens_of(rows, row));
    const std::int64_t begin = rows.offsets[row + 1] - n;
    const bool shares = sequence_keys && !chunk.segments.empty() && chunk.segments.back().length + n <= kSharedTokens;
    if (!shares) chunk.segments.push_back({start, 0});
    const int first = chunk.segments.back().length;
    chunk.segments.back().length += n;
    for (int j = 0; j < n; ++j) {
      chunk.places.push_back({static_cast<int>(chunk.sequences.size()), j, first});
      chunk.items.push_back(rows.values[begin + j]);
      chunk.positions.push_back(shape_.max_seq_len - n + j);
      if (sequence_keys) chunk.tokens.push_back(begin + j);
    }
    chunk.sequence_keys.push_back(sequence_keys ? sequence_keys[row] : 0);
    chunk.sequences.push_back({start, n});
    chunk.rows.push_back(row);
  }

  void reserve_step(std::int64_t n, int n_negatives) {
    const std::size_t values = static_cast<std::size_t>(n) * shape_.width();
    token_features_.reserve(values);
    embedding_gradients_.reserve(values);
    target_gradients_.reserve(n);
    negative_gradients_.reserve(static_cast<std::size_t>(n) * n_negatives);
  }

  void sum_threads() {
    if (pool_.size() == 1) return;
    pool_.run([&](int t) {
      const auto [begin, end] = vector_range(layout_.network_size(), t);
      float* total = gradients();
      for (std::size_t i = begin; i < end; i += kLanes) {
        Floats v = load(total + i);
        for (int k = 1; k < pool_.size(); ++k) v += load(&threads_[k]->gradients[i]);
        store(total + i, v);
      }
    });
  }

  // Sorts contributions by item (counting sort, stable), then each thread sums whole items; l2 adds 2 l2 times the row,
  // of every item: to folded rows later, as it is of the items' own.
  void sum_rows(Table& table, const std::vector<Contributions>& parts, float l2) {
    RowGradient& gradient = table.gradient;
    const int width = shape_.width();
    starts_.assign(1, 0);
    const auto touch = [&](std::int32_t item) {
      if (gradient.slot[item] >= 0) return;
      gradient.rows.push_back(item);
      starts_.push_back(0);
      gradient.slot[item] = static_cast<std::int32_t>(gradient.rows.size()) - 1;
    };
    std::int64_t total = 0;
    for (const Contributions& part : parts) {
      for (std::int64_t i = 0; i < part.count; ++i) {
        if (i + kAhead < part.count) __builtin_prefetch(&gradient.slot[part.items[i + kAhead]]);
        if (!part.counts(i)) continue;
        ++total;
        touch(part.items[i]);
        ++starts_[gradient.slot[part.items[i]] + 1];
      }
    }
    if (l2 > 0)
      for (int item = 1; item <= shape_.n_items; ++item) touch(item);
    const std::size_t n_rows = gradient.rows.size();
    for (std::size_t i = 0; i < n_rows; ++i) starts_[i + 1] += starts_[i];
    entries_.resize(std::max<std::size_t>(entries_.size(), total));
    cursor_.assign(starts_.begin(), starts_.end());
    for (const Contributions& part : parts) {
      for (std::int64_t i = 0; i < part.count; ++i) {
        if (!part.counts(i)) continue;
        const float coefficient = part.coefficients ? part.coefficients[i] : part.constant;
        entries_[cursor_[gradient.slot[part.items[i]]]++] = {part.source + i / part.repeat * width, coefficient};
      }
    }
    gradient.values.reserve(n_rows * width);
    pool_.run([&](int t) {
      const auto boundary = [&](int thread) {  // the first row that begins at or after the thread's share of entries
        const std::int64_t share = total * thread / pool_.size();
        if (thread == pool_.size()) return n_rows;
        return static_cast<std::size_t>(std::lower_bound(starts_.begin(), starts_.begin() + n_rows, share) -
                                        starts_.begin());
      };
      for (std::size_t i = boundary(t); i < boundary(t + 1); ++i) sum_row(table, i, width, features_ ? 0 : l2);
    });
  }

  void sum_row(Table& table, std::size_t i, int width, float l2) {
    float* row = &table.gradient.values[i * width];
    const float* weight = &table.weight[static_cast<std::size_t>(table.gradient.rows[i]) * width];
    const auto penalty = [&](int c) { return l2 > 0 ? load(weight + c) * (2 * l2) : Floats{}; };
    sum_entries(entries_.data() + starts_[i], entries_.data() + starts_[i + 1], width, row, penalty);
  }

  float clip_scale(float clip_norm) {
    std::vector<double> squares(pool_.size(), 0.0);
    const auto add = [](const float* values, std::size_t begin, std::size_t end) {
      double total = 0;
      for (std::size_t i = begin; i < end; ++i) total += static_cast<double>(values[i]) * values[i];
      return total;
    };
    pool_.run([&](int t) {
      const auto [begin, end] = range(layout_.size(), t);
      squares[t] = add(gradients(), begin, end);
      for (Table& table : tables_) {
        const auto [first, last] = range(table.gradient.rows.size() * shape_.width(), t);
        squares[t] += add(table.gradient.values.data(), first, last);
      }
    });
    const double norm = std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
    return static_cast<float>(std::min(1.0, clip_norm / (norm + 1e-6)));
  }

  ModelShape shape_;
  bool lazy_, orthogonal_;
  std::int64_t step_count_ = 0;  // of the optimizer
  PastSteps past_;
  MissedSteps missed_;  // lazy Adam
  OrthogonalSteps orthogonal_steps_;
  Layout layout_;
  Features features_;
  ColdRows cold_rows_;
  ThreadPool pool_;
  Array<float> weights_, first_moment_, second_moment_, average_;
  Array<Operand> panels_;
  Array<float> mask_;
  std::vector<Table> tables_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<std::int64_t> order_;  // rows of the batch, longest first
  Candidates candidates_;
  Array<float> token_features_, embedding_gradients_, target_gradients_, negative_gradients_;
  std::vector<std::int64_t> starts_, cursor_;
  std::vector<Entry> entries_;
  std::vector<std::int32_t> every_item_, some_items_;
  std::vector<char> met_;  // of each item, while items are made one of a kind
  IdDropout left_out_;     // of the rows that are folded
  bool panels_valid_ = false;
  bool folded_ = false;  // whether all rows are, with every item's own embedding
  bool single_chunk_ = false;
  bool gradients_are_whole_ = true;  // not after a forward_backward that ended halfway
  std::mutex working_;
};

}  // namespace sasrec
