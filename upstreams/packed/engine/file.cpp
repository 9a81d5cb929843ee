#include "file.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace superbit {
namespace {

constexpr int64_t MAX_HEADER = 100'000'000;  // bytes, the limit of safetensors
constexpr size_t MAX_DIMENSIONS = 8, MAX_OVERRIDES = 1000, MAX_PATTERN = 200;
constexpr int FORMAT = 1;
constexpr int64_t PIECE = 1 << 20;  // bytes that are read at once

[[noreturn]] void fail(const std::string& message) { throw InvalidFile(message); }

class FileSource : public Source {
  public:
    explicit FileSource(const std::string& path) : file(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
        if (file < 0) throw CannotRead(errno == ENOENT ? "does not exist: give a .safetensors file written by `superbit pack`"
                                                       : std::string("cannot be opened: ") + std::strerror(errno));
        struct stat status;
        if (::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
            ::close(file);
            throw CannotRead("is not a file: give a .safetensors file written by `superbit pack`");
        }
        bytes = status.st_size;
    }
    ~FileSource() override { ::close(file); }
    int64_t size() const override { return bytes; }
    void read(int64_t offset, int64_t count, void* to) const override {
        for (char* at = static_cast<char*>(to); count > 0;) {
            const ssize_t done = ::pread(file, at, size_t(count), offset);
            if (done < 0 && errno == EINTR) continue;
            if (done <= 0) throw CannotRead("cannot be read to its end");
            at += done, offset += done, count -= done;
        }
    }

  private:
    int file;
    int64_t bytes = 0;
};

class MemorySource : public Source {
  public:
    MemorySource(const void* data, int64_t bytes) : data(static_cast<const char*>(data)), bytes(bytes) {}
    int64_t size() const override { return bytes; }
    void read(int64_t offset, int64_t count, void* to) const override {
        if (count > bytes - offset) throw CannotRead("cannot be read to its end");
        std::memcpy(to, data + offset, size_t(count));
    }

  private:
    const char* data;
    int64_t bytes;
};

// CRC-32 as in zlib, eight bytes at a time.
class Crc {
  public:
    Crc() {
        for (uint32_t n = 0; n < 256; ++n) {
            uint32_t c = n;
            for (int k = 0; k < 8; ++k) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
            table[0][n] = c;
        }
        for (int t = 1; t < 8; ++t)
            for (int n = 0; n < 256; ++n) table[t][n] = table[0][table[t - 1][n] & 255] ^ table[t - 1][n] >> 8;
    }

    uint32_t add(uint32_t crc, const void* data, size_t count) const {
        const unsigned char* at = static_cast<const unsigned char*>(data);
        crc = ~crc;
        for (; count >= 8; count -= 8, at += 8) {
            uint32_t low, high;
            std::memcpy(&low, at, 4), std::memcpy(&high, at + 4, 4);
            low ^= crc;
            crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^ table[4][low >> 24] ^
                  table[3][high & 255] ^ table[2][high >> 8 & 255] ^ table[1][high >> 16 & 255] ^ table[0][high >> 24];
        }
        for (; count > 0; --count, ++at) crc = table[0][(crc ^ *at) & 255] ^ crc >> 8;
        return ~crc;
    }
    uint32_t add(uint32_t crc, const std::string& text) const { return add(crc, text.data(), text.size()); }

  private:
    uint32_t table[8][256];
};

// As Python writes a tuple.
std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "(";
    for (size_t n = 0; n < shape.size(); ++n) text += (n ? ", " : "") + std::to_string(shape[n]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

const Json& member(const Json& object, const char* key) {
    const Json* found = object.find(key);
    if (found == nullptr) fail(std::string("is damaged or not a packed file (it lacks ") + key + ")");
    return *found;
}

std::string described(const Layer* layer) {
    if (layer == nullptr) return "not quantized";
    return layer->bits.text() + " with " + (layer->is_signed ? "signed" : "non-negative") + " input";
}

}  // namespace

std::unique_ptr<Source> Source::file(const std::string& path) { return std::make_unique<FileSource>(path); }
std::unique_ptr<Source> Source::memory(const void* data, int64_t size) { return std::make_unique<MemorySource>(data, size); }

PackedFile::PackedFile(std::unique_ptr<Source> from) : source(std::move(from)) { read_header(); }

void PackedFile::read_header() {
    const int64_t size = source->size();
    unsigned char prefix[8] = {};
    if (size >= 8) source->read(0, 8, prefix);
    uint64_t length = 0;
    for (int n = 7; n >= 0; --n) length = length << 8 | prefix[n];
    if (size < 8 || length < 2 || length > uint64_t(std::min(size - 8, MAX_HEADER)))
        fail("is damaged or not a safetensors file (its header does not fit into " + std::to_string(size) + " bytes)");
    std::string text(size_t(length), '\0');
    source->read(8, int64_t(length), &text[0]);
    data = 8 + int64_t(length);
    Json header;
    try {
        header = Json::parse(text.data(), text.data() + text.size());
    } catch (const std::string& reason) {
        fail("is damaged or not a safetensors file (" + reason + ")");
    }
    text.clear(), text.shrink_to_fit();
    if (header.kind != Json::object) fail("is damaged or not a safetensors file (its header is no mapping)");
    read_tensors(header);
    const Json* metadata = header.find("__metadata__");
    if (metadata != nullptr && metadata->kind != Json::object)
        fail("is damaged or not a safetensors file (the metadata is not a mapping)");
    const Json* packed = metadata == nullptr ? nullptr : metadata->find("superbit-packed");
    if (packed == nullptr) fail("is not a packed file: make one from a quantized checkpoint with `superbit pack`");
    if (packed->kind != Json::text) fail("is damaged or not a packed file (its metadata is no text)");
    Json model;
    try {
        model = Json::parse(packed->string.data(), packed->string.data() + packed->string.size());
    } catch (const std::string& reason) {
        fail("is damaged or not a packed file (" + reason + ")");
    }
    if (model.kind != Json::object) fail("is damaged or not a packed file (its metadata is no mapping)");
    const Json &version = member(model, "format"), checksum = member(model, "checksum");
    if (version.kind != Json::integer || version.whole != FORMAT)
        fail("has packed format " + version.shown() + ", but this version reads format " + std::to_string(FORMAT));
    try {
        config = ModelConfig::read(member(model, "config"));
        config_text = member(model, "config").sorted();
        const Json& listed = member(model, "layers");
        if (listed.kind != Json::object) fail("is damaged or not a packed file (its layers are no mapping)");
        for (const auto& [name, layer] : listed.members) {
            const Json *bits = layer.find("bits"), *is_signed = layer.find("signed");
            if (layer.members.size() != 2 || bits == nullptr || is_signed == nullptr || bits->kind != Json::text ||
                is_signed->kind != Json::boolean)
                fail("is damaged or not a packed file (the layer " + Json::shown(name) + " has no bits or no sign)");
            layers[name] = {Bits::parse(bits->string), is_signed->truth};
        }
        if (const Json* head = model.find("head")) slots = read_slots(*head);
    } catch (const InvalidFile& error) {
        const std::string message = error.what();
        fail(message.rfind("is damaged", 0) == 0 ? message : "is not valid: " + message);
    }
    if (member(model, "provenance").kind != Json::object)
        fail("is damaged or not a packed file (the provenance is not a mapping)");
    std::map<std::string, Entry> entries;
    try {
        entries = check_contents();
    } catch (const InvalidFile& error) {
        fail(std::string("does not fit its configuration: ") + error.what());
    }
    const Json expected = checksum;
    model.members.erase(std::find_if(model.members.begin(), model.members.end(),
                                     [](const auto& one) { return one.first == "checksum"; }));
    const Crc crc;
    check_values(entries, crc.add(0, model.sorted()), &expected);
}

void PackedFile::read_tensors(const Json& header) {
    auto fault = [](const std::string& name, const char* what) {
        fail("is damaged or not a safetensors file (" + Json::shown(name) + " " + what + ")");
    };
    std::vector<std::pair<const Tensor*, const std::string*>> ordered;
    for (const auto& [name, entry] : header.members) {
        if (name == "__metadata__") continue;
        const Json *dtype = entry.find("dtype"), *shape = entry.find("shape"), *offsets = entry.find("data_offsets");
        if (entry.members.size() != 3 || dtype == nullptr || shape == nullptr || offsets == nullptr)
            fault(name, "has no type, no shape or no offsets");
        Tensor tensor;
        tensor.is_codes = dtype->kind == Json::text && dtype->string == "U8";
        if (!tensor.is_codes && !(dtype->kind == Json::text && dtype->string == "F32"))
            fault(name, "is of another type than uint8 and float32");
        const bool is_empty = (shape->kind == Json::text && shape->string.empty()) ||
                              (shape->kind == Json::object && shape->members.empty());
        if (!(shape->kind == Json::list || is_empty) || offsets->kind != Json::list || offsets->items.size() != 2)
            fault(name, "has a shape or offsets that are no lists");
        if (shape->items.size() > MAX_DIMENSIONS)
            fault(name, ("has " + std::to_string(shape->items.size()) + " dimensions, but at most 8 are possible").c_str());
        __int128 size = tensor.is_codes ? 1 : 4;
        auto whole = [&](const Json& value) {
            if (value.kind != Json::integer || value.whole < 0) fault(name, "has a shape or offsets that are not whole numbers >= 0");
            return value.whole;
        };
        bool has_zero = false;
        for (const Json& item : shape->items) {
            tensor.shape.push_back(whole(item));
            has_zero |= item.whole == 0;
        }
        for (int64_t length : tensor.shape) size = has_zero ? 0 : std::min<__int128>(size * length, __int128(1) << 62);
        tensor.begin = whole(offsets->items[0]), tensor.end = whole(offsets->items[1]);
        if (size != __int128(tensor.end) - tensor.begin) fault(name, "does not fill its offsets");
        tensors[name] = tensor;
    }
    for (const auto& [name, tensor] : tensors) ordered.push_back({&tensor, &name});
    std::sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
        return std::make_pair(a.first->begin, a.first->end) < std::make_pair(b.first->begin, b.first->end);
    });
    int64_t end = 0;
    for (const auto& [tensor, name] : ordered) {
        if (tensor->begin != end)
            fail("is damaged: " + Json::shown(*name) + " begins at byte " + std::to_string(tensor->begin) + " of the data instead of byte " +
                 std::to_string(end));
        end = tensor->end;
    }
    if (data + end != source->size())
        fail("is damaged: it has " + std::to_string(source->size()) + " bytes, but its header describes " +
             std::to_string(data + end));
}

std::map<std::string, Entry> PackedFile::check_contents() {
    const auto& overrides = config.quantization.overrides;
    bool is_long = overrides.size() > MAX_OVERRIDES;
    for (const auto& [pattern, bits] : overrides) is_long |= pattern.size() > MAX_PATTERN;
    if (is_long) fail("it has over 1000 overrides, or one of over 200 characters");
    std::map<std::string, Entry> entries;
    std::map<std::string, bool> expected;
    auto check_entry = [&](const Entry& entry) {
        auto found = tensors.find(entry.name);
        if (found == tensors.end()) fail(entry.name + " is missing");
        const Tensor& tensor = found->second;
        if (tensor.is_codes != (entry.values == Values::codes) || tensor.shape != entry.shape)
            fail(entry.name + " is " + (tensor.is_codes ? "uint8 " : "float32 ") + shape_text(tensor.shape) + ", but must be " +
                 (entry.values == Values::codes ? "uint8 " : "float32 ") + shape_text(entry.shape));
        entries[entry.name] = entry;
    };
    list_contents(config, {
        check_entry,
        [&](const std::string& name, const Layer& layer) {
            expected[name] = true;
            auto found = layers.find(name);
            Layer* own = found == layers.end() ? nullptr : &found->second;
            if (own == nullptr || !(*own == layer)) fail(name + " is " + described(own) + ", but must be " + described(&layer));
            own->columns = layer.columns;
        },
    });
    if (!slots.empty()) list_head(config, slots, check_entry);
    auto check = [&](const std::string& name) {
        if (!entries.count(name) && !expected.count(name)) fail("there is " + Json::shown(name) + ", which it does not have");
    };
    for (const auto& [name, tensor] : tensors) check(name);
    for (const auto& [name, layer] : layers) check(name);
    return entries;
}

void PackedFile::check_values(const std::map<std::string, Entry>& entries, uint32_t checksum, const Json* expected) const {
    const Crc crc;
    std::string fault;
    std::vector<char> piece;
    for (const auto& [name, tensor] : tensors) {
        const Entry& entry = entries.at(name);
        checksum = crc.add(checksum, name + (tensor.is_codes ? " uint8 " : " float32 ") + shape_text(tensor.shape));
        const int64_t row = tensor.is_codes ? std::max<int64_t>(1, tensor.shape.back()) : 4;
        bool is_finite = true, is_spare = true;
        float lowest = INFINITY;
        const int64_t step = std::max<int64_t>(1, PIECE / row) * row;
        for (int64_t at = tensor.begin; at < tensor.end; at += step) {
            const int64_t count = std::min(step, tensor.end - at);
            piece.resize(size_t(count));
            source->read(data + at, count, piece.data());
            checksum = crc.add(checksum, piece.data(), size_t(count));
            if (!tensor.is_codes) {
                for (int64_t n = 0; n < count; n += 4) {
                    float value;
                    std::memcpy(&value, &piece[size_t(n)], 4);
                    is_finite &= std::isfinite(value);
                    lowest = value < lowest ? value : lowest;
                }
            } else if (entry.spare) {
                for (int64_t n = row - 1; n < count; n += row) is_spare &= (uint8_t(piece[size_t(n)]) >> (8 - entry.spare)) == 0;
            }
        }
        if (!fault.empty()) continue;
        if (!is_spare) fault = name + " has bits set after the last weight of a row";
        if (!is_finite) fault = name + " holds NaN or infinite values";
        if (entry.values == Values::positive && lowest <= 0) fault = name + " holds " + Json::shown(double(lowest)) + ", but must be positive";
        if (entry.values == Values::not_negative && lowest < 0)
            fault = name + " holds " + Json::shown(double(lowest)) + ", but must not be negative";
    }
    if (expected->kind != Json::integer || expected->whole != int64_t(checksum))
        fail("was altered after it was written: the checksum is wrong; pack the checkpoint again");
    if (!fault.empty()) fail("is not valid: " + fault);
}

std::vector<float> PackedFile::floats(const std::string& name, int64_t first, int64_t count) const {
    std::vector<float> values(static_cast<size_t>(count));
    source->read(data + tensors.at(name).begin + 4 * first, 4 * count, values.data());
    return values;
}

std::vector<uint8_t> PackedFile::codes(const std::string& name) const {
    const Tensor& tensor = tensors.at(name);
    std::vector<uint8_t> values(size_t(tensor.count()));
    source->read(data + tensor.begin, tensor.end - tensor.begin, values.data());
    return values;
}

}  // namespace superbit
