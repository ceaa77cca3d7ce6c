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
    }

    /// What the person is typing.
    public var draft = ""
    /// Why the last answer ended, in words; nil while one is made, and where it ended by itself.
    public private(set) var stopReason: String?
    /// The speed of the last answer.
    public private(set) var tokensPerSecond: Double?
    /// How much of a long question is read, 0 to 1; nil while nothing is.
    public private(set) var prefill: Double?

    private let session: ChatSession
    /// What stands on the screen before the answer in the making.
    private var asked: [Message]?
    private var answering: Task<Void, Never>?

    public convenience init(_ model: LanguageModel, instructions: String? = nil, options: ResponseOptions = ResponseOptions()) {
        self.init(ChatSession(model, instructions: instructions, options: options))
    }

    /// Goes on with a conversation that was saved.
    public convenience init(
        from directory: URL, _ model: LanguageModel, options: ResponseOptions = ResponseOptions()
    ) async throws {
        self.init(try await ChatSession.load(from: directory, model: model, options: options))
    }

    private init(_ session: ChatSession) { self.session = session }

    public var messages: [Message] {
        guard let asked else { return said }
        return asked + [Message(id: (asked.last?.id ?? -1) + 1, isFromPerson: false, text: session.partialAnswer?.content ?? "")]
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
        guard canRegenerate else { return }
        answer(Array(said.dropLast())) { $0.streamRegeneration(options: $1) }
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
        (stopReason, tokensPerSecond) = (nil, nil)
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
            Message(id: $0, isFromPerson: $1.role == .user, text: $1.content)
        }
    }

    private func ask(_ question: String, at place: Int, _ begin: @escaping (ChatSession, ResponseOptions) -> ResponseStream) {
        answer(said.filter { $0.id < place } + [Message(id: place, isFromPerson: true, text: question)], begin)
    }

    private func answer(_ asked: [Message], _ begin: @escaping (ChatSession, ResponseOptions) -> ResponseStream) {
        self.asked = asked
        (stopReason, tokensPerSecond) = (nil, nil)
        answering = Task {
            var options = session.options
            options.prefillProgress = { [weak self] progress in
                Task { @MainActor in self?.show(progress) }
            }
            await read(begin(session, options))
            (self.asked, prefill, answering) = (nil, nil, nil)
        }
    }

    private func show(_ progress: PrefillProgress) {
        if isResponding, session.partialAnswer == nil { prefill = progress.fraction }
    }

    private func read(_ events: ResponseStream) async {
        do {
            for try await event in events {
                prefill = nil
                // The session tells the rest; it has no tools.
                if case .finished(let completion) = event {
                    tokensPerSecond = completion.tokensPerSecond
                    stopReason = completion.finishReason.words
                }
            }
        } catch {
            stopReason = error is CancellationError ? "Stopped" : error.localizedDescription
            // The session forgets a question without an answer: it can be sent again.
            if let question = asked?.last, draft.isEmpty, !said.contains(question) { draft = question.text }
        }
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
