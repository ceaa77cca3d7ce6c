import CMetalCandle
import Foundation
import Synchronization

/// A conversation with a model: it remembers what was said, and each turn evaluates only what is new.
///
/// ```swift
/// let session = ChatSession(model, instructions: "Answer in one sentence.")
/// let answer = try await session.respond(to: "What does `Vec::push` do?")
/// print(answer.text)
/// ```
///
/// One answer at a time: a second call meanwhile throws ``MetalCandleError`` with `.busy`. ``history`` holds what was read. An answer
/// that is left in the middle stays as far as it was read; one that fails, or of which nothing was read, leaves no trace.
public final class ChatSession: Sendable {
    /// The model that answers.
    public let model: LanguageModel
    /// How answers are generated where a call does not say.
    public let options: ResponseOptions

    private let tools: [ToolDefinition]
    private let templateVariables: [String: String]
    private let initial: [ChatMessage]
    private let state: Mutex<State>

    private struct State {
        var history: [ChatMessage]
        var adapters: [AttachedAdapter] = []
        var isResponding = false
    }

    /// Begins a conversation, or goes on with a stored one.
    ///
    /// - Parameters:
    ///   - model: the model that answers.
    ///   - instructions: what a system message tells the model; nil = what its chat template says by itself.
    ///   - history: what was said before.
    ///   - tools: what the model may call, in the format that its chat template tells of, or ``ResponseOptions/answerFormat``.
    ///   - templateVariables: variables of the model's chat template with their values in JSON, such as `["enable_thinking": "false"]`.
    ///   - options: how answers are generated.
    public init(
        _ model: LanguageModel, instructions: String? = nil, history: [ChatMessage] = [], tools: [ToolDefinition] = [],
        templateVariables: [String: String] = [:], options: ResponseOptions = ResponseOptions()
    ) {
        self.model = model
        self.options = options
        self.tools = tools
        self.templateVariables = templateVariables
        initial = (instructions.map { [.system($0)] } ?? []) + history
        state = Mutex(State(history: initial))
    }

    deinit { model.native.forgetSession(of: ObjectIdentifier(self)) }

    /// What was said so far.
    public var history: [ChatMessage] { state.withLock { $0.history } }

    /// Whether an answer is being read.
    public var isResponding: Bool { state.withLock { $0.isResponding } }

    /// The adapters that answers are made with; their changes add up. Setting them takes effect with the next answer, for which the
    /// conversation is evaluated again.
    public var adapters: [AttachedAdapter] {
        get { state.withLock { $0.adapters } }
        set { state.withLock { $0.adapters = newValue } }
    }

    /// Goes back to the beginning of the conversation: the instructions and the history that it was made with.
    ///
    /// - Throws: ``MetalCandleError`` with `.busy` while an answer is being read.
    public func reset() throws {
        try state.withLock { state in
            guard !state.isResponding else { throw Self.busy }
            state.history = initial
        }
    }

    /// Answers.
    ///
    /// - Parameters:
    ///   - prompt: what the person says.
    ///   - options: how to generate; nil = the session's own.
    /// - Throws: ``MetalCandleError``; `CancellationError`. ``history`` is then as it was.
    public func respond(to prompt: String, options: ResponseOptions? = nil) async throws -> Response {
        try await respond(to: [.user(prompt)], options: options)
    }

    /// Answers several messages, such as the results of tools.
    public func respond(to messages: [ChatMessage], options: ResponseOptions? = nil) async throws -> Response {
        try await answer(messages, options ?? self.options) { $0 }
    }

    /// Answers with a value: the model can only write JSON that conforms to a schema.
    ///
    /// - Parameters:
    ///   - prompt: what the person says; it should ask for the JSON, since the model does not see the schema.
    ///   - type: what the answer is decoded as.
    ///   - schema: a JSON Schema that fits the type.
    ///   - options: how to generate; nil = the session's own.
    /// - Throws: ``MetalCandleError`` with `.format` if the answer ended before it was complete; `DecodingError` if the schema does not
    ///   fit the type; else as ``ResponseStream/collect()``. ``history`` is then as it was.
    public func respond<Value: Decodable & Sendable>(
        to prompt: String, as type: Value.Type, schema: String, options: ResponseOptions? = nil
    ) async throws -> Value {
        var options = options ?? self.options
        options.jsonSchema = schema
        return try await answer([.user(prompt)], options) { response in
            guard response.completion.finishReason == .endOfText else {
                let (reason, count) = (response.completion.finishReason, response.completion.tokens.count)
                throw MetalCandleError(.format, "answer: expected a whole JSON text, found \(reason) after \(count) tokens")
            }
            return try JSONDecoder().decode(type, from: Data(response.text.utf8))
        }
    }

    /// Answers piece by piece. Work begins with the first piece that is asked for.
    ///
    /// - Parameters:
    ///   - prompt: what the person says.
    ///   - options: how to generate; nil = the session's own.
    public func streamResponse(to prompt: String, options: ResponseOptions? = nil) -> ResponseStream {
        streamResponse(to: [.user(prompt)], options: options)
    }

    /// Answers several messages, such as the results of tools, piece by piece.
    public func streamResponse(to messages: [ChatMessage], options: ResponseOptions? = nil) -> ResponseStream {
        ResponseStream(turn(messages, options ?? self.options, claim: { try self.claim() }) { end in
            switch end {
            case .finished(let response):
                self.release(messages + [response.message])
            case .stopped(let text, let reasoning, let toolCalls) where !text.isEmpty || !reasoning.isEmpty || !toolCalls.isEmpty:
                self.release(messages + [.answer(text, reasoning, toolCalls)])
            case .stopped, .failed:
                self.release([])
            }
        })
    }

    private func answer<Value: Sendable>(
        _ messages: [ChatMessage], _ options: ResponseOptions, read: (Response) throws -> Value
    ) async throws -> Value {
        try claim()
        do {
            let response = try await ResponseStream(turn(messages, options)).collect()
            let value = try read(response)
            release(messages + [response.message])
            return value
        } catch {
            release([])
            throw error
        }
    }

    private func claim() throws {
        try state.withLock { state in
            guard !state.isResponding else { throw Self.busy }
            state.isResponding = true
        }
    }

    /// - Parameter said: what joins the history.
    private func release(_ said: [ChatMessage]) {
        state.withLock { state in
            state.history += said
            state.isResponding = false
        }
    }

    private func turn(
        _ messages: [ChatMessage], _ options: ResponseOptions, claim: @escaping @Sendable () throws -> Void = {},
        ended: @escaping @Sendable (Turn.End) -> Void = { _ in }
    ) -> Turn {
        Turn(model: model.native, claim: claim, ended: ended) { [self] cancel in
            let (history, adapters) = state.withLock { ($0.history, $0.adapters) }
            let chat = try ChatTemplateInput(messages: history + messages, tools: tools, variables: templateVariables).native()
            let session = try model.native.session(of: ObjectIdentifier(self))
            try adapters.attach(to: session.pointer)
            try call { mc_session_set_chat(session.pointer, chat.pointer, cancel.pointer, $0) }
            let native = try options.native(cancel)
            // Without tools a call is text.
            if tools.isEmpty { mc_generate_options_set_tool_choice(native.pointer, "none") }
            try call { mc_session_begin(session.pointer, native.pointer, $0) }
            return session
        }
    }

    private static let busy = MetalCandleError(.busy, "session: expected no answer in the making, found one")
}

extension ChatMessage {
    fileprivate static func answer(_ text: String, _ reasoning: String, _ toolCalls: [ToolCall]) -> ChatMessage {
        ChatMessage(.assistant, text, toolCalls: toolCalls, reasoning: reasoning.isEmpty ? nil : reasoning)
    }
}

extension Response {
    fileprivate var message: ChatMessage { .answer(text, reasoning, toolCalls) }
}
