import Foundation
import MetalCandle
import Observation

/// A conversation on the screen.
@MainActor @Observable public final class ChatModel {
    /// One bubble.
    public struct Message: Identifiable, Sendable, Hashable {
        public let id: Int
        public let isFromPerson: Bool
        public var text: String
    }

    public private(set) var messages: [Message] = []
    /// What the person is typing.
    public var draft = ""
    /// Why the last answer ended, in words; nil while one is made, and where it ended by itself.
    public private(set) var stopReason: String?
    /// The speed of the last answer.
    public private(set) var tokensPerSecond: Double?

    private let session: ChatSession
    private var answering: Task<Void, Never>?

    public init(_ model: LanguageModel, instructions: String? = nil, options: ResponseOptions = ResponseOptions()) {
        session = ChatSession(model, instructions: instructions, options: options)
    }

    public var isResponding: Bool { answering != nil }
    public var canSend: Bool { !isResponding && !draft.trimmingCharacters(in: .whitespacesAndNewlines).isEmpty }

    /// Sends the draft.
    public func send() {
        guard canSend else { return }
        let question = draft.trimmingCharacters(in: .whitespacesAndNewlines)
        draft = ""
        (stopReason, tokensPerSecond) = (nil, nil)
        append(question, isFromPerson: true)
        append("", isFromPerson: false)
        answering = Task {
            await answer(question)
            answering = nil
        }
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
        (messages, stopReason, tokensPerSecond) = ([], nil, nil)
    }

    /// Waits until nothing is being answered any more.
    public func finish() async { await answering?.value }

    /// The adapters that answers are made with.
    public var adapters: [AttachedAdapter] {
        get { session.adapters }
        set { session.adapters = newValue }
    }

    private func answer(_ question: String) async {
        do {
            for try await event in session.streamResponse(to: question) {
                switch event {
                case .text(let piece): messages[messages.count - 1].text += piece
                case .reasoning: break  // a thought is not shown
                case .toolCall, .rejectedToolCall: break  // the session has no tools
                case .finished(let completion):
                    tokensPerSecond = completion.tokensPerSecond
                    stopReason = completion.finishReason.words
                }
            }
        } catch {
            stopReason = error is CancellationError ? "Stopped" : error.localizedDescription
            // The session forgets a question without an answer, and so does the screen.
            if messages.last?.text == "" { messages.removeLast() }
        }
    }

    private func append(_ text: String, isFromPerson: Bool) {
        messages.append(Message(id: messages.count, isFromPerson: isFromPerson, text: text))
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
