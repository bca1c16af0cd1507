// Whole steps of the engine against the reference: loss, gradients, Adam, features.
#include "reference.h"

namespace sasrec::test {

void test_training();  // called in kernels.cpp

namespace {

struct Case {
  BlockKind block;
  bool tied;
  float dropout;
  int threads;
};

ModelShape shape_of(const Case& c) {
  ModelShape shape;
  shape.block = c.block, shape.tied = c.tied, shape.dropout = c.dropout;
  shape.n_items = 30, shape.dim = 12, shape.n_blocks = 2, shape.n_heads = 2, shape.ffn_dim = 19, shape.max_seq_len = 70;
  shape.relu = kDepth == 1;  // rounding to bf16 moves values over ReLU's corner
  return shape;
}

std::string name_of(const Case& c) {
  static constexpr const char* kNames[] = {"sasrec", "post_norm", "pre_norm", "ligr"};
  return std::string(kNames[static_cast<int>(c.block)]) + (c.tied ? "" : ", untied") + ", dropout " +
         std::to_string(c.dropout) + ", " + std::to_string(c.threads) + " threads: ";
}

Batch make_batch(const std::vector<int>& lengths, int n_items, Random& random) {
  Batch batch;
  batch.step_key = random.word(), batch.n_negatives = 2;
  for (const int length : lengths) {
    for (int j = 0; j < length; ++j) {
      batch.items.push_back(1 + random.below(n_items)), batch.targets.push_back(1 + random.below(n_items));
      for (int k = 0; k < batch.n_negatives; ++k) batch.negatives.push_back(1 + random.below(n_items));
    }
    batch.offsets.push_back(static_cast<std::int64_t>(batch.items.size()));
    batch.keys.push_back(random.word());
  }
  return batch;
}

// An engine, and its weights and gradients by their names outside.
class Subject {
 public:
  Subject(const ModelShape& shape, int threads, const ItemFeatures& features = {},
          TableSteps steps = TableSteps::kDense)
      : engine(shape, weights_of(shape), threads, steps, features) {
    engine.prepare_training();
    Random random(7);
    for (const std::string& name : names()) {
      const auto [rows, cols] = size_of(name);
      const bool is_scale = name.find("norm.weight") != std::string::npos;
      for (int r = name.find("item_") == 0 || name.find("output_") == 0 ? 1 : 0; r < rows; ++r)
        for (int c = 0; c < cols; ++c)
          *find(name, r, c, &Table::weight, engine.weights()) =
              (is_scale ? 1 : 0) + 0.8f * random.uniform() / std::sqrt(rows > 1 ? static_cast<float>(cols) : 3.0f);
    }
    engine.weights_changed();
  }

  std::vector<std::string> names() {
    std::vector<std::string> result;
    for (const auto& [name, shape] : weights_of(engine.shape())) result.push_back(name);
    return result;
  }

  std::map<std::string, Matrix> weights() {
    return collect(
        [&](const std::string& name, int r, int c) { return *find(name, r, c, &Table::weight, engine.weights()); });
  }

  std::map<std::string, Matrix> gradients() {
    return collect([&](const std::string& name, int r, int c) -> double {
      if (Table* table = engine.find_table(name)) {
        const std::int32_t slot = table->gradient.slot[r];
        return slot < 0 ? 0 : table->gradient.values[static_cast<std::size_t>(slot) * engine.shape().width() + c];
      }
      return *find(name, r, c, &Table::weight, engine.gradients());
    });
  }

  // Sum of the absolute values in the padding of the flat weights and of the tables.
  double padding() {
    double everything = 0, real = 0;
    for (std::size_t i = 0; i < engine.layout().size(); ++i) everything += std::abs(engine.weights()[i]);
    for (const Table* table : tables())
      for (std::size_t i = 0; i < table->weight.size(); ++i) everything += std::abs(table->weight[i]);
    for (const auto& [name, matrix] : weights())
      for (const double v : matrix.values) real += std::abs(v);
    return std::abs(everything - real) / everything;
  }

  double forward_backward(const Batch& batch, float l2 = 0, float feature_dropout = 0, double whole_weight = 0) {
    return engine.forward_backward(batch.view(), batch.keys.data(), batch.step_key,
                                   {LossKind::kBce, 1.0f, nullptr, 1.0f},
                                   {batch.targets.data(), batch.negatives.data(), batch.n_negatives, false, nullptr,
                                    nullptr, batch.weights.empty() ? nullptr : batch.weights.data()},
                                   l2, feature_dropout, whole_weight);
  }

  // The gradients become the sum of these and another's, as processes sum them.
  void add_gradients(Subject& other) {
    for (std::size_t i = 0; i < engine.layout().size(); ++i) engine.gradients()[i] += other.engine.gradients()[i];
    sum_tables({this, &other});
  }
  // The gradients become another's.
  void take_gradients(Subject& other) {
    std::copy_n(other.engine.gradients(), engine.layout().size(), engine.gradients());
    sum_tables({&other});
  }

  Engine engine;

 private:
  void sum_tables(const std::vector<Subject*>& subjects) {
    for (std::size_t t = 0; t < engine.tables().size(); ++t) {
      std::vector<std::vector<std::int32_t>> rows(subjects.size());  // and values, not where the sum is made
      std::vector<Array<float>> values(subjects.size());
      std::vector<GradientRows> parts;
      for (std::size_t i = 0; i < subjects.size(); ++i) {
        const RowGradient& gradient = subjects[i]->engine.tables()[t].gradient;
        rows[i] = gradient.rows;
        values[i].resize(rows[i].size() * static_cast<std::size_t>(engine.shape().width()));
        std::copy_n(gradient.values.data(), values[i].size(), values[i].data());
        parts.push_back({rows[i].data(), rows[i].size(), values[i].data()});
      }
      engine.sum_gradients(t, parts);
    }
  }
  std::vector<Table*> tables() {
    if (engine.shape().tied) return {&engine.item_table()};
    return {&engine.item_table(), &engine.output_table()};
  }
  std::pair<int, int> size_of(const std::string& name) {
    if (engine.find_table(name)) return {engine.shape().n_items + 1, engine.shape().dim};
    const Parameter& p = parameter(name);
    return {p.rows.logical(), p.columns.logical()};
  }
  const Parameter& parameter(const std::string& name) {
    for (const Parameter& p : engine.layout().parameters())
      if (p.name == name) return p;
    throw std::logic_error(name);
  }
  float* find(const std::string& name, int r, int c, Array<float> Table::* array, float* flat) {
    if (Table* table = engine.find_table(name)) return (table->*array).data() + r * engine.shape().width() + c;
    return flat + parameter(name).place(r, c);
  }
  template <typename F>
  std::map<std::string, Matrix> collect(F&& at) {
    std::map<std::string, Matrix> result;
    for (const std::string& name : names()) {
      const auto [rows, cols] = size_of(name);
      Matrix matrix(rows, cols);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < cols; ++c) matrix(r, c) = at(name, r, c);
      result[name] = matrix;
    }
    return result;
  }
};

// Gradients against central differences of the reference's loss, at a few values of each weight.
void check_gradients(const std::string& name, const std::map<std::string, Matrix>& gradients, Reference& reference,
                     const Batch& batch) {
  Random random(3);
  const double n = batch.total_weight(), h = 1e-5;
  for (const auto& [weight, gradient] : gradients) {
    Comparison same(name + "gradient of " + weight, kDepth > 1 ? 6e-2 : 2e-5);
    const bool is_table = weight == "item_embedding.weight" || weight == "output_embedding.weight";
    for (int i = 0; i < 3; ++i) {
      const int row = is_table ? 1 + random.below(gradient.rows - 1) : random.below(gradient.rows);
      const int column = random.below(gradient.cols);
      double& v = reference.weights[weight](row, column);
      const double before = v;
      v = before + h;
      const double above = reference.loss(batch);
      v = before - h;
      const double below = reference.loss(batch);
      v = before;
      same.add(gradient(row, column), (above - below) / (2 * h * n));
    }
    double largest = 0;  // what a value is compared with: the array's scale, not that of the values drawn
    for (const double g : gradient.values) largest = std::max(largest, std::abs(g));
    same.add(largest, largest);
  }
}

// A step of Adam in double precision from the engine's own gradients, clipped to `clip_norm`.
void check_optimizer(const std::string& name, Subject& subject, float clip_norm) {
  const auto before = subject.weights(), gradients = subject.gradients();
  double squares = 0;
  for (const auto& [weight, gradient] : gradients)
    for (const double g : gradient.values) squares += g * g;
  const double clip = clip_norm > 0 ? std::min(1.0, clip_norm / (std::sqrt(squares) + 1e-6)) : 1;
  subject.engine.optimizer_step({0.01f, 0.9f, 0.98f}, clip_norm);
  expect(subject.engine.step_count() == 1, name + "the step is counted");
  Comparison moves(name + "moves of Adam", 2e-4);
  for (const auto& [weight, after] : subject.weights())
    for (std::size_t i = 0; i < after.values.size(); ++i) {
      const double g = gradients.at(weight).values[i] * clip;  // at step 1 both moments, corrected, are g and g * g
      moves.add(after.values[i] - before.at(weight).values[i], -0.01 * g / (std::abs(g) + 1e-8));
    }
}

void test_step(const Case& c) {
  const std::string name = name_of(c);
  Random random(static_cast<unsigned>(c.block) + 10);
  const ModelShape shape = shape_of(c);
  Subject subject(shape, c.threads);
  const Batch batch = make_batch({70, 1, 5, 2, 33, 1, 9, 61, 3, 1}, shape.n_items, random);
  Reference reference(shape);
  reference.weights = subject.weights();
  const double loss = subject.forward_backward(batch);
  {
    Comparison same(name + "loss", kTolerance);
    same.add(loss, reference.loss(batch));
  }
  check_gradients(name, subject.gradients(), reference, batch);
  check_optimizer(name, subject, c.threads > 1 ? 0.05f : 0.0f);
  expect(subject.padding() < 1e-7, name + "padding stays zero");
  const double next = subject.forward_backward(batch);
  expect(next < loss, name + "a step lowers the loss of its batch");
}

// Features of the items of a model, some of which have none.
struct MadeFeatures {
  std::vector<std::int64_t> offsets{0, 0};
  std::vector<std::int32_t> values;
  std::vector<float> vectors;

  explicit MadeFeatures(const ModelShape& shape) {
    Random random(17);
    for (int item = 1; item <= shape.n_items; ++item) {
      for (int f = random.below(3); item % 4 && f < shape.n_features; f += 1 + random.below(5)) values.push_back(f);
      offsets.push_back(static_cast<std::int64_t>(values.size()));
    }
    for (int i = 0; i < (shape.n_items + 1) * shape.vector_dim; ++i)
      vectors.push_back(i < shape.vector_dim || i / shape.vector_dim % 8 == 0 ? 0 : 0.5f * random.uniform());
  }

  ItemFeatures view() const { return {offsets.data(), values.data(), vectors.data()}; }
};

void test_features(int n_features, int vector_dim, bool tied, float feature_dropout, int threads) {
  const std::string name = std::to_string(n_features) + " features, " + std::to_string(vector_dim) +
                           " values of a vector" + (tied ? "" : ", untied") + ", " + std::to_string(threads) +
                           " threads: ";
  ModelShape shape = shape_of({BlockKind::kSASRec, tied, 0.0f, threads});
  shape.n_features = n_features, shape.vector_dim = vector_dim;
  const MadeFeatures features(shape);
  Random random(23);
  Subject subject(shape, threads, features.view());
  const Batch batch = make_batch({20, 1, 5, 33, 1, 3}, shape.n_items, random);
  Reference reference(shape);
  reference.weights = subject.weights();
  reference.item_features = features.view(), reference.feature_dropout = feature_dropout;
  const double loss = subject.forward_backward(batch, 0, feature_dropout);
  {
    Comparison same(name + "loss", kTolerance);
    same.add(loss, reference.loss(batch));
  }
  check_gradients(name, subject.gradients(), reference, batch);
  check_optimizer(name, subject, threads > 1 ? 0.05f : 0.0f);
  expect(subject.padding() < 1e-7, name + "padding stays zero");
  reference.weights = subject.weights();
  std::vector<float> encoded(shape.dim);
  const std::int64_t ends[] = {0, 20};
  subject.engine.encode({batch.items.data(), ends, 1}, encoded.data());
  const Matrix expected = reference.features(batch.items.data(), 20);
  Comparison same(name + "features of a history after a step", kTolerance);
  for (int k = 0; k < shape.dim; ++k) same.add(encoded[k], expected(19, k));
}

// Rows of cold items beside the formula in doubles, and the same bits with any number of threads.
void test_cold_rows(int n_items, int dim) {
  const std::string name = std::to_string(n_items) + " items, " + std::to_string(dim) + " wide: ";
  ModelShape shape;
  shape.n_items = n_items, shape.dim = dim, shape.cold_scale = 1.5f;
  const int width = shape.width();
  Random random(29);
  Array<float> own((n_items + 1) * width), told((n_items + 1) * width), rows[2];
  std::vector<int> warm, cold;
  for (int item = 1; item <= n_items; ++item) {
    if (item % 7 == 0) continue;  // nothing is told of it
    (item % 3 ? warm : cold).push_back(item);
    for (int c = 0; c < dim; ++c) {
      if (item % 3) own[item * width + c] = random.uniform();
      told[item * width + c] = told[(item > 9 ? item - 9 : 0) * width + c] + 0.3f * random.uniform();
    }
  }
  for (int i = 0; i < 2; ++i) {
    rows[i].resize((n_items + 1) * width);
    for (int j = 0; j < (n_items + 1) * width; ++j) rows[i][j] = own[j] + told[j];
    ThreadPool pool(1 + 2 * i);
    ColdRows(shape).place(own.data(), rows[i].data(), pool);
  }
  expect(std::equal(rows[0].data(), rows[0].data() + rows[0].size(), rows[1].data()), name + "threads change no bit");
  const auto length = [&](int item) {
    double squares = 0;
    for (int c = 0; c < dim; ++c) squares += std::pow(told[item * width + c], 2);
    return std::sqrt(squares);
  };
  std::vector<double> mean(dim);
  double usual = 0;
  for (const int item : warm) {
    for (int c = 0; c < dim; ++c) mean[c] += own[item * width + c] / static_cast<double>(warm.size());
    usual += length(item) / static_cast<double>(warm.size());
  }
  Comparison same(name + "rows of cold items", 1e-5), kept(name + "rows of other items", 0);
  for (const int item : warm)
    for (int c = 0; c < dim; ++c) kept.add(rows[0][item * width + c], own[item * width + c] + told[item * width + c]);
  for (const int item : cold) {
    std::vector<double> sums(dim);
    double total = 0.3, squares = 0;
    for (const int other : warm) {
      double product = 0;
      for (int c = 0; c < dim; ++c) product += static_cast<double>(told[item * width + c]) * told[other * width + c];
      const double weight = std::pow(std::max(0.0, product / length(item) / length(other)), 16);
      for (int c = 0; c < dim; ++c) sums[c] += weight * (own[other * width + c] - mean[c]);
      total += weight;
    }
    for (int c = 0; c < dim; ++c) sums[c] = told[item * width + c] + sums[c] / total, squares += sums[c] * sums[c];
    for (int c = 0; c < dim; ++c)
      same.add(rows[0][item * width + c], sums[c] * 1.5 * std::sqrt(usual / std::sqrt(squares)));
  }
}

Matrix product(const Matrix& a, const Matrix& b) {
  Matrix result(a.rows, b.cols);
  for (int i = 0; i < a.rows; ++i)
    for (int k = 0; k < a.cols; ++k)
      for (int j = 0; j < b.cols; ++j) result(i, j) += a(i, k) * b(k, j);
  return result;
}

// The inverse square root of a symmetric matrix by the iteration of Newton and Schulz, which needs no eigenvectors.
Matrix inverse_root(Matrix matrix, double trace) {
  const int n = matrix.rows;
  Matrix root(n, n);
  for (double& v : matrix.values) v /= trace;
  for (int i = 0; i < n; ++i) root(i, i) = 1;
  for (int iteration = 0; iteration < 100; ++iteration) {
    Matrix next = product(root, matrix);
    for (double& v : next.values) v *= -0.5;
    for (int i = 0; i < n; ++i) next(i, i) += 1.5;
    matrix = product(matrix, next), root = product(next, root);
  }
  for (double& v : root.values) v /= std::sqrt(trace);
  return root;
}

// Steps of tables beside the formula in doubles, from the moments that they leave; given the same gradients, threads
// change no bit.
void test_orthogonal_steps(bool tied, int dim) {
  const std::string name = "orthogonal steps, " + std::to_string(dim) + (tied ? " wide: " : " wide, untied: ");
  ModelShape shape = shape_of({BlockKind::kSASRec, tied, 0.0f, 1});
  shape.dim = dim, shape.n_heads = 1, shape.n_blocks = 0;
  Random random(31);
  Subject one(shape, 1, {}, TableSteps::kOrthogonal), three(shape, 3, {}, TableSteps::kOrthogonal);
  const Adam adam{0.01f, 0.9f, 0.98f};
  for (int step = 1; step <= 3; ++step) {
    const Batch batch = make_batch({4, 2, 1}, shape.n_items, random);
    const auto before = one.weights();
    for (Subject* subject : {&one, &three}) subject->forward_backward(batch);
    three.take_gradients(one);
    for (Subject* subject : {&one, &three}) subject->engine.optimizer_step(adam, 0);
    for (Table& table : one.engine.tables()) {
      const int width = shape.width();
      Matrix steps(shape.n_items + 1, dim), squares(dim, dim);
      for (int row = 1; row <= shape.n_items; ++row)
        for (int c = 0; c < dim; ++c) {
          const double mean = table.first_moment[row * width + c], square = table.second_moment[row * width + c];
          steps(row, c) = mean / (1 - std::pow(0.9f, step)) / (std::sqrt(square / (1 - std::pow(0.98f, step))) + 1e-8);
        }
      for (int row = 1; row <= shape.n_items; ++row)
        for (int i = 0; i < dim; ++i)
          for (int j = 0; j < dim; ++j) squares(i, j) += steps(row, i) * steps(row, j);
      double trace = 0;
      for (int i = 0; i < dim; ++i) trace += squares(i, i);
      for (double& v : squares.values) v *= dim / trace;
      for (int i = 0; i < dim; ++i) squares(i, i) += 1e-5;
      const Matrix moves = product(steps, inverse_root(squares, dim + 1e-3));
      Comparison same(name + "step " + std::to_string(step) + " of " + table.name, 2e-4, 0.01);
      for (int row = 1; row <= shape.n_items; ++row)
        for (int c = 0; c < dim; ++c)
          same.add(table.weight[row * width + c] - before.at(table.name)(row, c), -0.01 * moves(row, c));
    }
    for (const auto& [weight, matrix] : one.weights())
      expect(matrix.values == three.weights().at(weight).values, name + "threads change no bit of " + weight);
  }
  expect(one.padding() < 1e-12, name + "padding stays zero");
}

// Positions that weigh differently, some of them nothing, and a sequence of which none counts.
void test_weights(bool tied, float dropout, int threads) {
  const std::string name = std::string("weights of positions") + (tied ? "" : ", untied") + ": ";
  const ModelShape shape = shape_of({BlockKind::kSASRec, tied, dropout, threads});
  Random random(29);
  Subject subject(shape, threads);
  Batch batch = make_batch({33, 5, 1, 9, 70}, shape.n_items, random);
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(batch.items.size()); ++i)
    batch.weights.push_back(i >= batch.offsets[1] && i < batch.offsets[2] ? 0.0f : 0.5f * random.below(4));
  Reference reference(shape);
  reference.weights = subject.weights();
  {
    Comparison same(name + "loss", kTolerance);
    same.add(subject.forward_backward(batch), reference.loss(batch));
  }
  const auto gradients = subject.gradients();
  check_gradients(name, gradients, reference, batch);
  for (std::size_t i = 0; i < batch.items.size(); ++i)
    if (batch.weights[i] == 0)
      for (int k = 0; k < batch.n_negatives; ++k) batch.negatives[i * batch.n_negatives + k] = 1 + random.below(30);
  subject.forward_backward(batch);
  bool is_same = true;
  for (const auto& [weight, gradient] : subject.gradients()) is_same &= gradient.values == gradients.at(weight).values;
  expect(is_same, name + "negatives of positions that do not count change no bit");
}

// Some rows of a batch.
Batch rows_of(const Batch& batch, std::size_t first, std::size_t last) {
  const std::int64_t begin = batch.offsets[first], end = batch.offsets[last];
  Batch part;
  part.step_key = batch.step_key, part.n_negatives = batch.n_negatives;
  part.items.assign(batch.items.begin() + begin, batch.items.begin() + end);
  part.targets.assign(batch.targets.begin() + begin, batch.targets.begin() + end);
  part.negatives.assign(batch.negatives.begin() + begin * batch.n_negatives,
                        batch.negatives.begin() + end * batch.n_negatives);
  part.keys.assign(batch.keys.begin() + static_cast<std::int64_t>(first),
                   batch.keys.begin() + static_cast<std::int64_t>(last));
  for (std::size_t row = first + 1; row <= last; ++row) part.offsets.push_back(batch.offsets[row] - begin);
  return part;
}

// Two processes have some rows of a batch each, a third one has none.
void test_shares(bool tied, float dropout, int threads) {
  const std::string name = std::string("shares of a batch") + (tied ? "" : ", untied") + ": ";
  const ModelShape shape = shape_of({BlockKind::kPreNorm, tied, dropout, threads});
  Random random(31);
  const Batch batch = make_batch({33, 5, 1, 9, 70, 2}, shape.n_items, random);
  Subject whole(shape, threads), first(shape, threads), second(shape, threads), third(shape, threads);
  const double loss = whole.forward_backward(batch);
  const double shares = first.forward_backward(rows_of(batch, 0, 4), 0, 0, batch.total_weight()) +
                        second.forward_backward(rows_of(batch, 4, 6), 0, 0, batch.total_weight());
  third.forward_backward(batch);
  third.engine.clear_gradients();
  first.add_gradients(second);
  first.add_gradients(third);
  {
    Comparison same(name + "loss", kTolerance);
    same.add(shares, loss);
  }
  const auto sums = first.gradients();
  for (const auto& [weight, gradient] : whole.gradients()) {
    if (weight.find("key_value.bias") != std::string::npos) continue;  // of keys it is nothing but rounding
    Comparison same(name + "gradient of " + weight, kTolerance);
    for (std::size_t i = 0; i < gradient.values.size(); ++i) same.add(sums.at(weight).values[i], gradient.values[i]);
  }
}

void test_l2() {
  const Case c{BlockKind::kSASRec, true, 0.0f, 1};
  Random random(1);
  Subject subject(shape_of(c), 1);
  const Batch batch = make_batch({4, 3}, 30, random);
  subject.forward_backward(batch);
  const Matrix plain = subject.gradients()["item_embedding.weight"];
  subject.forward_backward(batch, 0.5f);
  const Matrix decayed = subject.gradients()["item_embedding.weight"],
               table = subject.weights()["item_embedding.weight"];
  Comparison same("l2 adds 2 l2 times the table", 1e-5);
  for (std::size_t i = 0; i < table.values.size(); ++i) same.add(decayed.values[i] - plain.values[i], table.values[i]);
}

void test_encode(const Case& c) {
  Random random(2);
  const ModelShape shape = shape_of(c);
  Subject subject(shape, c.threads);
  Reference reference(shape);
  reference.weights = subject.weights();
  const Batch batch = make_batch({1, 70, 9, 200, 33, 2, 1, 71, 64, 3, 3}, shape.n_items, random);
  const int rows = static_cast<int>(batch.offsets.size()) - 1;
  std::vector<float> features(static_cast<std::size_t>(rows) * shape.dim);
  subject.engine.encode(batch.view(), features.data());
  Comparison same(name_of(c) + "features of histories", kTolerance);
  for (int i = 0; i < rows; ++i) {
    const int n = static_cast<int>(std::min<std::int64_t>(batch.view().length(i), shape.max_seq_len));
    const Matrix expected = reference.features(&batch.items[batch.offsets[i + 1] - n], n);
    for (int k = 0; k < shape.dim; ++k) same.add(features[i * shape.dim + k], expected(n - 1, k));
  }
}

template <typename F>
std::string refusal_of(F&& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

// Each weight in turn is left out or has another shape; or there is one too many.
void test_weights_that_do_not_fit() {
  for (const BlockKind block : {BlockKind::kSASRec, BlockKind::kLiGR})
    for (const bool tied : {true, false}) {
      const ModelShape shape = shape_of({block, tied, 0.0f, 1});
      const NamedShapes right = weights_of(shape);
      const auto refusal = [&](const NamedShapes& weights) { return refusal_of([&] { Layout(shape, weights); }); };
      expect(refusal(right).empty(), "the weights of a model fit");
      for (std::size_t i = 0; i < right.size(); ++i) {
        NamedShapes wrong = right;
        wrong[i].second.front() += 1;
        expect(refusal(wrong).rfind("weight " + right[i].first + " has shape (", 0) == 0, "a wrong shape is named");
        wrong = right;
        wrong.resize(i);
        expect(refusal(wrong).rfind("after " + std::to_string(i) + " weights the core needs one of shape (", 0) == 0,
               "a missing weight is told");
      }
      NamedShapes more = right;
      more.emplace_back("wings", std::vector{1});
      expect(refusal(more) == "the core has no weight wings in such a model", "a weight too many is named");
    }
  const ModelShape shape = shape_of({BlockKind::kSASRec, true, 0.0f, 1});
  NamedShapes weights = weights_of(shape);
  weights[1].second = {70};
  expect(refusal_of([&] { Layout(shape, weights); }) ==
             "weight position_embedding.weight has shape (70), and the core needs (70, 12)",
         "both shapes are told");
}

void test_bad_items() {
  Random random(5);
  Subject subject(shape_of({BlockKind::kSASRec, true, 0.0f, 2}), 2);
  Batch batch = make_batch({4, 3}, 30, random);
  batch.targets[2] = 31;
  const std::string refusal = refusal_of([&] { subject.forward_backward(batch); });
  expect(refusal == "item index 31 is not in 1..30", "an item outside the table is refused");
}

}  // namespace

void test_training() {
  for (const BlockKind block : {BlockKind::kSASRec, BlockKind::kPostNorm, BlockKind::kPreNorm, BlockKind::kLiGR}) {
    test_step({block, true, 0.0f, 1});
    test_step({block, false, 0.3f, 3});
    test_encode({block, true, 0.3f, 1});
    test_encode({block, false, 0.0f, 3});
  }
  for (const bool tied : {true, false}) {
    test_features(9, 0, tied, 0.0f, 1);
    test_features(0, 5, tied, 0.5f, 3);
    test_features(9, 5, tied, 0.5f, 2);
  }
  test_cold_rows(20, 5);
  test_cold_rows(500, 64);
  test_orthogonal_steps(true, 12);
  test_orthogonal_steps(false, 33);
  test_weights(true, 0.3f, 2);
  test_weights(false, 0.0f, 1);
  test_shares(true, 0.3f, 2);
  test_shares(false, 0.0f, 1);
  test_l2();
  test_weights_that_do_not_fit();
  test_bad_items();
}

}  // namespace sasrec::test
