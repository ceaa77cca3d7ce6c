import CMetalCandle
import Foundation
import Observation
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
///
/// A view that shows a session is drawn anew when it changes: ``history``, ``partialAnswer``, ``isResponding`` and ``adapters`` can be
/// observed.
public final class ChatSession: Sendable, Observable {
    /// The model that answers.
    public let model: LanguageModel
    /// How answers are generated where a call does not say.
    public let options: ResponseOptions

    let tools: [ToolDefinition]
    let templateVariables: [String: String]
    let initial: [ChatMessage]
    private let state: Mutex<State>
    private let observers = ObservationRegistrar()

    private struct State {
        var history: [ChatMessage]
        var adapters: [AttachedAdapter]
        var isResponding = false
        var partialAnswer: ChatMessage?
        /// How much of the history the answer in the making stands behind.
        var kept = 0
    }

    /// What a turn goes on behind.
    fileprivate enum Ground: Sendable {
        case everything
        /// The last message that is not the model's own.
        case lastQuestion
        /// What stands before a message of the person.
        case before(Int)
    }

    /// Begins a conversation, or goes on with a stored one.
    ///
    /// - Parameters:
    ///   - model: the model that answers.
    ///   - instructions: what a system message tells the model; nil = what its chat template says by itself.
    ///   - history: what was said before.
    ///   - tools: what the model may call, in the format that its chat template tells of, or ``ResponseOptions/answerFormat``.
    ///   - templateVariables: variables of the model's chat template with their values in JSON, such as `["enable_thinking": "false"]`.
    ///   - adapters: what answers are made with; their changes add up.
    ///   - options: how answers are generated.
    public convenience init(
        _ model: LanguageModel, instructions: String? = nil, history: [ChatMessage] = [], tools: [ToolDefinition] = [],
        templateVariables: [String: String] = [:], adapters: [AttachedAdapter] = [], options: ResponseOptions = ResponseOptions()
    ) {
        let initial = (instructions.map { [.system($0)] } ?? []) + history
        self.init(
            model, initial: initial, history: initial, tools: tools, templateVariables: templateVariables, adapters: adapters,
            options: options)
    }

    /// - Parameter initial: what ``reset()`` goes back to.
    init(
        _ model: LanguageModel, initial: [ChatMessage], history: [ChatMessage], tools: [ToolDefinition],
        templateVariables: [String: String], adapters: [AttachedAdapter], options: ResponseOptions
    ) {
        self.model = model
        self.options = options
        self.tools = tools
        self.templateVariables = templateVariables
        self.initial = initial
        state = Mutex(State(history: history, adapters: adapters))
    }

    deinit { model.native.forgetSession(of: ObjectIdentifier(self)) }

    /// What was said so far.
    public var history: [ChatMessage] { observed(\.history) { $0.history } }

    /// Whether an answer is being read.
    public var isResponding: Bool { observed(\.isResponding) { $0.isResponding } }

    /// The answer that is being read, as far as it was; nil while there is none. It joins ``history`` at its end.
    public var partialAnswer: ChatMessage? { observed(\.partialAnswer) { $0.partialAnswer } }

    /// The adapters that answers are made with; their changes add up. Setting them takes effect with the next answer, for which the
    /// conversation is evaluated again.
    public var adapters: [AttachedAdapter] {
        get { observed(\.adapters) { $0.adapters } }
        set { observers.withMutation(of: self, keyPath: \.adapters) { state.withLock { $0.adapters = newValue } } }
    }

    /// Goes back to the beginning of the conversation: the instructions and the history that it was made with.
    ///
    /// - Throws: ``MetalCandleError`` with `.busy` while an answer is being read.
    public func reset() throws {
        try observers.withMutation(of: self, keyPath: \.history) {
            try state.withLock { state in
                guard !state.isResponding else { throw Self.busy }
                state.history = initial
            }
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

    /// Answers with a value of a type that has a schema; else the same.
    public func respond<Value: Decodable & Sendable & SchemaProviding>(
        to prompt: String, as type: Value.Type = Value.self, options: ResponseOptions? = nil
    ) async throws -> Value {
        try await respond(to: prompt, as: type, schema: type.schema.json, options: options)
    }

    /// Answers with the help of tools: what the model calls runs, and the model goes on with the results until it calls nothing more.
    ///
    /// The question, the calls, their results and the answer join ``history`` at the end. To read such an answer piece by
    /// piece, see ``CallableTool/results(of:by:)``.
    ///
    /// - Parameters:
    ///   - prompt: what the person says.
    ///   - tools: what the model may call, in place of the session's own tools. A call of another one is answered with the names that
    ///     there are.
    ///   - maximumRounds: after so many answers that consist of calls there are none to be had any more, and the model must answer.
    ///   - options: how to generate; nil = the session's own. A ``ResponseOptions/toolChoice`` that asks for a call counts once.
    /// - Throws: what a tool throws; ``MetalCandleError``; `CancellationError`. ``history`` is then as it was.
    public func respond(
        to prompt: String, calling tools: [CallableTool], maximumRounds: Int = 8, options: ResponseOptions? = nil
    ) async throws -> Response {
        try requirePositive(maximumRounds, "maximumRounds")
        var options = options ?? self.options
        var messages = [ChatMessage.user(prompt)]
        try claim(.everything)
        do {
            var round = 0
            while true {
                if round == maximumRounds { options.toolChoice = ResponseOptions.ToolChoice.none }
                let response = try await ResponseStream(turn(messages, options, tools.map(\.definition))).collect()
                messages.append(response.message)
                if response.toolCalls.isEmpty {
                    release(messages)
                    return response
                }
                messages += try await CallableTool.results(of: response.toolCalls, by: tools)
                if options.toolChoice != ResponseOptions.ToolChoice.none { options.toolChoice = nil }
                round += 1
            }
        } catch {
            release()
            throw error
        }
    }

    /// Answers the last question again, in place of its answer.
    ///
    /// - Parameter options: how to generate; nil = the session's own. At temperature 0, and with a seed, the answer is the same.
    /// - Throws: ``MetalCandleError``, with `.invalidArgument` if nothing was asked; `CancellationError`. ``history`` is then as it was.
    public func regenerate(options: ResponseOptions? = nil) async throws -> Response {
        try await answer([], options ?? self.options, .lastQuestion) { $0 }
    }

    /// Asks another question in place of one that was asked, and answers it. What was said behind that one is forgotten.
    ///
    /// - Parameters:
    ///   - index: the place in ``history`` of a message of the person.
    ///   - prompt: what the person says instead.
    ///   - options: how to generate; nil = the session's own.
    /// - Throws: ``MetalCandleError``, with `.invalidArgument` for another place; `CancellationError`. ``history`` is then as it was.
    public func edit(at index: Int, to prompt: String, options: ResponseOptions? = nil) async throws -> Response {
        try await answer([.user(prompt)], options ?? self.options, .before(index)) { $0 }
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
        stream(messages, options, .everything)
    }

    /// As ``regenerate(options:)``, piece by piece. If it is left in the middle, what was read stands in place of the old answer.
    public func streamRegeneration(options: ResponseOptions? = nil) -> ResponseStream {
        stream([], options, .lastQuestion)
    }

    /// As ``edit(at:to:options:)``, piece by piece. If it is left in the middle, what was read stands in place of what was said.
    public func streamEdit(at index: Int, to prompt: String, options: ResponseOptions? = nil) -> ResponseStream {
        stream([.user(prompt)], options, .before(index))
    }

    /// A second conversation that begins with the same and goes its own way. What this one has evaluated is not evaluated again. An
    /// answer that is being read stays with this one.
    ///
    /// - Throws: ``MetalCandleError`` with `.outOfMemory`.
    public func fork() async throws -> ChatSession {
        let (history, adapters) = state.withLock { ($0.history, $0.adapters) }
        let fork = ChatSession(
            model, initial: initial, history: history, tools: tools, templateVariables: templateVariables, adapters: adapters,
            options: options)
        try await onQueue { native, owner in
            guard let session = native.existingSession(of: owner) else { return }
            let copy = try Handle(free: mc_session_free) { mc_session_fork(session.pointer, $0, $1) }
            native.adopt(copy, for: ObjectIdentifier(fork))
        }
        return fork
    }

    /// Work on the model's queue with the native session of this conversation, which is not forgotten meanwhile.
    func onQueue(_ work: @escaping @Sendable (NativeModel, ObjectIdentifier) throws -> Void) async throws {
        try await model.native.queue.run { [self] in try work(model.native, ObjectIdentifier(self)) }
    }

    private func stream(_ messages: [ChatMessage], _ options: ResponseOptions?, _ ground: Ground) -> ResponseStream {
        let claim: @Sendable () throws -> Void = { try self.claim(ground) }
        return ResponseStream(turn(messages, options ?? self.options, tools, claim: claim) { end in
            switch end {
            case .finished(let response): self.release(messages + [response.message])
            case .stopped(let answer) where !answer.isEmpty: self.release(messages + [answer.message])
            case .stopped, .failed: self.release()
            }
        })
    }

    private func answer<Value: Sendable>(
        _ messages: [ChatMessage], _ options: ResponseOptions, _ ground: Ground = .everything, read: (Response) throws -> Value
    ) async throws -> Value {
        try claim(ground)
        do {
            let response = try await ResponseStream(turn(messages, options, tools)).collect()
            let value = try read(response)
            release(messages + [response.message])
            return value
        } catch {
            release()
            throw error
        }
    }

    private func claim(_ ground: Ground) throws {
        try observers.withMutation(of: self, keyPath: \.isResponding) {
            try state.withLock { state in
                guard !state.isResponding else { throw Self.busy }
                state.kept = try ground.kept(of: state.history)
                state.isResponding = true
            }
        }
    }

    /// - Parameter said: what joins the history behind what the turn stood on; nil = the history stays as it is.
    private func release(_ said: [ChatMessage]? = nil) {
        observers.withMutation(of: self, keyPath: \.history) {
            observers.withMutation(of: self, keyPath: \.partialAnswer) {
                observers.withMutation(of: self, keyPath: \.isResponding) {
                    state.withLock { state in
                        if let said { state.history = state.history.prefix(state.kept) + said }
                        state.partialAnswer = nil
                        state.isResponding = false
                    }
                }
            }
        }
    }

    private func turn(
        _ messages: [ChatMessage], _ options: ResponseOptions, _ tools: [ToolDefinition],
        claim: @escaping @Sendable () throws -> Void = {}, ended: @escaping @Sendable (Turn.End) -> Void = { _ in }
    ) -> Turn {
        Turn(model: model.native, claim: claim, told: show, ended: ended) { [self] cancel in
            let (history, adapters) = state.withLock { ($0.history.prefix($0.kept), $0.adapters) }
            let chat = try ChatTemplateInput(messages: history + messages, tools: tools, variables: templateVariables).native()
            let session = try model.native.session(of: ObjectIdentifier(self))
            try adapters.attach(to: session.pointer)
            if let tell = options.prefillProgress {
                let model = try model.native.loaded()
                let prompt = try [UInt32](made: { mc_model_encode_chat(model.pointer, chat.pointer, true, $0, $1) })
                try PrefillProgress.prefill(session.pointer, prompt, cancel, tell: tell)
            }
            // Evaluates what is not yet, and says how answers are told apart.
            try call { mc_session_set_chat(session.pointer, chat.pointer, cancel.pointer, $0) }
            let native = try options.native(cancel)
            // Without tools a call is text.
            if tools.isEmpty { mc_generate_options_set_tool_choice(native.pointer, "none") }
            try call { mc_session_begin(session.pointer, native.pointer, $0) }
            return session
        }
    }

    private func show(_ answer: Answer) {
        observers.withMutation(of: self, keyPath: \.partialAnswer) {
            state.withLock { $0.partialAnswer = answer.message }
        }
    }

    private func observed<Value: Sendable>(_ property: KeyPath<ChatSession, Value>, _ read: (State) -> Value) -> Value {
        observers.access(self, keyPath: property)
        return state.withLock { read($0) }
    }

    private static let busy = MetalCandleError(.busy, "session: expected no answer in the making, found one")
}

extension ChatSession.Ground {
    /// How many messages of a history it is.
    fileprivate func kept(of history: [ChatMessage]) throws -> Int {
        switch self {
        case .everything: return history.count
        case .lastQuestion:
            guard let last = history.lastIndex(where: { $0.role != .assistant }), history[last].role != .system else {
                throw MetalCandleError(.invalidArgument, "history: expected a question to answer again, found none")
            }
            return last + 1
        case .before(let index):
            guard history.indices.contains(index), history[index].role == .user else {
                throw MetalCandleError(
                    .invalidArgument, "index: expected the place of a question among \(history.count) messages, found \(index)")
            }
            return index
        }
    }
}

extension Answer {
    fileprivate var message: ChatMessage {
        ChatMessage(.assistant, text, toolCalls: toolCalls, reasoning: reasoning.isEmpty ? nil : reasoning)
    }
}

extension Response {
    fileprivate var message: ChatMessage { Answer(text: text, reasoning: reasoning, toolCalls: toolCalls).message }
}
