import Foundation
import MetalCandle
import Observation

/// Trains an adapter on a file of examples, draws its loss, and compares answers with and without it.
@MainActor @Observable public final class TrainingModel {
    /// A point of the chart.
    public struct Point: Identifiable, Sendable, Hashable {
        public let id: Int
        public let loss: Float
    }

    /// The same question, answered with and without the adapter.
    public struct Comparison: Sendable, Hashable {
        public var without = ""
        public var with = ""
    }

    public private(set) var exampleCount = 0
    public private(set) var losses: [Point] = []
    /// 0 to 1 while something is learnt, and where it was stopped.
    public private(set) var fraction: Double?
    public private(set) var comparison: Comparison?
    public private(set) var failure: String?
    /// What was learnt so far.
    public private(set) var adapter: Adapter?
    public var epochs = 3

    private let model: LanguageModel
    private let responseOptions: ResponseOptions
    private var data: TrainingData?
    private var work: Task<Void, Never>?

    public init(_ model: LanguageModel, responseOptions: ResponseOptions = ResponseOptions(maximumTokens: 200, temperature: 0)) {
        self.model = model
        self.responseOptions = responseOptions
    }

    public var isBusy: Bool { work != nil }
    public var canTrain: Bool { !isBusy && exampleCount > 0 }
    public var canCompare: Bool { !isBusy && adapter != nil }

    /// Reads examples, one a line.
    public func open(_ file: URL) {
        run { [self] in
            let data = try await TrainingData(jsonLines: file)
            (self.data, exampleCount, losses, fraction, adapter, comparison) = (data, data.count, [], nil, nil, nil)
        }
    }

    /// Learns from the beginning.
    public func train() {
        guard let data, canTrain else { return }
        (losses, fraction, comparison) = ([], 0, nil)
        run { [self] in
            let trainer = try await LoRATrainer(
                model, options: TrainingOptions(epochs: epochs, batchSize: 1, gradientAccumulation: min(4, data.count)))
            do {
                for try await event in trainer.train(on: data) {
                    guard case .step(let step) = event else { continue }
                    losses.append(Point(id: step.step, loss: step.loss))
                    fraction = Double(step.step) / Double(step.totalSteps)
                }
            } catch is CancellationError {
                // The stop button: what was learnt counts.
            }
            // Not in this task, which may be cancelled.
            adapter = try await Task { try await trainer.adapter() }.value
        }
    }

    /// Answers a question twice.
    public func compare(_ question: String) {
        guard let adapter, canCompare else { return }
        comparison = Comparison()
        run { [self] in
            let without = ChatSession(model, options: responseOptions)
            let with = ChatSession(model, adapters: [AttachedAdapter(adapter)], options: responseOptions)
            for try await text in without.streamResponse(to: question).snapshots { comparison?.without = text }
            for try await text in with.streamResponse(to: question).snapshots { comparison?.with = text }
        }
    }

    /// The stop button.
    public func stop() { work?.cancel() }

    /// Waits until nothing is being done any more.
    public func finish() async { await work?.value }

    private func run(_ operation: @escaping @MainActor () async throws -> Void) {
        guard work == nil else { return }
        failure = nil
        work = Task {
            do {
                try await operation()
            } catch {
                if !(error is CancellationError) { failure = error.localizedDescription }
            }
            work = nil
        }
    }
}
