import Foundation
import MetalCandle
import Observation

/// A conversation on the screen: what its session holds, and what is being asked and answered.
@MainActor @Observable public final class ChatModel {
    /// One bubble.
    public struct Message: Identifiable, Sendable, Hashable {
        /// Its place in the session's history, or the one that it will have.
        public let id: Int
        public let isFromPerson: Bool
        public var text: String
        /// The tools that the model called.
        public var tools: [String] = []
    }

    /// What the person is typing.
    public var draft = ""
    /// Why the last answer ended, in words; nil while one is made, and where it ended by itself.
    public private(set) var stopReason: String?
    /// The speed of the last answer.
    public private(set) var tokensPerSecond: Double?
    /// How much of a long question is read, 0 to 1; nil while nothing is.
    public private(set) var prefill: Double?
    /// What the conversation is about; nil until it was asked for.
    public private(set) var topic: Topic?

    private let session: ChatSession
    private let tools: [CallableTool]
    /// What stands on the screen before the answer in the making, and the place that this one will have.
    private var asked: (messages: [Message], place: Int)?
    private var answering: Task<Void, Never>?

    /// So many times what tools gave may lead to further calls.
    private static let maximumRounds = 4

    public convenience init(
        _ model: LanguageModel, instructions: String? = nil, tools: [CallableTool] = [], adapters: [AttachedAdapter] = [],
        options: ResponseOptions = ResponseOptions()
    ) {
        let definitions = tools.map(\.definition)
        let session = ChatSession(model, instructions: instructions, tools: definitions, adapters: adapters, options: options)
        self.init(session, tools)
    }

    /// Goes on with a conversation that was saved.
    public convenience init(
        from directory: URL, _ model: LanguageModel, tools: [CallableTool] = [], adapters: [AttachedAdapter] = [],
        options: ResponseOptions = ResponseOptions()
    ) async throws {
        self.init(try await ChatSession.load(from: directory, model: model, adapters: adapters, options: options), tools)
    }

    private init(_ session: ChatSession, _ tools: [CallableTool]) { (self.session, self.tools) = (session, tools) }

    public var messages: [Message] {
        guard let asked else { return said }
        return asked.messages + [Message(id: asked.place, isFromPerson: false, text: session.partialAnswer?.content ?? "")]
    }

    public var isResponding: Bool { answering != nil }
    public var canSend: Bool { !isResponding && !draft.trimmingCharacters(in: .whitespacesAndNewlines).isEmpty }
    public var canRegenerate: Bool { !isResponding && said.last?.isFromPerson == false }

    /// Sends the draft.
    public func send() {
        guard canSend else { return }
        let question = draft.trimmingCharacters(in: .whitespacesAndNewlines)
        draft = ""
        ask(question, at: session.history.count) { $0.streamResponse(to: question, options: $1) }
    }

    /// Answers the last question again.
    public func regenerate() {
        guard canRegenerate, let last = said.last else { return }
        answer(said.dropLast(), at: last.id) { $0.streamRegeneration(options: $1) }
    }

    /// Asks something else in place of a question; what was said behind it is forgotten.
    public func edit(_ message: Message, to question: String) {
        guard !isResponding, message.isFromPerson, !question.isEmpty else { return }
        ask(question, at: message.id) { $0.streamEdit(at: message.id, to: question, options: $1) }
    }

    /// The stop button: the answer stays as far as it came.
    public func stop() { answering?.cancel() }

    /// Begins anew.
    public func reset() async {
        // Another question may be sent before this goes on.
        while isResponding {
            stop()
            await finish()
        }
        // Nothing is being answered now.
        try? session.reset()
        (stopReason, tokensPerSecond, topic) = (nil, nil, nil)
    }

    /// Asks what the conversation is about: a fork of it, so that the conversation itself never hears of that.
    public func findTopic() async {
        guard !isResponding, !said.isEmpty else { return }
        let prompt = "What is this conversation about? Answer with JSON: title, of a few words, and kind."
        // Without one the conversation goes on as well.
        topic = try? await session.fork().respond(
            to: prompt, as: Topic.self, options: ResponseOptions(maximumTokens: 100, temperature: 0))
    }

    /// Keeps the conversation as far as it is answered, and what the model has read of it.
    public func save(to directory: URL) async throws { try await session.save(to: directory) }

    /// Waits until nothing is being answered any more.
    public func finish() async { await answering?.value }

    /// The adapters that answers are made with.
    public var adapters: [AttachedAdapter] {
        get { session.adapters }
        set { session.adapters = newValue }
    }

    private var said: [Message] {
        session.history.enumerated().filter { [.user, .assistant].contains($1.role) }.map {
            Message(id: $0, isFromPerson: $1.role == .user, text: $1.content, tools: $1.toolCalls.map(\.name))
        }
    }

    private func ask(_ question: String, at place: Int, _ begin: @escaping (ChatSession, ResponseOptions) -> ResponseStream) {
        let question = Message(id: place, isFromPerson: true, text: question)
        answer(said.filter { $0.id < place } + [question], at: place + 1, begin)
    }

    private func answer(_ messages: [Message], at place: Int, _ begin: @escaping (ChatSession, ResponseOptions) -> ResponseStream) {
        asked = (messages, place)
        (stopReason, tokensPerSecond) = (nil, nil)
        answering = Task {
            var options = session.options
            options.prefillProgress = { [weak self] progress in
                Task { @MainActor in self?.show(progress) }
            }
            await read(begin(session, options), options)
            (asked, prefill, answering) = (nil, nil, nil)
        }
    }

    private func show(_ progress: PrefillProgress) {
        if isResponding, session.partialAnswer == nil { prefill = progress.fraction }
    }

    /// Reads an answer, runs the tools that it calls, and reads what the model makes of their results.
    private func read(_ first: ResponseStream, _ options: ResponseOptions) async {
        do {
            var (stream, options) = (first, options)
            for round in 1... {
                let calls = try await calls(of: stream)
                if calls.isEmpty { return }
                let results = try await CallableTool.results(of: calls, by: tools)
                asked = (said, session.history.count + results.count)
                // What had to be called was called.
                options.toolChoice = round < Self.maximumRounds ? nil : ResponseOptions.ToolChoice.none
                stream = session.streamResponse(to: results, options: options)
            }
        } catch {
            stopReason = error is CancellationError ? "Stopped" : error.localizedDescription
            // The session forgets a question without an answer: it can be sent again.
            if let question = asked?.messages.last, question.isFromPerson, draft.isEmpty, !said.contains(question) { draft = question.text }
        }
    }

    private func calls(of stream: ResponseStream) async throws -> [ToolCall] {
        var calls: [ToolCall] = []
        for try await event in stream {
            prefill = nil
            switch event {
            case .toolCall(let call): calls.append(call)
            case .finished(let completion): (tokensPerSecond, stopReason) = (completion.tokensPerSecond, completion.finishReason.words)
            case .text, .reasoning, .rejectedToolCall: break  // the session tells
            }
        }
        return calls
    }
}

extension Completion.FinishReason {
    /// nil for an answer that ended by itself.
    fileprivate var words: String? {
        switch self {
        case .endOfText, .stopText: nil
        case .maximumTokens: "The answer reached its limit"
        case .contextFull: "The conversation is too long for the model"
        case .other: "The answer ended early"
        }
    }
}
