#include "contents.h"

namespace superbit {
namespace {

using Shape = std::vector<int64_t>;
using std::to_string;

// A linear layer, a convolution or, without a shape, an attention product, in floating point or quantized.
struct Module {
    std::string name, kind;
    Shape shape;
    int64_t groups = 1;
    bool has_bias = true;
    bool after_relu = false;  // its input comes from a ReLU
    std::string choice = "signed";  // the configuration's choice of putting one there
};

class Lister {
  public:
    Lister(const ModelConfig& config, const Contents& found)
        : config(config), front(config.front_end), encoder(config.encoder), dim(config.encoder.dim), found(found) {
        bits = Bits::parse(config.bits);
        for (const auto& [pattern, text] : config.quantization.overrides) overrides.push_back({pattern, Bits::parse(text), false});
    }

    void run() {
        front_end();
        stack();
        if (config.output_map) {
            entry("output_mean", {encoder.layers + 1, dim});
            entry("output_std", {encoder.layers + 1, dim}, Values::positive);
            entry("output_rotation", {dim, dim});
        }
        for (const auto& override : overrides)
            if (!override.is_used) throw InvalidFile("the override '" + override.pattern.substr(0, 100) + "' matches no module of " + config.name);
        if (!is_quantized) throw InvalidFile(config.name + " is not quantized (" + config.bits + ")");
    }

  private:
    struct Override {
        std::string pattern;
        Bits bits;
        bool is_used;
    };

    const ModelConfig& config;
    const FrontEndConfig& front;
    const EncoderConfig& encoder;
    const int64_t dim;
    const Contents& found;
    Bits bits;
    std::vector<Override> overrides;
    bool is_quantized = false;

    void entry(const std::string& name, const Shape& shape, Values values = Values::finite, int spare = 0) {
        found.entry({name, shape, values, spare});
    }

    void norm(const std::string& name, int64_t width) {
        entry(name + ".weight", {width});
        entry(name + ".bias", {width});
    }

    void module(const Module& module) {
        const bool is_product = module.shape.empty();
        const bool is_default = module.kind == "attention" || module.kind == "feed_forward" || module.kind == "convolution";
        Bits own = is_default ? bits : Bits{};
        for (auto& override : overrides)
            if (matches(override.pattern, module.name, module.kind)) own = override.bits, override.is_used = true;
        Layer layer{own, true};
        bool is_layer;
        if (is_product) {
            is_layer = own.activation != 32;
            layer.bits = {own.activation, own.activation};
        } else {
            is_layer = !own.is_float();
            if (is_layer && own.weight == 32)
                throw InvalidFile(module.name + " has bit widths " + own.text() +
                                  ", but a packed layer must have quantized weights");
            layer.is_signed = own.activation == 32 || !(module.after_relu || wants_relu(module.choice, own));
        }
        layer.columns = 1;
        for (size_t n = 1; n < module.shape.size(); ++n) layer.columns *= module.shape[n];
        if (is_layer) {
            is_quantized = true;
            found.layer(module.name, layer);
        }
        const std::string& name = module.name;
        if (is_product) {
            for (const char* operand : {"query", "key", "value", "probability"})
                if (is_layer) entry(name + "." + operand, {}, Values::positive);
            return;
        }
        const int64_t outputs = module.shape[0];
        if (!is_layer) {
            entry(name + ".weight", module.shape);
            if (module.has_bias) entry(name + ".bias", {outputs});
            return;
        }
        const int64_t used = layer.columns * own.weight;
        entry(name + ".codes", {outputs, (used + 7) / 8}, Values::codes, int((8 - used % 8) % 8));
        const bool is_depthwise = module.shape.size() > 2 && module.groups == outputs;
        const bool per_output = config.quantization.weight_scale == "channel" || is_depthwise;
        entry(name + ".weight_scale", per_output ? Shape{outputs} : Shape{}, Values::not_negative);
        entry(name + ".bias", {outputs});
        if (own.activation < 32) entry(name + ".alpha", {}, Values::positive);
        if (own.activation == 1 && layer.is_signed) entry(name + ".beta", {module.shape[1] * module.groups});
    }

    void front_end() {
        const int64_t width = front.width, mels = front.mels;
        const bool is_stem = front.kind == "log_mel" && front.stem == "convolution";
        int64_t inputs = width;
        if (front.kind == "waveform") {
            const bool is_group = front.feature_norm == "group";
            for (int n = 0; n < 7; ++n)
                module({"front_end.convolutions." + to_string(n), "front_end", {width, n ? width : 1, TAPS[n]}, 1, !is_group});
            for (int n = 0; n < (is_group ? 1 : 7); ++n) norm("front_end.norms." + to_string(n), width);
            if (front.projection_norm) norm("front_end.norm", width);
        } else {
            entry("front_end.log_mel.window", {400});
            entry("front_end.log_mel.filters", {257, mels});
            entry("front_end.log_mel.mean", {mels});
            entry("front_end.log_mel.std", {mels}, Values::positive);
            norm("front_end.norm", dim);
            inputs = mels * front.subsampling;
        }
        if (is_stem) {
            module({"front_end.stem.first", "front_end", {width, 1, 3, 3}});
            module({"front_end.stem.depthwise", "front_end", {width, 1, 3, 3}, width, true, true});
            module({"front_end.stem.pointwise", "front_end", {width, width, 1, 1}});
            inputs = width * ((mels + 3) / 4);
        }
        module({"front_end.projection", "front_end", {dim, inputs}, 1, true, is_stem});
    }

    void stack() {
        const bool is_plain = encoder.kind == "transformer" || encoder.kind == "sparseformer";
        if (encoder.positions == "conv")
            module({"encoder.positions.convolution", "positions", {dim, dim / encoder.position_groups, encoder.position_kernel, 1},
                    encoder.position_groups});
        if (is_plain) norm(encoder.norm == "pre" ? "encoder.norm" : "encoder.input_norm", dim);
        if (encoder.kind == "squeezeformer") {
            module({"encoder.reduce_depthwise.convolution", "depthwise", {dim, 1, 5, 1}, dim});
            module({"encoder.reduce_pointwise", "resampling", {dim, dim}});
            module({"encoder.recover", "resampling", {dim, dim}});
        }
        for (int64_t n = 0; n < encoder.layers; ++n) block("encoder.blocks." + to_string(n), is_plain);
    }

    void block(const std::string& name, bool is_plain) {
        attention(name + ".attention");
        std::vector<std::string> norms;
        if (is_plain) {
            feed_forward(name + ".feed_forward");
            norms = {"attention_norm", "feed_forward_norm"};
        } else {
            feed_forward(name + ".first");
            convolution(name + ".convolution");
            feed_forward(name + ".second");
            norms = {"first_norm", "attention_norm", "convolution_norm", "second_norm", "norm"};
        }
        if (encoder.kind == "squeezeformer") {
            norms = {"norms.0", "norms.1", "norms.2", "norms.3"};
            for (int n = 0; n < 4; ++n) {
                entry(name + ".scales." + to_string(n) + ".scale", {dim});
                entry(name + ".scales." + to_string(n) + ".bias", {dim});
            }
        }
        for (const auto& one : norms) norm(name + "." + one, dim);
    }

    void attention(const std::string& name) {
        for (const char* part : {"query", "key", "value", "output"}) module({name + "." + part, "attention", {dim, dim}});
        module({name + ".product", "attention", {}});
        if (encoder.positions == "relative") {
            module({name + ".positions.projection", "positions", {dim, dim}, 1, false});
            entry(name + ".positions.content_bias", {dim});
            entry(name + ".positions.position_bias", {dim});
        }
    }

    void feed_forward(const std::string& name) {
        const int64_t hidden = encoder.feed_forward_dim;
        module({name + ".expand", "feed_forward", {hidden, dim}});
        module({name + ".contract", "feed_forward", {dim, hidden}, 1, true, encoder.activation == "relu",
                config.quantization.feed_forward_input});
    }

    void convolution(const std::string& name) {
        const std::string& choice = config.quantization.convolution_input;
        const int64_t inner = encoder.kind == "conformer" ? dim : 2 * dim;
        module({name + ".expand", "convolution", {2 * dim, dim}});
        module({name + ".depthwise.convolution", "depthwise", {inner, 1, encoder.kernel, 1}, inner, true, false, choice});
        norm(name + ".norm", inner);
        entry(name + ".norm.running_mean", {inner});
        entry(name + ".norm.running_var", {inner}, Values::not_negative);
        module({name + ".contract", "convolution", {dim, inner}, 1, true, false, choice});
    }
};

constexpr size_t MOST_SLOTS = 16, MOST_CLASSES = size_t(1) << 20, LONGEST_NAME = 100;

bool is_printable(const std::string& name) {
    bool all = !name.empty() && name.size() <= LONGEST_NAME;
    for (char c : name) all &= c >= ' ' && c <= '~';
    return all;
}

}  // namespace

std::vector<Slot> read_slots(const Json& head) {
    const Json *task = head.find("task"), *listed = head.find("slots");
    if (task == nullptr || listed == nullptr || head.members.size() != 2)
        throw InvalidFile("the head is not a mapping of task and slots");
    bool is_known = false;
    for (const char* name : {"ks", "ic", "sid", "er"}) is_known |= task->kind == Json::text && task->string == name;
    if (!is_known) throw InvalidFile("the head's task is none of ks, ic, sid, er");
    if (listed->kind != Json::object || listed->members.empty() || listed->members.size() > MOST_SLOTS)
        throw InvalidFile("the head's slots are not a mapping with 1 to 16 names");
    std::vector<Slot> slots;
    for (const auto& [name, classes] : listed->members) {
        if (classes.kind != Json::list || classes.items.empty() || classes.items.size() > MOST_CLASSES)
            throw InvalidFile("the classes of a slot of the head are not a list of 1 to 1048576 names");
        Slot slot{name, {}};
        bool are_names = is_printable(name);
        for (const Json& one : classes.items) {
            are_names &= one.kind == Json::text && is_printable(one.string);
            slot.classes.push_back(one.string);
        }
        if (!are_names) throw InvalidFile("a name in the head is not a text of 1 to 100 printable ASCII characters");
        slots.push_back(std::move(slot));
    }
    return slots;
}

void list_head(const ModelConfig& config, const std::vector<Slot>& slots, const std::function<void(const Entry&)>& entry) {
    int64_t classes = 0;
    for (const Slot& slot : slots) classes += int64_t(slot.classes.size());
    entry({"head.gain", {}, Values::positive});
    entry({"head.layer_weights", {config.encoder.layers + 1}});
    entry({"head.weight", {classes, config.encoder.dim}});
    entry({"head.bias", {classes}});
}

void list_contents(const ModelConfig& config, const Contents& found) { Lister(config, found).run(); }

}  // namespace superbit
