import Foundation
import MetalCandle
import Observation

/// Loads a model and shows how far it is.
@MainActor @Observable public final class ModelLoader<Model: Loadable> {
    /// What the loader is doing. Fractions are of the whole.
    public enum State {
        case idle
        case downloading(fraction: Double)
        case loading(fraction: Double)
        case compiling(fraction: Double)
        case ready(Model)
        case failed(message: String)
    }

    /// Where the model comes from.
    public enum Source: Sendable, Hashable {
        /// A directory on this device.
        case directory(URL)
        /// A repository of the Hugging Face Hub, downloaded if it is not here yet.
        case hub(HubModel)
    }

    public private(set) var state = State.idle
    private var loading: Task<Void, Never>?

    public init() {}

    /// The model, when it is ready.
    public var model: Model? { if case .ready(let model) = state { model } else { nil } }

    /// 0 to 1 while something is being done.
    public var fraction: Double? {
        switch state {
        case .downloading(let fraction), .loading(let fraction), .compiling(let fraction): fraction
        case .idle, .ready, .failed: nil
        }
    }

    /// Loads a model in place of the one that is there.
    public func load(_ source: Source) {
        unload()
        state = .loading(fraction: 0)
        // Progress comes on another thread; the stream brings it here, in its order.
        let (progress, continuation) = AsyncStream.makeStream(of: LoadProgress.self)
        loading = Task { [weak self] in
            async let model = Model.load(source) { continuation.yield($0) } finally: { continuation.finish() }
            for await progress in progress { self?.show(progress) }
            let state: State
            do { state = .ready(try await model) } catch { state = .failed(message: error.localizedDescription) }
            // Whoever cancelled has set the state.
            if !Task.isCancelled { self?.state = state }
        }
    }

    /// Stops loading.
    public func cancel() {
        loading?.cancel()
        if fraction != nil { state = .idle }
    }

    /// Gives the model's memory back.
    public func unload() {
        cancel()
        model?.unload()
        state = .idle
    }

    /// Waits until nothing is being loaded any more.
    public func finish() async { await loading?.value }

    private func show(_ progress: LoadProgress) {
        guard !Task.isCancelled else { return }
        state = switch progress.phase {
        case .downloading: .downloading(fraction: progress.fraction)
        case .reading: .loading(fraction: progress.fraction)
        case .compiling: .compiling(fraction: progress.fraction)
        }
    }
}

/// What a ``ModelLoader`` can load.
public protocol Loadable: Sendable {
    static func load(from directory: URL, options: ModelOptions, progress: (@Sendable (LoadProgress) -> Void)?) async throws -> Self
    static func load(hub model: HubModel, options: ModelOptions, progress: (@Sendable (LoadProgress) -> Void)?) async throws -> Self
    func unload()
}

extension LanguageModel: Loadable {}
extension EmbeddingModel: Loadable {}

extension Loadable {
    fileprivate static func load(
        _ source: ModelLoader<Self>.Source, progress: @escaping @Sendable (LoadProgress) -> Void, finally: @Sendable () -> Void
    ) async throws -> Self {
        defer { finally() }
        return switch source {
        case .directory(let url): try await load(from: url, options: ModelOptions(), progress: progress)
        case .hub(let model): try await load(hub: model, options: ModelOptions(), progress: progress)
        }
    }
}
