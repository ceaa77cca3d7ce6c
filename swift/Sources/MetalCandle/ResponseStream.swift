import CMetalCandle
import Synchronization

/// An answer in the making, as a sequence of events.
///
/// ```swift
/// for try await event in session.streamResponse(to: "What does `Vec::push` do?") {
///     if case .text(let piece) = event { print(piece, terminator: "") }
/// }
/// ```
///
/// Work begins with the first event that is asked for, and is one token ahead of the reader. It stops within a token when the loop is
/// left or its task is cancelled; a cancelled task gets `CancellationError`, never half an answer as if it were whole. It can be read
/// once.
public struct ResponseStream: AsyncSequence, Sendable {
    /// A piece of the answer.
    public typealias Element = GenerationEvent

    private let turn: Turn

    init(_ turn: Turn) { self.turn = turn }

    /// Begins to read.
    public func makeAsyncIterator() -> Iterator { Iterator(Reader(turn)) }

    /// Reads the answer; when it is dropped, the answer ends.
    public struct Iterator: AsyncIteratorProtocol {
        private let reader: Reader

        fileprivate init(_ reader: Reader) { self.reader = reader }

        /// The next event; nil after ``GenerationEvent/finished(_:)``.
        public mutating func next() async throws -> GenerationEvent? {
            try await reader.next(isolation: nil)
        }

        /// The next event; nil after ``GenerationEvent/finished(_:)``.
        public mutating func next(isolation actor: isolated (any Actor)?) async throws -> GenerationEvent? {
            try await reader.next(isolation: actor)
        }
    }

    /// The text so far, each time that it grew, as a view shows it.
    public var snapshots: Snapshots { Snapshots(stream: self) }

    /// Reads the answer to its end.
    ///
    /// - Throws: ``MetalCandleError``; `CancellationError`.
    public func collect() async throws -> Response {
        var answer = Answer()
        for try await event in self {
            answer.add(event)
            if case .finished(let completion) = event { return answer.finished(completion) }
        }
        throw MetalCandleError(.panic, "an answer ended without its last event")
    }

    /// The text so far, each time that it grew.
    public struct Snapshots: AsyncSequence, Sendable {
        fileprivate let stream: ResponseStream

        /// Begins to read.
        public func makeAsyncIterator() -> Iterator { Iterator(events: stream.makeAsyncIterator()) }

        /// Reads the text.
        public struct Iterator: AsyncIteratorProtocol {
            fileprivate var events: ResponseStream.Iterator
            private var text = ""

            fileprivate init(events: ResponseStream.Iterator) { self.events = events }

            /// The text so far; nil when it is whole.
            public mutating func next() async throws -> String? { try await next(isolation: nil) }

            /// The text so far; nil when it is whole.
            public mutating func next(isolation actor: isolated (any Actor)?) async throws -> String? {
                while let event = try await events.next(isolation: actor) {
                    guard case .text(let piece) = event else { continue }
                    text += piece
                    return text
                }
                return nil
            }
        }
    }
}

/// An answer as far as it was read.
struct Answer: Sendable {
    var text = ""
    var reasoning = ""
    var toolCalls: [ToolCall] = []

    var isEmpty: Bool { text.isEmpty && reasoning.isEmpty && toolCalls.isEmpty }

    mutating func add(_ event: GenerationEvent) {
        switch event {
        case .text(let piece): text += piece
        case .reasoning(let piece): reasoning += piece
        case .toolCall(let call): toolCalls.append(call)
        case .rejectedToolCall, .finished: break
        }
    }

    func finished(_ completion: Completion) -> Response {
        Response(text: text, reasoning: reasoning, toolCalls: toolCalls, completion: completion)
    }
}

/// One answer: what it is made from, and who hears of its end.
final class Turn: Sendable {
    /// How it ended for its reader.
    enum End: Sendable {
        /// With all its events.
        case finished(Response)
        /// The reader had enough, or its task was cancelled.
        case stopped(Answer)
        /// With an error.
        case failed
    }

    enum Step: Sendable {
        case events([GenerationEvent])
        case finished(Completion)
    }

    let claim: @Sendable () throws -> Void
    let told: @Sendable (Answer) -> Void
    let ended: @Sendable (End) -> Void

    private let model: NativeModel
    private let cancel = CancelFlag()
    private let begin: @Sendable (CancelFlag) throws -> Handle
    /// The native session, from when its answer has begun. Used on the model's queue.
    private let session = Mutex<Handle?>(nil)
    private let isRead = Mutex(false)
    /// Whether the turn was left: a step that was on its way begins nothing any more. Used on the model's queue.
    private let isLeft = Mutex(false)

    /// - Parameters:
    ///   - begin: prepares the native session and begins its answer, on the model's queue. May run again if the device was suspended.
    ///   - claim: throws if the turn cannot be had now; runs before everything else.
    ///   - told: runs each time that more of the answer was read.
    ///   - ended: runs once if `claim` did not throw, as soon as the next turn may claim.
    init(
        model: NativeModel, claim: @escaping @Sendable () throws -> Void = {},
        told: @escaping @Sendable (Answer) -> Void = { _ in }, ended: @escaping @Sendable (End) -> Void = { _ in },
        begin: @escaping @Sendable (CancelFlag) throws -> Handle
    ) {
        self.model = model
        self.claim = claim
        self.told = told
        self.ended = ended
        self.begin = begin
    }

    /// A second reader would tear the answer apart.
    func claimOnce() throws {
        let wasRead = isRead.withLock { isRead in
            defer { isRead = true }
            return isRead
        }
        if wasRead { throw MetalCandleError(.invalidArgument, "response stream: expected one reader, found a second") }
        try claim()
    }

    /// Begins the next token.
    func advance() -> Task<Step, any Error> {
        Task { [self] in try await model.queue.run { try self.step() } }
    }

    /// Makes what runs stop within a token.
    func stop(_ step: Task<Step, any Error>?) {
        cancel.trigger()
        step?.cancel()
    }

    /// Leaves the native session ready for the next turn: behind a step that still runs, before the next turn's first.
    func leave() {
        model.queue.later { [self] in
            isLeft.withLock { $0 = true }
            // An answer that never began, or is over, needs no end.
            if let session = session.withLock({ $0.take() }) { _ = mc_session_end(session.pointer, nil, nil) }
        }
    }

    private func step() throws -> Step {
        if isLeft.withLock({ $0 }) { throw CancellationError() }
        let session = try session.withLock { session in
            if let session { return session }
            session = try begin(cancel)
            return session!
        }
        var event: UnsafePointer<mc_token_event>?
        var error: OpaquePointer?
        switch mc_session_next(session.pointer, &event, &error) {
        case .MC_OK:
            guard let token = event?.pointee else { throw MetalCandleError(.panic, "a token is missing") }
            return .events(GenerationEvent.of(token))
        case .MC_DONE:
            let generation = try Handle(free: mc_generation_free) { mc_session_end(session.pointer, $0, $1) }
            self.session.withLock { $0 = nil }
            return .finished(Completion(generation.pointer))
        case .MC_CANCELLED:
            throw CancellationError()
        case let status:
            throw MetalCandleError(status, consuming: error)
        }
    }
}

extension GenerationEvent {
    /// The events of a token's parts.
    fileprivate static func of(_ token: mc_token_event) -> [GenerationEvent] {
        var events: [GenerationEvent] = []
        var at = UnsafeRawPointer(token.parts)
        for _ in 0..<token.parts_len {
            let part = at.assumingMemoryBound(to: mc_part.self).pointee
            let text = String(bytes: part.text, count: part.text_len)
            switch part.kind {
            case .MC_PART_TEXT: events.append(.text(text))
            case .MC_PART_REASONING: events.append(.reasoning(text))
            case .MC_PART_TOOL_CALL_END: events.append(ToolCall(json: text).map(GenerationEvent.toolCall) ?? .rejectedToolCall)
            case .MC_PART_REJECTED_TOOL_CALL: events.append(.rejectedToolCall)
            default: break  // a call's name and arguments as they come, and what a later library tells
            }
            // A later library has larger ones.
            at += part.struct_size
        }
        return events
    }
}

/// Reads a turn's steps, one ahead, and tells the turn how it ended.
private final class Reader {
    private enum Phase { case waiting, reading, over }

    private let turn: Turn
    private var phase = Phase.waiting
    private var ahead: Task<Turn.Step, any Error>?
    private var events: [GenerationEvent] = []
    private var answer = Answer()

    init(_ turn: Turn) { self.turn = turn }

    deinit {
        if phase == .reading { close(.stopped(answer)) }
    }

    func next(isolation: isolated (any Actor)?) async throws -> GenerationEvent? {
        if phase == .waiting {
            try Task.checkCancellation()
            try turn.claimOnce()
            phase = .reading
        }
        while events.isEmpty {
            guard phase == .reading else { return nil }
            do {
                try await read(isolation: isolation)
            } catch {
                close(error is CancellationError ? .stopped(answer) : .failed)
                throw error
            }
        }
        return deliver(events.removeFirst())
    }

    private func read(isolation: isolated (any Actor)?) async throws {
        let step = ahead ?? turn.advance()
        ahead = step
        let result = try await withTaskCancellationHandler {
            let result = try await step.value
            try Task.checkCancellation()
            return result
        } onCancel: { [turn] in
            turn.stop(step)
        }
        switch result {
        case .events(let new):
            ahead = turn.advance()
            events += new
        case .finished(let completion):
            ahead = nil
            events.append(.finished(completion))
        }
    }

    private func deliver(_ event: GenerationEvent) -> GenerationEvent {
        answer.add(event)
        if case .finished(let completion) = event {
            close(.finished(answer.finished(completion)))
        } else {
            turn.told(answer)
        }
        return event
    }

    private func close(_ end: Turn.End) {
        phase = .over
        turn.stop(ahead)
        ahead = nil
        turn.leave()
        turn.ended(end)
    }
}
