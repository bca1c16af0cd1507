// What must end in an exception and leave everything usable, and what several threads do at once: the pool, calls on
// one engine, indices of tables and levels that hold what is not a number.
#include <map>
#include <numeric>
#include <random>

#include "../ids.h"
#include "../levels.h"
#include "../named.h"
#include "reference.h"

namespace sasrec::test {

void test_edges();  // called in kernels.cpp

namespace {

template <typename Error, typename F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

ModelShape small_shape() {
  ModelShape shape;
  shape.n_items = 30, shape.dim = 12, shape.n_blocks = 1, shape.n_heads = 2, shape.ffn_dim = 19, shape.max_seq_len = 7;
  return shape;
}

// Rows of the items 1, 2, ... with one negative each.
Batch batch_of(const std::vector<int>& lengths) {
  Batch batch;
  for (const int length : lengths) {
    for (int i = 0; i < length; ++i) batch.items.push_back(i % 30 + 1), batch.targets.push_back(i % 30 + 1);
    batch.offsets.push_back(static_cast<std::int64_t>(batch.items.size()));
    batch.keys.push_back(batch.offsets.size());
  }
  batch.negatives.assign(batch.items.size(), 30);
  return batch;
}

double forward_backward(Engine& engine, const Batch& batch) {
  return engine.forward_backward(batch.view(), batch.keys.data(), 1, {LossKind::kBce, 1.0f, nullptr, 1.0f},
                                 {batch.targets.data(), batch.negatives.data(), batch.n_negatives, false, nullptr}, 0);
}

std::vector<int> calls_of(ThreadPool& pool) {
  std::vector<int> calls(pool.size());  // written without a lock: the pool must order what its threads do
  pool.run([&](int t) { ++calls[t]; });
  return calls;
}

void test_thread_pool() {
  ThreadPool pool(3);
  for (int round = 0; round < 200; ++round)
    expect(calls_of(pool) == std::vector<int>(3, 1), "each thread is called once");
  std::vector<int> covered(10);
  pool.run_ranges(10, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) ++covered[i];
  });
  expect(covered == std::vector<int>(10, 1), "ranges cover everything once");
  for (int thrower = 0; thrower < 3; ++thrower) {
    std::atomic<int> finished = 0;
    const std::string message = message_of<std::runtime_error>([&] {
      pool.run([&](int t) {
        if (t == thrower) throw std::runtime_error("no");
        ++finished;
      });
    });
    expect(message == "no" && finished == 2, "an exception reaches the caller after all threads are done");
    expect(calls_of(pool) == std::vector<int>(3, 1), "a pool works after an exception");
  }
}

void test_a_thread_that_cannot_be_started() {
  for (int startable = 0; startable < 3; ++startable) {
    int left = startable;
    ThreadPool pool(4, [&](std::function<void()> work) {
      if (left-- == 0) throw std::system_error(EAGAIN, std::generic_category());
      return std::thread(std::move(work));
    });
    for (int attempt = 0; attempt < 2; ++attempt) {
      left = startable;
      int calls = 0;
      const std::string message = message_of<std::runtime_error>([&] { pool.run([&](int) { ++calls; }); });
      expect(message.rfind("thread " + std::to_string(startable + 2) + " of 4 could not be started (", 0) == 0,
             "the thread that is missing is named: " + message);
      expect(calls == 0, "nothing is called where a thread is missing");
    }
    left = 3;
    expect(calls_of(pool) == std::vector<int>(4, 1), "a pool works once threads can be started");
  }
}

void test_batches_that_cannot_be() {
  for (const int threads : {1, 2}) {
    Engine engine(small_shape(), weights_of(small_shape()), threads, TableSteps::kDense);
    const auto refusal = [&](const Batch& batch) {
      return message_of<std::invalid_argument>([&] { forward_backward(engine, batch); });
    };
    expect(refusal(batch_of({})) == "the batch is empty", "a batch without rows is refused");
    expect(refusal(batch_of({0})) == "row 0 is empty", "a batch without positions is refused");
    expect(refusal(batch_of({3, 0, 2})) == "row 1 is empty", "a row without positions is refused");
    expect(refusal(batch_of({3, 8})) == "row 1 has 8 items, and the model sees 7", "a row that is too long is refused");
    Batch many = batch_of({3});
    many.n_negatives = 1 << 24;
    expect(refusal(many) == "there are too many negatives", "scores that an int cannot count are refused");
    expect(refusal(batch_of({3, 7})).empty(), "an engine works after refusals");
    engine.encode(batch_of({}).view(), nullptr);
    const std::string empty = message_of<std::invalid_argument>([&] {
      std::vector<float> features(36);
      engine.encode(batch_of({2, 0, 1}).view(), features.data());
    });
    expect(empty == "row 1 is empty", "a history without items is refused");
  }
}

void test_averages_and_steps_that_cannot_be() {
  Engine engine(small_shape(), weights_of(small_shape()), 1, TableSteps::kDense);
  std::vector<float> values(12);
  const std::string none = "there is no average of the weights; update_average makes one";
  const auto refusal = [&](auto&& f) { return message_of<std::invalid_argument>(f); };
  const auto read = [&](const char* kind) { read_array(engine, "norm.weight", kind, values.data(), values.size()); };
  expect(refusal([&] { engine.swap_average(); }) == none, "what is not there changes no places");
  expect(refusal([&] { read("average"); }) == none, "an average that is not there is not read");
  expect(!engine.has_average(), "to read an average makes none");
  expect(refusal([&] { read("wings"); }) == "kind 'wings' is not known", "an unknown kind is named");
  expect(refusal([&] { engine.set_step_count(-1); }) == "step_count must be in 0..2^53", "steps are not negative");
  engine.update_average(0.5f);
  expect(refusal([&] { read("average"), engine.swap_average(); }).empty(), "an average is read and swapped");
}

void test_arrays_without_memory() {
  Array<float> array(100);
  for (const std::size_t size : {SIZE_MAX, SIZE_MAX / 4}) {
    expect(!message_of<std::bad_alloc>([&] { array.resize(size); }).empty(), "there is no such memory");
    expect(array.size() == 0 && !array.data(), "an array without memory is empty");
  }
  array.reserve(100);
  expect(array.size() == 100 && array[99] == 0, "an array can be made after that");
}

// Weights are read and written while others train and encode: each array that is read was written by one call.
void test_calls_at_once() {
  Engine engine(small_shape(), weights_of(small_shape()), 2, TableSteps::kDense);
  const std::string name = "norm.bias";
  const auto write = [&](float value) {
    const std::vector<float> values(12, value);
    write_array(engine, name, "weight", values.data(), values.size());
  };
  std::atomic<int> torn = 0;
  const auto repeat = [](auto&& f) {
    return std::thread([f] {
      for (int i = 0; i < 50; ++i) f(i);
    });
  };
  const Batch batch = batch_of({3, 7, 1, 5});
  std::vector<std::thread> threads;
  write(0);
  threads.push_back(repeat([&](int i) { write(static_cast<float>(i)); }));
  threads.push_back(repeat([&](int) {
    std::vector<float> values(12);
    read_array(engine, name, "weight", values.data(), values.size());
    torn += std::count(values.begin(), values.end(), values[0]) != 12;
  }));
  threads.push_back(repeat([&](int) { forward_backward(engine, batch); }));
  threads.push_back(repeat([&](int) {
    std::vector<float> features(48), gradient(31 * 12);
    engine.encode(batch.view(), features.data());
    read_array(engine, "item_embedding.weight", "gradient", gradient.data(), gradient.size());
  }));
  for (auto& thread : threads) thread.join();
  expect(torn == 0, "an array is read as one call wrote it");
}

// Lists of a table in which any value may be what is not a number: whatever is found, it is an item or nothing.
void test_ranking_what_is_not_finite() {
  Random random(9);
  for (const int n_items : {3, 70, 5000})
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      constexpr int kDim = 5, kRows = 9;
      Array<float> table = random_floats((n_items + 1) * kDim, random), features = random_floats(kRows * kDim, random);
      for (int i = 0; i < n_items * kDim / 2; ++i) table[kDim + random.below(n_items * kDim)] = bad;
      ItemIndex index(table.data(), n_items, kDim, 2);
      const std::vector<std::int32_t> targets(kRows, n_items);
      const int k = std::min(60, 2 * n_items);
      std::vector<std::int64_t> above(kRows), tied(kRows);
      std::vector<std::int32_t> items(kRows * k);
      std::vector<float> scores(kRows * k);
      const auto are_items = [&] {
        return std::all_of(items.begin(), items.end(), [&](std::int32_t item) { return item >= 0 && item <= n_items; });
      };
      for (const int rows : {1, kRows}) {
        expect(!index.top_k(features.data(), rows, k, {}, nullptr, items.data(), scores.data()) && are_items(),
               "lists with scores that are not finite are told");
        expect(!index.rank(features.data(), rows, targets.data(), {}, k, above.data(), tied.data(), items.data()) &&
                   are_items(),
               "ranks with scores that are not finite are told");
      }
    }
}

// Ids drawn around few and many values, among them the smallest and the largest, against an ordered map.
void test_ids() {
  std::mt19937_64 rng(3);
  for (const int bits : {3, 12, 40, 64}) {
    std::map<std::int64_t, std::int64_t> expected;
    std::vector<std::int64_t> ids{INT64_MIN, INT64_MAX, 0, -1}, counts;
    for (int i = 0; i < 5000; ++i) ids.push_back(static_cast<std::int64_t>(rng() >> (64 - bits)) * (i % 2 ? 1 : -1));
    for (const std::int64_t id : ids) ++expected[id], counts.push_back(1 + (id & 3)), expected[id] += counts.back();
    IdTable table;
    table.count(ids.data(), nullptr, static_cast<std::int64_t>(ids.size()));
    table.count(ids.data(), counts.data(), static_cast<std::int64_t>(ids.size()));
    const std::int64_t n = table.size();
    expect(n == static_cast<std::int64_t>(expected.size()), "ids are counted once");
    expect(16 * n < table.nbytes() && table.nbytes() <= 16 * std::max<std::int64_t>(1024, 3 * n + 96),
           "a table has some room");
    std::vector<std::int64_t> different(n), numbers(n);
    const std::string refusal =
        message_of<std::invalid_argument>([&] { table.take(different.data(), numbers.data(), n - 1); });
    expect(refusal == "there must be room for all ids and no more", "what does not fit is not written");
    table.take(different.data(), numbers.data(), n);
    expect(std::equal(expected.begin(), expected.end(), different.begin(),
                      [](const auto& pair, std::int64_t id) { return pair.first == id; }) &&
               std::equal(expected.begin(), expected.end(), numbers.begin(),
                          [](const auto& pair, std::int64_t number) { return pair.second == number; }),
           "ids come in ascending order with their counts");
    expect(table.size() == 0 && table.nbytes() == 0, "a table is empty after that");

    std::vector<std::int32_t> places(ids.size());
    expect(!table.places(ids.data(), 1, places.data()) && places[0] == -1, "an empty table has no places");
    table.number(different.data(), n);
    expect(table.places(ids.data(), static_cast<std::int64_t>(ids.size()), places.data()), "all ids have places");
    for (std::size_t i = 0; i < ids.size(); ++i) expect(different[places[i]] == ids[i], "places are those of ids");
    const std::int64_t strange[] = {ids[7], 1234567890123456789, ids[8]};
    expect(!table.places(strange, 3, places.data()) && places[1] == -1 && different[places[2]] == ids[8],
           "an unknown id has no place");
    const auto refused = [&](IdTable& to) {
      return message_of<std::invalid_argument>([&] { to.number(std::data({5L, 6L, 5L}), 3); });
    };
    IdTable other;
    expect(refused(table) == "the table has ids already" && refused(other) == "ids must be different",
           "numbers are of one column");
  }
}

void test_ids_from_several_threads() {
  IdTable table;
  std::vector<std::int64_t> ids(20000);
  std::iota(ids.begin(), ids.end(), -1000);
  const auto count = [&] { table.count(ids.data(), nullptr, static_cast<std::int64_t>(ids.size())); };
  std::thread other(count);
  count(), other.join();
  std::vector<std::int64_t> found(ids.size()), counts(ids.size());
  table.take(found.data(), counts.data(), static_cast<std::int64_t>(ids.size()));
  expect(found == ids && counts == std::vector<std::int64_t>(ids.size(), 2), "calls at once count everything");
}

void test_the_order_of_few_keys() {
  const std::vector<std::int32_t> keys{2, 0, 2, 1, 0, 4};
  std::vector<std::int64_t> order(6), counts(6);
  order_of(keys.data(), 6, 6, order.data(), counts.data());
  expect(order == std::vector<std::int64_t>{1, 4, 3, 0, 2, 5}, "keys stay as they were among equal ones");
  expect(counts == std::vector<std::int64_t>{2, 1, 2, 0, 1, 0}, "keys are counted");
}

// A row alone looks at a mask where scores reach the bar, many rows look at it another way: both give the same lists.
// Masks take as much memory as they need, so that a read beyond them is found.
void test_masks_of_one_row_and_of_many() {
  Random random(9);
  constexpr int kDim = 3, kRows = 7, kBest = 10;
  for (int n_items = kManyItems; n_items <= kManyItems + kPanelItems + 1; n_items += n_items % 4 == 3 ? 5 : 1) {
    Array<float> table((n_items + 1) * kDim), features(kRows * kDim);
    for (int i = 0; i < (n_items + 1) * kDim; ++i) table[i] = random.below(7) - 3.0f;  // many ties
    for (int i = 0; i < kDim; ++i) features[i] = random.below(7) - 3.0f;
    for (int i = kDim; i < kRows * kDim; ++i) features[i] = features[i - kDim];
    ItemIndex index(table.data(), n_items, kDim, 1);
    const auto check = [&](const char* what, auto&& is_allowed) {
      const std::unique_ptr<bool[]> allowed(new bool[n_items + 1]{});
      for (int item = 1; item <= n_items; ++item) allowed[item] = is_allowed(item);
      std::int32_t items[kRows * kBest], of_one[kBest];
      float scores[kRows * kBest], scores_of_one[kBest];
      index.top_k(features.data(), kRows, kBest, {}, allowed.get(), items, scores);
      index.top_k(features.data(), 1, kBest, {}, allowed.get(), of_one, scores_of_one);
      expect(std::equal(of_one, of_one + kBest, items) && std::equal(scores_of_one, scores_of_one + kBest, scores),
             what);
      expect(std::all_of(of_one, of_one + kBest, [&](std::int32_t item) { return !item || allowed[item]; }), what);
    };
    check("all are allowed", [](int) { return true; });
    check("none is allowed", [](int) { return false; });
    check("half of them are allowed", [&](int) { return random.below(2) == 1; });
    check("a tenth of them is allowed", [&](int) { return random.below(10) == 0; });
    check("the first ones are allowed", [&](int item) { return item <= n_items / 8; });
    check("the last ones are allowed", [&](int item) { return item > n_items - n_items / 8; });
    check("few are allowed", [&](int) { return random.below(100) == 0; });
    check("the last one is allowed", [&](int item) { return item == n_items; });
  }
}

void test_levels_that_are_not_finite() {
  Random random(9);
  Array<float> levels = random_floats(2001, random);
  const std::vector<std::int32_t> targets{5}, items{3};
  const std::vector<std::int64_t> offsets{0, 1}, list_of{0};
  std::int64_t above, tied;
  std::vector<std::int32_t> list(50);
  const auto rank = [&](float exception) {
    return LevelIndex(levels.data(), 2000)
        .rank(1, {items.data(), &exception, offsets.data(), list_of.data()}, 1, targets.data(), {}, 50, &above, &tied,
              list.data());
  };
  expect(rank(1), "finite levels are ranked");
  expect(!rank(NAN) && !rank(INFINITY), "an exception that is not finite is told");
  for (int i = 0; i < 1000; ++i) levels[1 + random.below(2000)] = NAN;
  expect(!rank(1), "levels that are not finite are told");
}

}  // namespace

void test_edges() {
  test_thread_pool();
  test_a_thread_that_cannot_be_started();
  test_batches_that_cannot_be();
  test_averages_and_steps_that_cannot_be();
  test_arrays_without_memory();
  test_calls_at_once();
  test_ranking_what_is_not_finite();
  test_masks_of_one_row_and_of_many();
  test_levels_that_are_not_finite();
  test_ids();
  test_ids_from_several_threads();
  test_the_order_of_few_keys();
}

}  // namespace sasrec::test
