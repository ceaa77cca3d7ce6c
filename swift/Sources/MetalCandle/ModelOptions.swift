import CMetalCandle
import Foundation

/// How to load a model.
public struct ModelOptions: Sendable {
    /// The type that weights are kept in.
    public enum WeightType: Sendable, Hashable, CaseIterable {
        /// 32-bit floating point.
        case float32
        /// 16-bit IEEE floating point.
        case float16
        /// 16-bit brain floating point.
        case bfloat16
    }

    /// What weight matrices are made smaller with while they are loaded, at a small loss of precision.
    public enum Quantization: String, Sendable, Hashable, CaseIterable {
        /// 32 neighbours become a byte each and a common 16-bit scale: 8.5 bits a weight.
        case q8_0
        /// Six bits with scales of two levels: 6.6 bits a weight.
        case q6_k
        /// Five bits with scales and minima of two levels, and six where errors cost most: 5.6 to 6.6 bits a weight.
        case q5_k_m
        /// Four bits with scales and minima of two levels, and six where errors cost most: 4.6 to 6.6 bits a weight.
        case q4_k_m
        /// Four bits and a common 16-bit scale of 32 neighbours: 4.5 bits a weight.
        case q4_0
        /// The same with levels that lie closer around zero.
        case iq4_nl
        /// Four bits, a scale and a bias of 64 neighbours, as MLX has them: 4.5 bits a weight.
        case mlx4
    }

    /// What sessions keep the keys and values of tokens in: the memory that grows with a context.
    public enum KVCache: String, Sendable, Hashable, CaseIterable {
        /// As they are computed.
        case f32
        /// Rounded to 16-bit floating point: half of the memory of 32 bits.
        case f16
        /// 32 neighbours become a byte each and a common 16-bit scale: 0.27 of the memory of 32 bits. On the processor only.
        case q8_0
    }

    /// Where the model runs; nil = the best device. In the simulator that is the processor.
    public var device: ComputeDevice?
    /// The type to keep weights in; nil = as stored.
    public var weightType: WeightType?
    /// What to make weight matrices smaller with; nil = as stored. Such a model does all that others do, on every device.
    public var quantization: Quantization?
    /// Whether quantised weights compute as the 32-bit numbers that they stand for, on the processor. That is two to four times slower
    /// than the usual way, which rounds activations and changes answers less than quantising has changed them.
    public var isExact: Bool
    /// What sessions keep the keys and values of tokens in; nil = as they are computed. Loading throws ``MetalCandleError`` with
    /// `.unsupported` for blocks of bytes on a GPU, and for a narrower type where a model only embeds.
    public var kvCache: KVCache?
    /// The longest context that sessions may have, in tokens; nil = the model's own.
    public var maximumContext: Int?
    /// A `tokenizer.json`, a directory with one, or a `.gguf` file, in place of the model's.
    public var tokenizer: URL?
    /// Options as JSON, by the names that `mc_model_options_set_json` of the C interface tells; they count more than those here.
    public var json: String?

    /// Makes options; what is not given is as the model says.
    public init(
        device: ComputeDevice? = nil, weightType: WeightType? = nil, quantization: Quantization? = nil, isExact: Bool = false,
        kvCache: KVCache? = nil, maximumContext: Int? = nil, tokenizer: URL? = nil, json: String? = nil
    ) {
        self.device = device
        self.weightType = weightType
        self.quantization = quantization
        self.isExact = isExact
        self.kvCache = kvCache
        self.maximumContext = maximumContext
        self.tokenizer = tokenizer
        self.json = json
    }

    func native() throws -> Handle {
        let options = Handle(mc_model_options_new(), free: mc_model_options_free)
        if let device = try device ?? Self.defaultDevice() { mc_model_options_set_device(options.pointer, device.handle.pointer) }
        if let weightType { mc_model_options_set_dtype(options.pointer, weightType.native) }
        if let quantization { mc_model_options_set_quantization(options.pointer, quantization.rawValue) }
        mc_model_options_set_exact(options.pointer, isExact)
        if let kvCache { mc_model_options_set_kv_cache(options.pointer, kvCache.rawValue) }
        if let maximumContext {
            try requirePositive(maximumContext, "maximumContext")
            mc_model_options_set_max_context(options.pointer, maximumContext)
        }
        if let tokenizer { mc_model_options_set_tokenizer_path(options.pointer, try tokenizer.nativePath("tokenizer")) }
        json?.withBytes { mc_model_options_set_json(options.pointer, $0, $1) }
        return options
    }

    /// The simulator's GPU lacks what the kernels need.
    private static func defaultDevice() throws -> ComputeDevice? {
        #if targetEnvironment(simulator)
        try ComputeDevice(.cpu)
        #else
        nil
        #endif
    }
}

/// A repository of the Hugging Face Hub, and where its files are kept.
public struct HubModel: Sendable, Hashable {
    /// `owner/name`.
    public var repository: String
    /// A branch, tag or commit.
    public var revision: String
    /// Which GGUF file, where the repository has several: `model-Q4_K_M.gguf`. nil = its safetensors, or the one GGUF file there is; of
    /// several the one whose name says `Q4_K_M`.
    public var file: String?
    /// The access token for private and gated repositories. Tokens stored on this machine are not looked for.
    public var token: String?
    /// Where downloads are kept, in the layout of Hugging Face's own cache; nil = that cache, in the home directory.
    public var cache: URL?
    /// Whether to do with what was downloaded before.
    public var isOffline: Bool

    /// Names a repository.
    public init(
        _ repository: String, revision: String = "main", file: String? = nil, token: String? = nil, cache: URL? = nil,
        isOffline: Bool = false
    ) {
        self.repository = repository
        self.revision = revision
        self.file = file
        self.token = token
        self.cache = cache
        self.isOffline = isOffline
    }

    func set(_ options: OpaquePointer) throws {
        for (name, text) in [("repository", repository), ("revision", revision), ("file", file ?? ""), ("token", token ?? "")] {
            try requireNoNUL(text, name)
        }
        mc_model_options_set_hub_revision(options, revision)
        if let file { mc_model_options_set_file(options, file) }
        if let token { mc_model_options_set_hub_token(options, token) }
        if let cache { mc_model_options_set_hub_cache_dir(options, try cache.nativePath("cache")) }
        mc_model_options_set_offline(options, isOffline)
    }
}

/// How far the loading of a model is.
public struct LoadProgress: Sendable, Hashable {
    /// What is being done.
    public enum Phase: Sendable, Hashable {
        /// Files are downloaded.
        case downloading
        /// Weights are read.
        case reading
        /// The device's kernels are compiled.
        case compiling
    }

    /// What is being done.
    public let phase: Phase
    /// Of the whole, 0 to 1.
    public let fraction: Double
}

/// What a model is.
public struct ModelInfo: Sendable, Hashable {
    /// `model_type` of its `config.json`, such as `qwen2`.
    public let architecture: String
    /// The longest context, in tokens.
    public let contextLength: Int
    /// How many token ids the network knows.
    public let vocabularySize: Int
    /// The width of the network, in numbers a token.
    public let hiddenSize: Int
    /// How many layers the network has.
    public let layerCount: Int
    /// How many weights the network has; shared ones count once.
    public let parameterCount: UInt64
    /// The type of the weights as loaded.
    public let weightType: ModelOptions.WeightType
    /// Whether it generates text.
    public let generatesText: Bool
    /// Whether it embeds text.
    public let embedsText: Bool
    /// Whether it tells how well documents answer a query.
    public let ranksDocuments: Bool
    /// Whether it runs with LoRA adapters.
    public let supportsAdapters: Bool
    /// Whether LoRA adapters can be trained on it.
    public let supportsTraining: Bool
    /// Whether its files have a chat template, without which there are no chats.
    public let hasChatTemplate: Bool

    init(_ model: OpaquePointer) {
        architecture = String(cString: mc_model_architecture(model))
        contextLength = mc_model_context_length(model)
        vocabularySize = mc_model_vocab_size(model)
        hiddenSize = mc_model_hidden_size(model)
        layerCount = mc_model_layer_count(model)
        parameterCount = mc_model_parameter_count(model)
        weightType = ModelOptions.WeightType.allCases.first { $0.native == mc_model_dtype(model) } ?? .float32
        generatesText = mc_model_supports(model, .MC_CAPABILITY_GENERATE)
        embedsText = mc_model_supports(model, .MC_CAPABILITY_EMBED)
        ranksDocuments = mc_model_supports(model, .MC_CAPABILITY_RERANK)
        supportsAdapters = mc_model_supports(model, .MC_CAPABILITY_LORA)
        supportsTraining = mc_model_supports(model, .MC_CAPABILITY_TRAIN)
        hasChatTemplate = mc_model_supports(model, .MC_CAPABILITY_CHAT_TEMPLATE)
    }
}

extension ModelOptions.WeightType {
    var native: mc_dtype {
        switch self {
        case .float32: .MC_DTYPE_F32
        case .float16: .MC_DTYPE_F16
        case .bfloat16: .MC_DTYPE_BF16
        }
    }
}
