// Numbers in JSON: 3.0 and 2e1 as the whole numbers that they are, so that a reader of integers takes them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace sasrec {

constexpr std::int64_t kExactBelow = std::int64_t{1} << 53;  // doubles tell whole numbers below it apart
constexpr int kMostDigits = 16;                              // that such a number has

// A number as JSON writes it: sign, digits without the point, and the power of ten that they are multiplied by.
class JsonNumber {
 public:
  explicit JsonNumber(std::string_view text) : text_(text) {}

  // Whether it is one by JSON's grammar.
  bool read() {
    negative_ = take('-');
    if (take('0')) {
    } else if (!digits(false)) {
      return false;
    }
    if (take('.') && !digits(true)) return false;
    if (take('e') || take('E')) {
      const bool down = take('-');
      if (!down) take('+');
      std::int64_t power = 0;
      const std::size_t start = at_;
      for (; at_ < text_.size() && is_digit(text_[at_]); ++at_)
        power = std::min<std::int64_t>(power * 10 + (text_[at_] - '0'), kExactBelow);
      if (at_ == start) return false;
      exponent_ += down ? -power : power;
    }
    return at_ == text_.size();
  }

  // Whether it is a whole number that doubles tell apart from others; then `value` is it.
  bool is_exact(std::int64_t& value) const {
    if (!first_) return value = 0, true;  // no digit but zeros
    const std::int64_t n = n_digits_, zeros = exponent_ + trailing_;
    if (zeros < 0 || n - trailing_ > kMostDigits || n - trailing_ + zeros > kMostDigits) return false;
    value = 0;
    std::int64_t left = n - trailing_;
    for (const char* digit = first_; left > 0; ++digit)
      if (*digit != '.') value = value * 10 + (*digit - '0'), --left;
    for (std::int64_t i = 0; i < zeros; ++i) value *= 10;
    if (value >= kExactBelow) return false;
    if (negative_) value = -value;
    return true;
  }

 private:
  static bool is_digit(char c) { return '0' <= c && c <= '9'; }

  bool take(char c) {
    const bool is_there = at_ < text_.size() && text_[at_] == c;
    at_ += is_there;
    return is_there;
  }

  // Digits, at least one; leading zeros of the number count for nothing, and its trailing ones are counted.
  bool digits(bool is_fraction) {
    const std::size_t start = at_;
    for (; at_ < text_.size() && is_digit(text_[at_]); ++at_) {
      exponent_ -= is_fraction;
      if (!first_ && text_[at_] == '0') continue;
      if (!first_) first_ = text_.data() + at_;
      ++n_digits_;
      trailing_ = text_[at_] == '0' ? trailing_ + 1 : 0;
    }
    return at_ > start;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  const char* first_ = nullptr;  // digit that is not 0
  std::int64_t n_digits_ = 0, trailing_ = 0, exponent_ = 0;
  bool negative_ = false;
};

// JSON with each number that is written with a point or an exponent, and is a whole number below 2^53, as its digits;
// all else stays as it is, so that what was no JSON is none afterwards.
inline std::string whole_numbers(std::string_view json) {
  std::string out;
  out.reserve(json.size());
  std::size_t copied = 0, at = 0;  // what lies before `copied` is in `out`
  while (at < json.size()) {
    const char c = json[at];
    if (c == '"') {
      for (++at; at < json.size() && json[at] != '"'; ++at) at += json[at] == '\\';
      ++at;
    } else if (c == '-' || ('0' <= c && c <= '9')) {
      const std::size_t end = std::min(json.find_first_not_of("+-.0123456789eE", at), json.size());
      const std::string_view text = json.substr(at, end - at);
      JsonNumber number(text);
      std::int64_t value;
      if (text.find_first_of(".eE") != text.npos && number.read() && number.is_exact(value)) {
        out.append(json, copied, at - copied).append(std::to_string(value));
        copied = end;
      }
      at = end;
    } else {
      ++at;
    }
  }
  return copied ? out.append(json, copied, json.size() - copied) : std::string(json);
}

}  // namespace sasrec
