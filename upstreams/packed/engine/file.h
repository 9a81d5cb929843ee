// A packed file: safetensors with a configuration, validated before a tensor is used.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "config.h"
#include "contents.h"

namespace superbit {

// A file that cannot be opened or read. The message is one sentence without the name of the file.
struct CannotRead : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Bytes that are read in pieces, so that a device never holds a whole file in memory.
class Source {
  public:
    virtual ~Source() = default;
    virtual int64_t size() const = 0;
    // Throw CannotRead unless all bytes were read.
    virtual void read(int64_t offset, int64_t count, void* to) const = 0;

    static std::unique_ptr<Source> file(const std::string& path);
    static std::unique_ptr<Source> memory(const void* data, int64_t size);  // which must outlive the source
};

class PackedFile {
  public:
    // Throw InvalidFile if the file is truncated, altered, not a packed file, or not what its configuration describes.
    explicit PackedFile(std::unique_ptr<Source> source);

    ModelConfig config;
    std::string config_text;  // JSON
    std::map<std::string, Layer> layers;
    std::vector<Slot> slots;  // of the head; none without a head

    bool has(const std::string& name) const { return tensors.count(name) > 0; }
    std::vector<float> floats(const std::string& name) const { return floats(name, 0, tensors.at(name).count()); }
    std::vector<float> floats(const std::string& name, int64_t first, int64_t count) const;
    std::vector<uint8_t> codes(const std::string& name) const;
    const std::vector<int64_t>& shape(const std::string& name) const { return tensors.at(name).shape; }

  private:
    struct Tensor {
        bool is_codes = false;
        std::vector<int64_t> shape;
        int64_t begin = 0, end = 0;  // in the data

        int64_t count() const { return (end - begin) / (is_codes ? 1 : 4); }
    };

    void read_header();
    void read_tensors(const Json& header);
    std::map<std::string, Entry> check_contents();
    void check_values(const std::map<std::string, Entry>& entries, uint32_t checksum, const Json* expected) const;

    std::unique_ptr<Source> source;
    int64_t data = 0;  // where the tensors begin
    std::map<std::string, Tensor> tensors;
};

}  // namespace superbit
