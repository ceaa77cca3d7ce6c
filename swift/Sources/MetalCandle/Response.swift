import CMetalCandle

/// A whole answer.
public struct Response: Sendable, Hashable {
    /// The text, without thoughts and calls.
    public var text: String
    /// The model's thoughts; empty if it told none.
    public var reasoning: String
    /// The tools that the model calls, if it was given any.
    public var toolCalls: [ToolCall]
    /// How the answer ended, and what it cost.
    public var completion: Completion
}

/// What a ``ResponseStream`` is made of.
public enum GenerationEvent: Sendable, Hashable {
    /// More text: whole characters, never empty.
    case text(String)
    /// More of the model's thoughts, without the marks around them.
    case reasoning(String)
    /// The model calls a tool: the call is whole.
    case toolCall(ToolCall)
    /// What began as a call is none, and follows as text; or the answer ended within it.
    case rejectedToolCall
    /// The end, once and last.
    case finished(Completion)
}

/// How an answer ended, and what it cost.
public struct Completion: Sendable, Hashable {
    /// Why an answer ended.
    public enum FinishReason: Sendable, Hashable {
        /// The model ended it, or its JSON schema lets nothing follow.
        case endOfText
        /// One of ``ResponseOptions/stops`` appeared.
        case stopText
        /// ``ResponseOptions/maximumTokens`` were generated.
        case maximumTokens
        /// The context is full.
        case contextFull
        /// Another reason, of a later version of the library.
        case other
    }

    /// Why it ended.
    public let finishReason: FinishReason
    /// How many tokens stood before the answer.
    public let promptTokens: Int
    /// The answer's tokens, with the one that ended it.
    public let tokens: [UInt32]
    /// How long the evaluation of what was new in the prompt took.
    public let prefillTime: Duration
    /// How long generating took.
    public let decodeTime: Duration

    /// The speed of generating; 0 if it took no time.
    public var tokensPerSecond: Double {
        let seconds = decodeTime / .seconds(1)
        return seconds > 0 ? Double(tokens.count) / seconds : 0
    }

    init(_ generation: OpaquePointer) {
        finishReason = switch mc_generation_finish_reason(generation) {
        case .MC_FINISH_EOS: .endOfText
        case .MC_FINISH_STOP_TEXT: .stopText
        case .MC_FINISH_MAX_TOKENS: .maximumTokens
        case .MC_FINISH_CONTEXT_FULL: .contextFull
        default: .other
        }
        promptTokens = mc_generation_prompt_tokens(generation)
        tokens = Array(
            UnsafeBufferPointer(start: mc_generation_tokens(generation), count: mc_generation_tokens_len(generation)))
        prefillTime = .seconds(mc_generation_prefill_seconds(generation))
        decodeTime = .seconds(mc_generation_decode_seconds(generation))
    }
}
