import CMetalCandle
import Foundation
import Synchronization

/// A training under way, as a sequence of events.
///
/// Training goes on between two events, and stops within a layer of the network when the loop is left or its task is cancelled; a
/// cancelled task gets `CancellationError`. It can be read once.
public struct TrainingRun: AsyncSequence, Sendable {
    /// What happened.
    public typealias Element = TrainingEvent

    private let work: Work

    init(_ work: Work) { self.work = work }

    /// Begins to read.
    public func makeAsyncIterator() -> Iterator { Iterator(reader: Reader(work)) }

    /// Reads the events; when it is dropped, training stops.
    public struct Iterator: AsyncIteratorProtocol {
        fileprivate let reader: Reader

        /// The next event; nil after ``TrainingEvent/finished(_:)``.
        public mutating func next() async throws -> TrainingEvent? {
            try await reader.next(isolation: nil)
        }

        /// The next event; nil after ``TrainingEvent/finished(_:)``.
        public mutating func next(isolation actor: isolated (any Actor)?) async throws -> TrainingEvent? {
            try await reader.next(isolation: actor)
        }
    }

    /// Trains to the end.
    ///
    /// - Throws: ``MetalCandleError``; `CancellationError`.
    @discardableResult public func collect() async throws -> TrainingSummary {
        for try await event in self {
            if case .finished(let summary) = event { return summary }
        }
        throw MetalCandleError(.panic, "a training ended without its last event")
    }

    /// What a run does, and who hears of it.
    final class Work: Sendable {
        fileprivate let start: @Sendable () throws -> Void
        fileprivate let end: @Sendable () -> Void
        fileprivate let events: AsyncThrowingStream<TrainingEvent, any Error>
        private let continuation: AsyncThrowingStream<TrainingEvent, any Error>.Continuation
        private let work: @Sendable (Work) async throws -> Void
        private let stopWork: @Sendable () -> Void
        private let state = Mutex(State())

        private struct State {
            var isStopped = false
            var task: Task<Void, Never>?
        }

        /// - Parameters:
        ///   - start: throws if the trainer is in use.
        ///   - work: sends events until it is done or stopped.
        ///   - stop: makes `work` stop soon.
        ///   - end: runs once if `start` did not throw, as soon as the next run may start.
        init(
            start: @escaping @Sendable () throws -> Void, work: @escaping @Sendable (Work) async throws -> Void,
            stop: @escaping @Sendable () -> Void, end: @escaping @Sendable () -> Void
        ) {
            self.start = start
            self.work = work
            self.end = end
            stopWork = stop
            (events, continuation) = AsyncThrowingStream.makeStream()
        }

        var isStopped: Bool { state.withLock { $0.isStopped } }

        func send(_ event: TrainingEvent) { continuation.yield(event) }

        fileprivate func begin() throws {
            if state.withLock({ $0.task != nil }) {
                throw MetalCandleError(.invalidArgument, "training run: expected one reader, found a second")
            }
            try start()
            // Also when the task that waits for an event is cancelled.
            continuation.onTermination = { [weak self] termination in
                if case .cancelled = termination { self?.stop() }
            }
            let task = Task {
                do {
                    try await work(self)
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            state.withLock { $0.task = task }
        }

        /// Once, and done when this returns: what stops the trainer must not come late and stop its next run.
        fileprivate func stop() {
            state.withLock { state in
                guard !state.isStopped else { return }
                state.isStopped = true
                stopWork()
                state.task?.cancel()  // it may wait for a suspended device
            }
        }
    }

    fileprivate final class Reader {
        private enum Phase { case waiting, reading, over }

        private let work: Work
        private var events: AsyncThrowingStream<TrainingEvent, any Error>.Iterator
        private var phase = Phase.waiting

        init(_ work: Work) {
            self.work = work
            events = work.events.makeAsyncIterator()
        }

        deinit {
            if phase == .reading { close() }
        }

        func next(isolation: isolated (any Actor)?) async throws -> TrainingEvent? {
            if phase == .over { return nil }
            do {
                try Task.checkCancellation()
                if phase == .waiting {
                    try work.begin()
                    phase = .reading
                }
                let event = try await events.next(isolation: isolation)
                // The stream of a cancelled task ends as if it were over.
                try Task.checkCancellation()
                if case .finished = event { close() }
                return event
            } catch {
                if phase == .reading { close() }
                throw error
            }
        }

        private func close() {
            phase = .over
            work.stop()
            work.end()
        }
    }
}

/// What a ``TrainingRun`` is made of.
public enum TrainingEvent: Sendable, Hashable {
    /// The weights changed.
    case step(TrainingStep)
    /// The loss was measured on the validation data.
    case validation(TrainingValidation)
    /// A checkpoint was written to this directory.
    case checkpoint(URL)
    /// The end, once and last.
    case finished(TrainingSummary)
}

/// One step of a training.
public struct TrainingStep: Sendable, Hashable {
    /// Its number, from 1.
    public let step: Int
    /// The step that the training ends with, unless it is stopped.
    public let totalSteps: Int
    /// Which pass over the data it belongs to, from 1.
    public let epoch: Int
    /// The mean cross entropy of its target tokens, in nats, before the step.
    public let loss: Float
    /// Its learning rate.
    public let learningRate: Double
    /// The length of the gradient of all weights together, before it was cut.
    public let gradientNorm: Float
    /// Its speed, with tokens that were not trained on.
    public let tokensPerSecond: Float
    /// How many tokens it trained on.
    public let targetTokens: Int
    /// The most memory that the process has had so far, in bytes; 0 where the system does not tell.
    public let peakBytes: UInt64
    /// How many texts of the data were cut to ``TrainingOptions/maximumLength``. An example is one, but a conversation whose template
    /// rewrites earlier turns is one for each answer.
    public let truncatedExamples: Int
    /// How many texts of the data have nothing to learn, and are left out.
    public let skippedExamples: Int

    init(_ event: mc_train_event) {
        step = Int(event.step)
        totalSteps = Int(event.total_steps)
        epoch = Int(event.epoch)
        loss = event.loss
        learningRate = event.learning_rate
        gradientNorm = event.grad_norm
        tokensPerSecond = event.tokens_per_second
        targetTokens = Int(event.target_tokens)
        peakBytes = event.peak_bytes
        truncatedExamples = Int(event.truncated)
        skippedExamples = Int(event.skipped)
    }
}

/// A measurement on the validation data.
public struct TrainingValidation: Sendable, Hashable {
    /// The step that it followed.
    public let step: Int
    /// The mean cross entropy, in nats.
    public let loss: Float
    /// Whether it is the lowest so far.
    public let isBest: Bool
}

/// How a training ended.
public struct TrainingSummary: Sendable, Hashable {
    /// How many steps were made, those before a checkpoint too.
    public let stepCount: Int
    /// The lowest loss on the validation data in this run; nil if it was not measured.
    public let bestValidationLoss: Float?
}
