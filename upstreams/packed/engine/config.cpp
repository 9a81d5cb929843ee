#include "config.h"

#include <cmath>
#include <functional>
#include <map>

namespace superbit {
namespace {

constexpr int64_t LARGEST = int64_t(1) << 20, MOST_LAYERS = 256, MOST_MELS = 257;

using Choices = std::vector<std::string>;
using Reader = std::function<void(const Json&, const std::string&)>;

[[noreturn]] void fail(const std::string& message) { throw InvalidFile(message); }

std::string joined(const Choices& choices) {
    std::string text;
    for (const auto& choice : choices) text += (text.empty() ? "" : ", ") + choice;
    return text;
}

Reader text(std::string& to, Choices choices = {}) {
    return [&to, choices](const Json& value, const std::string& where) {
        if (value.kind != Json::text) fail(where + " is " + value.shown() + ", but must be of type str");
        bool is_known = choices.empty();
        for (const auto& choice : choices) is_known |= choice == value.string;
        if (!is_known) fail(where + " " + value.shown() + " is unknown: valid values: " + joined(choices));
        to = value.string;
    };
}

Reader whole(int64_t& to, int64_t least = 1, int64_t most = LARGEST) {
    return [&to, least, most](const Json& value, const std::string& where) {
        if (value.kind != Json::integer) fail(where + " is " + value.shown() + ", but must be of type int");
        if (value.whole < least) fail(where + " is " + value.shown() + ", but must be at least " + std::to_string(least));
        if (value.whole > most) fail(where + " is " + value.shown() + ", but must be at most " + std::to_string(most));
        to = value.whole;
    };
}

Reader real(double& to) {
    return [&to](const Json& value, const std::string& where) {
        if (value.kind != Json::integer && value.kind != Json::real)
            fail(where + " is " + value.shown() + ", but must be of type float");
        to = value.kind == Json::integer ? double(value.whole) : value.number;
        if (std::isnan(to)) fail(where + " is not a number (NaN)");
    };
}

Reader truth(bool& to) {
    return [&to](const Json& value, const std::string& where) {
        if (value.kind != Json::boolean) fail(where + " is " + value.shown() + ", but must be of type bool");
        to = value.truth;
    };
}

void read_object(const Json& value, const std::string& where, const std::map<std::string, Reader>& readers) {
    if (value.kind != Json::object) fail(where + " must be a mapping of keys to values");
    for (const auto& [key, member] : value.members) {
        auto found = readers.find(key);
        if (found == readers.end()) fail("unknown key " + Json::shown(key) + " in " + where);
        found->second(member, where + "." + key);
    }
}

bool is_name(const std::string& name) {
    if (name.empty() || name.size() > 100 || name[0] == '.') return false;
    for (char c : name)
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-'))
            return false;
    return true;
}

void check(const ModelConfig& config) {
    const FrontEndConfig& front_end = config.front_end;
    const EncoderConfig& encoder = config.encoder;
    if (!is_name(config.name)) fail("the model's name is not valid: it must be up to 100 of A-Z a-z 0-9 _ . -");
    if (!(front_end.normalisation_eps > 0 && front_end.normalisation_eps < 1))
        fail("front_end.normalisation_eps must be between 0 and 1");
    if (front_end.normalisation == (front_end.kind == "log_mel" ? "none" : "dataset"))
        fail("front_end.normalisation " + front_end.normalisation + " does not exist for a " + front_end.kind + " front-end");
    if (front_end.subsampling != 2 && front_end.subsampling != 4) fail("front_end.subsampling must be 2 or 4");
    if (encoder.dim % encoder.heads) fail("encoder.heads does not divide encoder.dim");
    if (encoder.positions == "conv" && encoder.dim % encoder.position_groups)
        fail("encoder.position_groups does not divide encoder.dim");
    if (encoder.positions == "rotary" && encoder.dim / encoder.heads % 2)
        fail("encoder.positions rotary needs heads of an even width");
    if (encoder.kernel % 2 == 0) fail("encoder.kernel must be odd, so that filters are centred");
    for (double rate : {encoder.dropout, encoder.layerdrop})
        if (!(rate >= 0 && rate < 1)) fail("encoder.dropout and encoder.layerdrop must be at least 0 and below 1");
    if (encoder.kind == "squeezeformer" &&
        !(0 <= encoder.reduce && encoder.reduce < encoder.recover && encoder.recover < encoder.layers))
        fail("encoder.reduce and encoder.recover must be indices of blocks, reduce before recover");
}

bool is_width(int bits) { return bits == 1 || bits == 2 || bits == 4 || bits == 8 || bits == 32; }

// One bracket expression of a pattern, which begins after '['. Move past it; false if it does not end.
bool take_set(const std::string& pattern, size_t& at, char c, bool& is_in) {
    size_t from = at;
    const bool is_negated = from < pattern.size() && pattern[from] == '!';
    if (is_negated) ++from;
    size_t end = from < pattern.size() && pattern[from] == ']' ? from + 1 : from;
    while (end < pattern.size() && pattern[end] != ']') ++end;
    if (end >= pattern.size()) return false;
    bool found = false;
    for (size_t n = from; n < end;) {
        if (n + 2 < end && pattern[n + 1] == '-') {
            found |= pattern[n] <= c && c <= pattern[n + 2];
            n += 3;
        } else {
            found |= pattern[n++] == c;
        }
    }
    is_in = found != is_negated;
    at = end + 1;
    return true;
}

// As Python's fnmatch.fnmatchcase.
bool fits(const std::string& pattern, const std::string& name) {
    size_t p = 0, n = 0, star = std::string::npos, mark = 0;
    while (n < name.size()) {
        bool is_in = false;
        size_t next = p + 1;
        if (p < pattern.size() && pattern[p] == '*') {
            star = p++, mark = n;
            continue;
        }
        if (p < pattern.size()) {
            is_in = pattern[p] == '?' || pattern[p] == name[n];
            if (pattern[p] == '[') {
                next = p + 1;
                if (!take_set(pattern, next, name[n], is_in)) next = p + 1, is_in = name[n] == '[';
            }
        }
        if (is_in) {
            p = next, ++n;
        } else if (star != std::string::npos) {
            p = star + 1, n = ++mark;
        } else {
            return false;
        }
    }
    while (p < pattern.size() && pattern[p] == '*') ++p;
    return p == pattern.size();
}

}  // namespace

Bits Bits::parse(const std::string& text) {
    size_t at = 0;
    int widths[2] = {};
    bool is_valid = true;
    for (int n = 0; n < 2; ++n) {
        is_valid &= at < text.size() && text[at++] == "wa"[n];
        size_t digits = 0;
        for (; digits < 2 && at < text.size() && text[at] >= '0' && text[at] <= '9'; ++digits)
            widths[n] = widths[n] * 10 + (text[at++] - '0');
        is_valid &= digits > 0 && is_width(widths[n]);
    }
    if (!is_valid || at != text.size())
        fail("bits " + text.substr(0, 40) + " are not valid: write w<bits>a<bits> with 1, 2, 4, 8 or 32 bits");
    return {widths[0], widths[1]};
}

ModelConfig ModelConfig::read(const Json& value) {
    ModelConfig config;
    FrontEndConfig& f = config.front_end;
    EncoderConfig& e = config.encoder;
    QuantizationConfig& q = config.quantization;
    const int64_t lowest = INT64_MIN;
    const std::map<std::string, Reader> front_end = {
        {"kind", text(f.kind, {"log_mel", "waveform"})},
        {"normalisation", text(f.normalisation, {"dataset", "utterance", "none"})},
        {"normalisation_eps", real(f.normalisation_eps)},
        {"mels", whole(f.mels, 1, MOST_MELS)},
        {"subsampling", whole(f.subsampling)},
        {"stem", text(f.stem, {"stack", "convolution"})},
        {"width", whole(f.width)},
        {"feature_norm", text(f.feature_norm, {"group", "layer"})},
        {"projection_norm", truth(f.projection_norm)},
    };
    const std::map<std::string, Reader> encoder = {
        {"kind", text(e.kind, {"sparseformer", "transformer", "conformer", "squeezeformer"})},
        {"layers", whole(e.layers, 1, MOST_LAYERS)},
        {"dim", whole(e.dim)},
        {"heads", whole(e.heads)},
        {"feed_forward_dim", whole(e.feed_forward_dim)},
        {"activation", text(e.activation, {"relu", "gelu", "swish"})},
        {"norm", text(e.norm, {"pre", "post"})},
        {"positions", text(e.positions, {"conv", "relative", "rotary", "none"})},
        {"position_kernel", whole(e.position_kernel)},
        {"position_groups", whole(e.position_groups)},
        {"radius", whole(e.radius)},
        {"kernel", whole(e.kernel)},
        {"reduce", whole(e.reduce, lowest)},
        {"recover", whole(e.recover, lowest)},
        {"dropout", real(e.dropout)},
        {"layerdrop", real(e.layerdrop)},
    };
    const Reader overrides = [&q](const Json& given, const std::string& where) {
        if (given.kind != Json::object) fail(where + " must be a mapping of names to names");
        for (const auto& [pattern, bits] : given.members) {
            if (bits.kind != Json::text) fail(where + " must be a mapping of names to names");
            q.overrides.emplace_back(pattern, bits.string);
        }
    };
    const std::map<std::string, Reader> quantization = {
        {"overrides", overrides},
        {"weight_scale", text(q.weight_scale, {"tensor", "channel"})},
        {"feed_forward_input", text(q.feed_forward_input, {"auto", "relu", "signed"})},
        {"convolution_input", text(q.convolution_input, {"auto", "relu", "signed"})},
    };
    auto nested = [](const std::map<std::string, Reader>& readers) -> Reader {
        return [&readers](const Json& given, const std::string& where) { read_object(given, where, readers); };
    };
    const std::map<std::string, Reader> model = {
        {"name", text(config.name)},
        {"front_end", nested(front_end)},
        {"encoder", nested(encoder)},
        {"bits", text(config.bits)},
        {"quantization", nested(quantization)},
        {"output_map", truth(config.output_map)},
        {"source", text(config.source)},
    };
    read_object(value, "the configuration", model);
    if (value.find("name") == nullptr) fail("the configuration lacks the key 'name'");
    check(config);
    return config;
}

bool wants_relu(const std::string& choice, const Bits& bits) {
    return choice == "relu" || (choice == "auto" && (bits.weight == 1 || bits.activation == 1));
}

bool matches(const std::string& pattern, const std::string& name, const std::string& kind) {
    return kind == pattern || fits(pattern, name);
}

}  // namespace superbit
