import CMetalCandle
import Foundation
import Synchronization

/// Trains an adapter of a model; the model stays as it is.
///
/// ```swift
/// let trainer = try await LoRATrainer(model, options: TrainingOptions(epochs: 3))
/// let examples = try await TrainingData(jsonLines: directory.appending(path: "examples.jsonl"))
/// for try await event in trainer.train(on: examples) {
///     if case .step(let step) = event { print("\(step.step) of \(step.totalSteps): \(step.loss)") }
/// }
/// session.adapters = [AttachedAdapter(try await trainer.adapter())]
/// ```
///
/// Training runs on a thread of its own, so that sessions of the model go on answering. It can be left at any time, by leaving the loop or
/// cancelling its task: the trainer then stands at the last finished micro-batch, gives its ``adapter()``, and goes on from there with the
/// next ``train(on:validation:)`` on the same data. From a checkpoint it goes on in another process: ``resume(from:model:options:)``.
public final class LoRATrainer: Sendable {
    private let handle: Handle
    private let cancel: CancelFlag
    private let checkpoints: TrainingOptions.Checkpoints?
    private let queue = NativeQueue("trainer")
    private let isTraining = Mutex(false)

    /// Makes a trainer, with fresh weights that change nothing yet or those of ``AdapterConfiguration/initial``.
    ///
    /// - Parameters:
    ///   - model: the model; the trainer keeps its memory, also when it is unloaded.
    ///   - adapter: the adapter to be trained.
    ///   - options: how to train.
    /// - Throws: ``MetalCandleError``: `.invalidArgument` for a bad value or a target that the model does not have, `.unsupported` for a
    ///   model that cannot be trained (``ModelInfo/supportsTraining``), `.mismatch` for an initial adapter of another model.
    public convenience init(
        _ model: LanguageModel, adapter: AdapterConfiguration = AdapterConfiguration(), options: TrainingOptions = TrainingOptions()
    ) async throws {
        try await self.init(model, options) { model, options in
            let config = try adapter.native()
            return try Handle(free: mc_lora_trainer_free) { mc_lora_trainer_new(model, config.pointer, options, $0, $1) }
        }
    }

    /// Goes on where a checkpoint was written. With the same data the results on the processor are those of a training that was not
    /// interrupted, bit for bit.
    ///
    /// - Parameters:
    ///   - checkpoint: its directory.
    ///   - model: the model that it was trained on.
    ///   - options: as the training began with; what decides the order of the data must be the same, the rest may differ.
    /// - Throws: ``MetalCandleError``: `.notFound`, `.io` or `.format` for the files, `.mismatch` for another model, `.invalidArgument`
    ///   for an option that differs and must not.
    public static func resume(
        from checkpoint: URL, model: LanguageModel, options: TrainingOptions
    ) async throws -> LoRATrainer {
        let path = try checkpoint.nativePath("checkpoint")
        return try await LoRATrainer(model, options) { model, options in
            try Handle(free: mc_lora_trainer_free) { mc_lora_trainer_resume(model, path, options, $0, $1) }
        }
    }

    private init(
        _ model: LanguageModel, _ options: TrainingOptions, make: @escaping @Sendable (OpaquePointer, OpaquePointer) throws -> Handle
    ) async throws {
        let model = try model.native.loaded()
        let cancel = CancelFlag()
        self.cancel = cancel
        checkpoints = options.checkpoints
        handle = try await queue.run {
            let options = try options.native(cancel)
            return try make(model.pointer, options.pointer)
        }
    }

    /// How much memory a trainer takes beside its model, at most, with batches of the longest examples.
    ///
    /// - Returns: bytes.
    public static func estimatedMemoryBytes(
        for model: LanguageModel, adapter: AdapterConfiguration = AdapterConfiguration(), options: TrainingOptions = TrainingOptions()
    ) async throws -> UInt64 {
        let model = try model.native.loaded()
        return try await NativeQueue("estimate").run {
            let (config, options) = (try adapter.native(), try options.native(CancelFlag()))
            var bytes: UInt64 = 0
            try call { mc_model_estimate_training_memory(model.pointer, config.pointer, options.pointer, &bytes, $0) }
            return bytes
        }
    }

    /// How many steps were made, those before a checkpoint too.
    public var stepCount: Int { Int(mc_lora_trainer_step_count(handle.pointer)) }

    /// Trains until the last epoch, ``TrainingOptions/totalSteps`` or ``TrainingOptions/patience`` ends it. Work begins with the first event
    /// that is asked for.
    ///
    /// - Parameters:
    ///   - data: what to learn.
    ///   - validation: what to measure the loss on, without learning it.
    public func train(on data: TrainingData, validation: TrainingData? = nil) -> TrainingRun {
        TrainingRun(TrainingRun.Work(
            start: { [self] in
                let isBusy = isTraining.withLock { isTraining in
                    defer { isTraining = true }
                    return isTraining
                }
                if isBusy { throw Self.busy }
            },
            work: { [self] work in
                // One for the whole run: a suspended device makes several native calls of it.
                let receiver = StepReceiver(work, checkpoints)
                try await queue.run { try self.train(on: data, validation, work, receiver) }
            },
            stop: { [cancel] in cancel.trigger() },
            end: { [self] in isTraining.withLock { $0 = false } }))
    }

    /// What was trained so far, as an adapter like any other.
    ///
    /// - Throws: ``MetalCandleError`` with `.busy` while a training is being read: leave it, and go on later.
    public func adapter() async throws -> Adapter {
        try requireIdle()
        return Adapter(try await queue.run { [handle] in
            try Handle(free: mc_lora_free) { mc_lora_trainer_adapter(handle.pointer, $0, $1) }
        })
    }

    /// Writes a checkpoint for ``resume(from:model:options:)``; its directory is also the adapter in PEFT's layout.
    ///
    /// - Parameter directory: made if it does not exist; a checkpoint that is there is replaced.
    /// - Throws: ``MetalCandleError`` with `.io`, `.busy` while a training is being read, or `.invalidArgument` for one that has left
    ///   the finite numbers.
    public func save(to directory: URL) async throws {
        try requireIdle()
        let path = try directory.nativePath("directory")
        try await queue.run { [handle] in try call { mc_lora_trainer_save(handle.pointer, path, $0) } }
    }

    private func requireIdle() throws {
        if isTraining.withLock({ $0 }) { throw Self.busy }
    }

    /// One native call, behind whatever was stopped before it. Runs again where it was if the device was suspended meanwhile.
    private func train(
        on data: TrainingData, _ validation: TrainingData?, _ work: TrainingRun.Work, _ receiver: StepReceiver
    ) throws {
        // The flag is the trainer's, and may still be triggered by the run before.
        mc_cancel_reset(cancel.pointer)
        if work.isStopped { throw CancellationError() }
        try withExtendedLifetime(receiver) {
            try call {
                mc_lora_trainer_train(
                    handle.pointer, data.handle.pointer, validation?.handle.pointer, receiveStep,
                    Unmanaged.passUnretained(receiver).toOpaque(), $0)
            }
        }
        if work.isStopped { throw CancellationError() }
        receiver.finish(stepCount)
    }

    private static let busy = MetalCandleError(.busy, "trainer: expected no training under way, found one")
}

/// Makes events of the steps of one run.
private final class StepReceiver: Sendable {
    private let work: TrainingRun.Work
    private let checkpoints: TrainingOptions.Checkpoints?
    private let state = Mutex(State())

    private struct State {
        var bestLoss: Float?
        /// Whether the last step's checkpoint was told.
        var isSaved = false
    }

    init(_ work: TrainingRun.Work, _ checkpoints: TrainingOptions.Checkpoints?) {
        self.work = work
        self.checkpoints = checkpoints
    }

    /// - Returns: whether to go on.
    func receive(_ event: mc_train_event) -> Bool {
        work.send(.step(TrainingStep(event)))
        if !event.eval_loss.isNaN {
            state.withLock { $0.bestLoss = min(event.eval_loss, $0.bestLoss ?? .infinity) }
            work.send(.validation(TrainingValidation(step: Int(event.step), loss: event.eval_loss, isBest: event.is_best)))
        }
        // Checkpoints are written before their step is told.
        let isSaved = checkpoints?.interval.map { Int(event.step) % $0 == 0 } ?? false
        state.withLock { $0.isSaved = isSaved }
        if isSaved { tellCheckpoint() }
        return !work.isStopped
    }

    func finish(_ stepCount: Int) {
        let state = state.withLock { $0 }
        if !state.isSaved { tellCheckpoint() }
        work.send(.finished(TrainingSummary(stepCount: stepCount, bestValidationLoss: state.bestLoss)))
    }

    private func tellCheckpoint() {
        if let checkpoints { work.send(.checkpoint(checkpoints.directory)) }
    }
}

private let receiveStep: mc_train_fn = { receiver, event in
    guard let receiver else { return MC_STOP }
    return Unmanaged<StepReceiver>.fromOpaque(receiver).takeUnretainedValue().receive(event.pointee) ? MC_CONTINUE : MC_STOP
}
