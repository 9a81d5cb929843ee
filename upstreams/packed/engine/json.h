// JSON as Python's json module reads and writes it: a packed file's checksum covers the text that Python writes.

#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace superbit {

struct Json {
    enum Kind { null, boolean, integer, real, text, list, object } kind = null;
    bool truth = false;
    int64_t whole = 0;
    double number = 0.0;
    std::string string;  // UTF-8; a lone surrogate is encoded as if it were a character
    std::vector<Json> items;
    std::vector<std::pair<std::string, Json>> members;  // a key that is repeated has its last value, in its first place

    // The value of a key, or null if there is none or if this is no object.
    const Json* find(const std::string& key) const;

    // The value of a text, of which whole numbers have at most 16 digits. Throw std::string (a reason) if it is none.
    static Json parse(const char* begin, const char* end);

    // What Python's json.dumps(value, sort_keys=True) returns.
    std::string sorted() const;

    // A number or a text as a message shows it.
    static std::string shown(double number);
    static std::string shown(const std::string& text);

    // The value as a message shows it: short, and escaped.
    std::string shown() const;
};

}  // namespace superbit
