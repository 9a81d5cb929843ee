#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>

namespace superbit {
namespace {

constexpr int MAX_DEPTH = 200;
constexpr int MAX_DIGITS = 16;  // of a whole number: sizes and products of sizes can then be computed and printed

void append_character(std::string& to, uint32_t code) {
    if (code < 0x80) {
        to += char(code);
    } else if (code < 0x800) {
        to += char(0xc0 | code >> 6);
        to += char(0x80 | (code & 63));
    } else if (code < 0x10000) {
        to += char(0xe0 | code >> 12);
        to += char(0x80 | (code >> 6 & 63));
        to += char(0x80 | (code & 63));
    } else {
        to += char(0xf0 | code >> 18);
        to += char(0x80 | (code >> 12 & 63));
        to += char(0x80 | (code >> 6 & 63));
        to += char(0x80 | (code & 63));
    }
}

// The character at `at`, which moves past it. Throw a reason if the bytes are not UTF-8.
uint32_t next_character(const char*& at, const char* end) {
    const unsigned char first = (unsigned char)*at++;
    if (first < 0x80) return first;
    const int more = first >= 0xf0 && first < 0xf5 ? 3 : first >= 0xe0 && first < 0xf0 ? 2 : first >= 0xc2 && first < 0xe0 ? 1 : 0;
    if (more == 0 || end - at < more) throw std::string("the text is not UTF-8");
    uint32_t code = first & (0x3f >> more);
    for (int n = 0; n < more; ++n) {
        const unsigned char next = (unsigned char)*at++;
        if ((next & 0xc0) != 0x80) throw std::string("the text is not UTF-8");
        code = code << 6 | (next & 63);
    }
    if (code > 0x10ffff || (more == 2 && code < 0x800) || (more == 3 && code < 0x10000))
        throw std::string("the text is not UTF-8");
    return code;
}

class Parser {
  public:
    Parser(const char* begin, const char* end) : at(begin), end(end) {}

    Json whole() {
        Json value = any(0);
        skip();
        if (at != end) throw std::string("there is more after the JSON value");
        return value;
    }

  private:
    const char *at, *end;

    void skip() {
        while (at != end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')) ++at;
    }

    bool take(char c) {
        skip();
        if (at == end || *at != c) return false;
        ++at;
        return true;
    }

    bool take_word(const char* word) {
        const char* now = at;
        for (; *word; ++word, ++now)
            if (now == end || *now != *word) return false;
        at = now;
        return true;
    }

    [[noreturn]] static void fail(const char* what) { throw std::string(what); }

    Json any(int depth) {
        if (depth > MAX_DEPTH) fail("the JSON value is nested too deeply");
        skip();
        if (at == end) fail("the JSON text ends too early");
        Json value;
        if (*at == '"') {
            value.kind = Json::text;
            value.string = string();
        } else if (take('{')) {
            value.kind = Json::object;
            if (take('}')) return value;
            std::map<std::string, size_t> places;
            do {
                skip();
                if (at == end || *at != '"') fail("a key of a JSON object is no text");
                std::string key = string();
                if (!take(':')) fail("a key of a JSON object has no value");
                Json member = any(depth + 1);
                const auto [place, is_new] = places.emplace(key, value.members.size());
                if (is_new)
                    value.members.emplace_back(std::move(key), std::move(member));
                else
                    value.members[place->second].second = std::move(member);
            } while (take(','));
            if (!take('}')) fail("a JSON object does not end");
        } else if (take('[')) {
            value.kind = Json::list;
            if (take(']')) return value;
            do value.items.push_back(any(depth + 1));
            while (take(','));
            if (!take(']')) fail("a JSON list does not end");
        } else if (take_word("true")) {
            value.kind = Json::boolean, value.truth = true;
        } else if (take_word("false")) {
            value.kind = Json::boolean;
        } else if (take_word("null")) {
        } else if (take_word("NaN")) {
            value.kind = Json::real, value.number = std::numeric_limits<double>::quiet_NaN();
        } else if (take_word("Infinity")) {
            value.kind = Json::real, value.number = std::numeric_limits<double>::infinity();
        } else if (take_word("-Infinity")) {
            value.kind = Json::real, value.number = -std::numeric_limits<double>::infinity();
        } else {
            number(value);
        }
        return value;
    }

    void number(Json& value) {
        const char* begin = at;
        if (at != end && *at == '-') ++at;
        const char* digits = at;
        auto pass_digits = [&] {
            const char* before = at;
            while (at != end && *at >= '0' && *at <= '9') ++at;
            return at != before;
        };
        if (!pass_digits() || (*digits == '0' && at - digits > 1)) fail("a JSON value is none of the known kinds");
        const char* whole_end = at;
        bool is_real = false;
        if (end - at > 1 && *at == '.' && at[1] >= '0' && at[1] <= '9') {
            ++at;
            is_real = pass_digits();
        }
        if (at != end && (*at == 'e' || *at == 'E')) {
            const char* mark = at++;
            if (at != end && (*at == '+' || *at == '-')) ++at;
            if (pass_digits())
                is_real = true;
            else
                at = mark;
        }
        if (!is_real) {
            at = whole_end;
            if (whole_end - begin > MAX_DIGITS) fail("a number has more digits than are possible");
            value.kind = Json::integer;
            std::from_chars(begin, whole_end, value.whole);
            return;
        }
        value.kind = Json::real;
        if (std::from_chars(begin, at, value.number).ec == std::errc::result_out_of_range) {
            const char* mark = std::find_if(begin, at, [](char c) { return c == 'e' || c == 'E'; });
            const bool is_small = mark < at && mark[1] == '-';
            value.number = is_small ? 0.0 : std::numeric_limits<double>::infinity();
            if (*begin == '-') value.number = -value.number;
        }
    }

    uint32_t hex() {
        if (end - at < 4) fail("an escape of a JSON text ends too early");
        uint32_t code = 0;
        for (int n = 0; n < 4; ++n, ++at) {
            const char c = *at;
            const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
            if (digit < 0) fail("an escape of a JSON text is not hexadecimal");
            code = code << 4 | uint32_t(digit);
        }
        return code;
    }

    std::string string() {
        std::string text;
        for (++at;;) {
            if (at == end) fail("a JSON text does not end");
            const char c = *at;
            if (c == '"') return ++at, text;
            if ((unsigned char)c < 0x20) fail("a JSON text holds a control character");
            if (c != '\\') {
                append_character(text, next_character(at, end));
                continue;
            }
            if (++at == end) fail("a JSON text does not end");
            const char escape = *at++;
            const char* known = "\"\"\\\\//b\bf\fn\nr\rt\t";
            const char* found = known;
            while (*found && *found != escape) found += 2;
            if (*found) {
                text += found[1];
            } else if (escape == 'u') {
                uint32_t code = hex();
                if (code >= 0xd800 && code < 0xdc00 && end - at >= 6 && at[0] == '\\' && at[1] == 'u') {
                    const char* mark = at;
                    at += 2;
                    const uint32_t low = hex();
                    if (low >= 0xdc00 && low < 0xe000)
                        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    else
                        at = mark;
                }
                append_character(text, code);
            } else {
                fail("a JSON text has an unknown escape");
            }
        }
    }
};

void write_text(std::string& to, const std::string& text) {
    static const char* const hex = "0123456789abcdef";
    auto escape = [&](uint32_t unit) {
        to += "\\u";
        for (int shift = 12; shift >= 0; shift -= 4) to += hex[unit >> shift & 15];
    };
    to += '"';
    const char *at = text.data(), *end = at + text.size();
    while (at != end) {
        const uint32_t code = next_character(at, end);
        const char* known = "\"\"\\\\b\bf\fn\nr\rt\t";
        const char* found = known;
        while (*found && uint32_t((unsigned char)found[1]) != code) found += 2;
        if (*found) {
            to += '\\';
            to += *found;
        } else if (code >= 0x20 && code < 0x7f) {
            to += char(code);
        } else if (code < 0x10000) {
            escape(code);
        } else {
            escape(0xd800 + ((code - 0x10000) >> 10));
            escape(0xdc00 + ((code - 0x10000) & 0x3ff));
        }
    }
    to += '"';
}

// repr() of a float.
std::string real_text(double x) {
    if (std::isnan(x)) return "NaN";
    if (std::isinf(x)) return x > 0 ? "Infinity" : "-Infinity";
    char buffer[64];
    auto last = std::to_chars(buffer, buffer + sizeof buffer, x, std::chars_format::scientific).ptr;
    std::string text(buffer, last);  // d.ddde+XX, the shortest that reads back as x
    const size_t mark = text.find('e');
    const int power = std::stoi(text.substr(mark + 1));
    std::string sign = text[0] == '-' ? "-" : "", digits;
    for (char c : text.substr(0, mark))
        if (c >= '0' && c <= '9') digits += c;
    const int count = int(digits.size());
    if (power < -4 || power >= 16) {
        std::string mantissa = digits.substr(0, 1) + (count > 1 ? "." + digits.substr(1) : "");
        std::string size = std::to_string(std::abs(power));
        return sign + mantissa + (power < 0 ? "e-" : "e+") + (size.size() < 2 ? "0" + size : size);
    }
    if (power < 0) return sign + "0." + std::string(size_t(-power - 1), '0') + digits;
    if (count <= power + 1) return sign + digits + std::string(size_t(power + 1 - count), '0') + ".0";
    return sign + digits.substr(0, size_t(power + 1)) + "." + digits.substr(size_t(power + 1));
}

void write(std::string& to, const Json& value) {
    switch (value.kind) {
        case Json::null: to += "null"; break;
        case Json::boolean: to += value.truth ? "true" : "false"; break;
        case Json::integer: to += std::to_string(value.whole); break;
        case Json::real: to += real_text(value.number); break;
        case Json::text: write_text(to, value.string); break;
        case Json::list:
            to += '[';
            for (size_t n = 0; n < value.items.size(); ++n) {
                if (n) to += ", ";
                write(to, value.items[n]);
            }
            to += ']';
            break;
        case Json::object: {
            std::vector<const std::pair<std::string, Json>*> sorted;
            for (const auto& member : value.members) sorted.push_back(&member);
            std::sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return a->first < b->first; });
            to += '{';
            for (size_t n = 0; n < sorted.size(); ++n) {
                if (n) to += ", ";
                write_text(to, sorted[n]->first);
                to += ": ";
                write(to, sorted[n]->second);
            }
            to += '}';
        }
    }
}

}  // namespace

const Json* Json::find(const std::string& key) const {
    for (const auto& member : members)
        if (member.first == key) return &member.second;
    return nullptr;
}

Json Json::parse(const char* begin, const char* end) { return Parser(begin, end).whole(); }

std::string Json::sorted() const {
    std::string text;
    write(text, *this);
    return text;
}

std::string Json::shown(double number) { return real_text(number); }

std::string Json::shown(const std::string& text) {
    Json value;
    value.kind = Json::text, value.string = text;
    return value.shown();
}

std::string Json::shown() const {
    std::string text = sorted();
    return text.size() <= 100 ? text : text.substr(0, 100) + "...";
}

}  // namespace superbit
