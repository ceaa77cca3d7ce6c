import CMetalCandle

/// How to generate an answer. What is nil is as the model's own `generation_config.json` says.
public struct ResponseOptions: Sendable {
    /// The most tokens; nil = until the model ends its answer or the context is full.
    public var maximumTokens: Int?
    /// How random the choice of tokens is, from 0; 0 = always the most probable one.
    public var temperature: Double?
    /// Only this many most probable tokens are chosen from; 0 = all.
    public var topK: Int?
    /// Only the fewest most probable tokens whose probabilities sum to this are chosen from; above 0, up to 1.
    public var topP: Double?
    /// Only tokens with at least this times the probability of the most probable one are chosen from; 0 to 1.
    public var minP: Double?
    /// Makes tokens that occurred less probable.
    public var repetitionPenalty: RepetitionPenalty?
    /// Subtracted from a token's logit for each time it occurs in the answer.
    public var frequencyPenalty: Double?
    /// Subtracted from the logit of each token that occurs in the answer.
    public var presencePenalty: Double?
    /// Added to the logits of single tokens; minus infinity = never this one.
    public var logitBias: [UInt32: Float]
    /// Makes sampling repeat: the same seed, options, prompt, model and device give the same answer.
    public var seed: UInt64?
    /// Texts that end the answer where they appear; it ends before them.
    public var stops: [String]
    /// A JSON Schema that the answer conforms to, whatever the sampling; its properties come in the schema's order. The model does not
    /// see it: a prompt that asks for it gives better answers.
    public var jsonSchema: String?
    /// Whether the answer calls tools.
    public var toolChoice: ToolChoice?
    /// How many tokens a thought may have: then the model's own mark closes it; nil = as many as the model likes.
    public var reasoningBudget: Int?
    /// How the answer is told apart into text, thoughts and calls, such as `hermes`, or `none`; nil = as the chat template says.
    public var answerFormat: String?
    /// An adapter for this answer, in place of the session's own.
    public var adapter: AttachedAdapter?
    /// Several adapters at once, in place of ``adapter``: their changes add up.
    public var adapters: [AttachedAdapter]
    /// Hears how far the evaluation of the prompt is, on another thread: from 0, never falling, to all of it.
    public var prefillProgress: (@Sendable (PrefillProgress) -> Void)?
    /// Options as JSON, by the names that `mc_generate_options_set_json` of the C interface tells; they count more than those here.
    public var json: String?

    /// Whether an answer calls tools of its session.
    public enum ToolChoice: Sendable, Hashable {
        /// The model chooses.
        case auto
        /// It calls none.
        case none
        /// The answer consists of calls, whose arguments conform to the tools' schemas, whatever the sampling.
        case required
        /// The answer is one such call of this tool.
        case tool(String)

        fileprivate var native: String {
            switch self {
            case .auto: "auto"
            case .none: "none"
            case .required: "required"
            case .tool(let name): name
            }
        }
    }

    /// Divides the logits of tokens that occurred if they are positive, and multiplies them otherwise.
    public struct RepetitionPenalty: Sendable, Hashable {
        /// Above 0; 1 = off.
        public var penalty: Double
        /// How many of the last tokens count, prompt and answer; 0 = all.
        public var window: Int

        /// Makes a penalty.
        public init(_ penalty: Double, window: Int = 0) {
            self.penalty = penalty
            self.window = window
        }
    }

    /// Makes options; what is not given is as the model says.
    public init(
        maximumTokens: Int? = nil, temperature: Double? = nil, topK: Int? = nil, topP: Double? = nil, minP: Double? = nil,
        repetitionPenalty: RepetitionPenalty? = nil, frequencyPenalty: Double? = nil, presencePenalty: Double? = nil,
        logitBias: [UInt32: Float] = [:], seed: UInt64? = nil, stops: [String] = [], jsonSchema: String? = nil,
        toolChoice: ToolChoice? = nil, reasoningBudget: Int? = nil, answerFormat: String? = nil, adapter: AttachedAdapter? = nil,
        json: String? = nil, adapters: [AttachedAdapter] = [], prefillProgress: (@Sendable (PrefillProgress) -> Void)? = nil
    ) {
        self.maximumTokens = maximumTokens
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.minP = minP
        self.repetitionPenalty = repetitionPenalty
        self.frequencyPenalty = frequencyPenalty
        self.presencePenalty = presencePenalty
        self.logitBias = logitBias
        self.seed = seed
        self.stops = stops
        self.jsonSchema = jsonSchema
        self.toolChoice = toolChoice
        self.reasoningBudget = reasoningBudget
        self.answerFormat = answerFormat
        self.adapter = adapter
        self.json = json
        self.adapters = adapters
        self.prefillProgress = prefillProgress
    }

    func native(_ cancel: CancelFlag) throws -> Handle {
        let handle = Handle(mc_generate_options_new(), free: mc_generate_options_free)
        let options = handle.pointer
        mc_generate_options_set_cancel(options, cancel.pointer)
        if let maximumTokens {
            try requirePositive(maximumTokens, "maximumTokens")
            mc_generate_options_set_max_tokens(options, maximumTokens)
        }
        if let temperature { mc_generate_options_set_temperature(options, temperature) }
        if let topK {
            try requireNotNegative(topK, "topK")
            mc_generate_options_set_top_k(options, topK)
        }
        if let topP { mc_generate_options_set_top_p(options, topP) }
        if let minP { mc_generate_options_set_min_p(options, minP) }
        if let repetitionPenalty {
            try requireNotNegative(repetitionPenalty.window, "repetitionPenalty.window")
            mc_generate_options_set_repetition_penalty(options, repetitionPenalty.penalty, repetitionPenalty.window)
        }
        if let frequencyPenalty { mc_generate_options_set_frequency_penalty(options, frequencyPenalty) }
        if let presencePenalty { mc_generate_options_set_presence_penalty(options, presencePenalty) }
        for (token, bias) in logitBias { mc_generate_options_add_logit_bias(options, token, bias) }
        if let seed { mc_generate_options_set_seed(options, seed) }
        for stop in stops { stop.withBytes { mc_generate_options_add_stop(options, $0, $1) } }
        jsonSchema?.withBytes { mc_generate_options_set_json_schema(options, $0, $1) }
        if let toolChoice {
            try requireNoNUL(toolChoice.native, "toolChoice")
            mc_generate_options_set_tool_choice(options, toolChoice.native)
        }
        if let reasoningBudget {
            try requireNotNegative(reasoningBudget, "reasoningBudget")
            mc_generate_options_set_reasoning_budget(options, reasoningBudget)
        }
        if let answerFormat {
            try requireNoNUL(answerFormat, "answerFormat")
            mc_generate_options_set_answer_format(options, answerFormat)
        }
        if let adapter { mc_generate_options_set_lora(options, adapter.adapter.handle.pointer, adapter.scale) }
        if !adapters.isEmpty {
            let loras: [OpaquePointer?] = adapters.map(\.adapter.handle.pointer)
            mc_generate_options_set_loras(options, loras, adapters.map(\.scale), adapters.count)
        }
        json?.withBytes { mc_generate_options_set_json(options, $0, $1) }
        return handle
    }
}

/// How far the evaluation of a prompt is.
public struct PrefillProgress: Sendable, Hashable {
    /// Tokens that are evaluated.
    public let tokens: Int
    /// Tokens that are new to the session.
    public let total: Int

    /// The same as a share, 0 to 1.
    public var fraction: Double { total > 0 ? Double(tokens) / Double(total) : 1 }
}

extension PrefillProgress {
    /// The most tokens that the library evaluates at once: pieces of this size are as fast as the whole.
    private static let piece = 512

    /// Makes a session hold a prompt, in pieces, and tells of each.
    static func prefill(
        _ session: OpaquePointer, _ prompt: [UInt32], _ cancel: CancelFlag, tell: @Sendable (PrefillProgress) -> Void
    ) throws {
        let held = try [UInt32](made: { mc_session_tokens(session, $0, $1) })
        // The last token is evaluated in any case: the answer begins with what stands behind it.
        let common = min(zip(held, prompt).prefix { $0 == $1 }.count, max(prompt.count - 1, 0))
        let new = prompt[common...]
        if common < held.count { try call { mc_session_truncate(session, common, $0) } }
        tell(PrefillProgress(tokens: 0, total: new.count))
        for start in stride(from: 0, to: new.count, by: piece) {
            let tokens = new.dropFirst(start).prefix(piece)
            try call { error in
                tokens.withUnsafeBufferPointer {
                    mc_session_append_tokens(session, $0.baseAddress, $0.count, cancel.pointer, error)
                }
            }
            tell(PrefillProgress(tokens: start + tokens.count, total: new.count))
        }
    }
}
